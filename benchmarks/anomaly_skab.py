"""SKAB, a water loop with faults: ``AnomalyDetector`` by the benchmark's own rule for outlier detection.

    python benchmarks/anomaly_skab.py --data SKAB [--window 10]

``SKAB`` is the folder with ``valve1``, ``valve2`` and ``other``, of ``.csv`` or ``.csv.gz`` files: 8 sensors, a row a
second. The rule: for each of the 34 files, learn from the first 400 rows, judge the others; then over all files
together F1 of single rows, the share of usual rows that were found (FAR) and of anomalous ones that were not (MAR), in
percent. Here nothing is tuned to the files: the default; the default with a window of the last ten seconds, which a
user who knows that rows are moments would set; other thresholds that need no labels, for each. The benchmark's
leaderboard lets each method have thresholds and smoothing of its own, chosen by its authors: its numbers are given as
remembered from its README (2021), not measured here; isolation forest is measured as well.

"AUROC": of rows within a file, the mean over files: what a threshold cannot change. "drift": what share of the usual
rows of the judged part has a sensor outside the range of the first 400 rows, by more than a tenth of it.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

import fewfire as ff
from fewfire.anomaly import threshold
from measure import print_table, print_title

TRAIN = 400
LABELS = ["anomaly", "changepoint"]
THRESHOLDS = ("auto", "novelty", "conformal", "mad")
REMEMBERED = {
    "Conv-AE": (0.78, 13.55, 28.02),
    "MSET": (0.78, 39.73, 14.13),
    "T-squared + Q": (0.76, 26.62, 24.92),
    "LSTM-AE": (0.74, 21.21, None),
    "T-squared": (0.66, 19.21, 42.60),
    "vanilla AE": (0.39, 2.59, 75.15),
    "isolation forest": (0.29, 2.56, 82.89),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--window", type=int, default=10)
    args = parser.parse_args()
    files = list(read(args.data))
    print_title(f"SKAB, outlier detection, {len(files)} files")
    lines = []
    for window in (None, args.window):
        found = [judged(train, test, window) for train, test, _ in files]
        for rule in THRESHOLDS:
            name = f"AnomalyDetector, {f'window {window}, ' if window else ''}threshold {rule}"
            lines.append(line(name, files, [(scores, flags[rule]) for scores, flags in found]))
    lines.append(line("IsolationForest, contamination .005", files, [forest(train, test) for train, test, _ in files]))
    lines += [[f"{name} (remembered)", *map(shown, numbers), ""] for name, numbers in REMEMBERED.items()]
    print_table(["method", "F1", "FAR %", "MAR %", "AUROC"], lines)
    print(f"\ndrift: {np.mean([drift(train, test, y) for train, test, y in files]):.0%} of usual rows, mean over files")


def read(folder: Path) -> Iterator[tuple[Any, Any, Any]]:
    """Of each file the first 400 rows, the others, and which of those are anomalous."""
    paths = [p for part in ("valve1", "valve2", "other") for p in sorted((folder / part).glob("*.csv*"))]
    if not paths:
        raise SystemExit(f"no .csv or .csv.gz file in valve1, valve2, other of {folder}")
    for path in paths:
        table = pd.read_csv(path, sep=";", index_col="datetime")
        rows = table.drop(columns=LABELS)
        yield rows[:TRAIN], rows[TRAIN:], table["anomaly"].to_numpy()[TRAIN:] == 1


def judged(train: Any, test: Any, window: int | None) -> tuple[Any, dict[str, Any]]:
    """Scores of ``test``, and what is found by each rule; a window reaches back into ``train``."""
    detector = ff.AnomalyDetector(window=window).fit(train)
    scores = -detector.score_samples(pd.concat([train, test]))[len(train) :]
    usual = torch.from_numpy(detector.usual_scores_)  # of all 400 rows
    return scores, {rule: scores > threshold(rule, usual) for rule in THRESHOLDS}


def forest(train: Any, test: Any) -> tuple[Any, Any]:
    model = IsolationForest(contamination=0.005, random_state=0).fit(train.to_numpy())
    return -model.score_samples(test.to_numpy()), model.predict(test.to_numpy()) == -1


def line(name: str, files: list[Any], found: list[tuple[Any, Any]]) -> list[str]:
    truth = np.concatenate([y for _, _, y in files])
    flags = np.concatenate([flagged for _, flagged in found])
    hits, alarms, missed = (flags & truth).sum(), (flags & ~truth).sum(), (~flags & truth).sum()
    f1 = 2 * hits / (2 * hits + alarms + missed)
    auroc = np.mean([roc_auc_score(y, scores) for (_, _, y), (scores, _) in zip(files, found, strict=True)])
    return [name, *map(shown, (f1, 100 * alarms / (~truth).sum(), 100 * missed / truth.sum(), auroc))]


def shown(number: float | None) -> str:
    return "?" if number is None else f"{number:.2f}"


def drift(train: Any, test: Any, truth: Any) -> float:
    low, high = train.min().to_numpy(), train.max().to_numpy()
    room = 0.1 * (high - low)
    rows = test.to_numpy()[~truth]
    return float(((rows < low - room) | (rows > high + room)).any(1).mean())


if __name__ == "__main__":
    main()
