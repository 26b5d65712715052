"""What many rows cost: ``AnomalyDetector``, fit and score, with its defaults.

    python benchmarks/anomaly_size.py [--rows 1000000] [--columns 40] [--threads 2]

Rows of normal and exponential columns that depend on each other, drawn in blocks, float64. First fit time against
rows: from 65,536 on a uniform sample of so many is learned from, so what grows is only the pass over the rows. Then
all rows: fit, score and explain of the first hundredth of them. Each line is a process of its own; "peak" is its
resident memory at most, the rows themselves included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
import numpy.typing as npt

from measure import print_table, print_title

GOAL = 600
"""seconds of fit and score"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        sys.stdout.write(json.dumps(measured(args.measure, args.columns)))
        return
    print_title(f"AnomalyDetector on rows of {args.columns} columns, {args.threads} threads")
    lines = []
    for rows in sorted({1_000, 10_000, 65_536, 200_000, args.rows}):
        command = [sys.executable, __file__, "--measure", str(rows), "--columns", str(args.columns)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        r = json.loads(answer)
        total = r["fit"] + r["score"]
        rate = f"{rows / r['score']:,.0f}"
        lines.append(
            [f"{rows:,}", *(f"{r[k]:.1f}" for k in ("fit", "score", "explain")), f"{total:.0f}", rate, r["peak"]]
        )
    header = ["rows", "fit s", "score s", "explain 1 % s", "fit + score s", "rows scored / s", "peak MB"]
    print_table(header, lines)
    print(f"goal: {args.rows:,} rows within {GOAL} s; {'met' if total <= GOAL else 'MISSED'}")


def measured(rows: int, columns: int) -> dict[str, float]:
    import fewfire as ff

    X = table(rows, columns)
    detector = ff.AnomalyDetector()
    start = time.perf_counter()
    detector.fit(X)
    fitted = time.perf_counter()
    detector.score_samples(X)
    scored = time.perf_counter()
    detector.explain(X[: max(1, rows // 100)])
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"fit": fitted - start, "score": scored - fitted, "explain": end - scored, "peak": peak}


def table(rows: int, columns: int) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(8, columns))
    X = np.empty((rows, columns))
    for first in range(0, rows, 1 << 16):
        block = X[first : first + (1 << 16)]
        block[:] = rng.normal(size=(len(block), 8)) @ mix + 0.5 * rng.normal(size=block.shape)
        block[:, ::4] = np.exp(block[:, ::4] / 3)
    return X


if __name__ == "__main__":
    main()
