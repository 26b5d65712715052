"""How the time a row grows with the number of latents, and falls with the rows of a batch; a table and a picture.

    python benchmarks/speed/growth.py [--latents 1024 ... 65536] [--batches 64 ... 8192] [--peers sparsify overcomplete]
                                      [--reps 3] [--plot growth.png]

TopK, 32 of the latents, rows of 384 columns, one thread; interleaved as in run.py. Batches of 1,024 rows while latents
grow; 4,096 latents while batches do. Nobody trains before: all start from the same untrained weights, a twentieth of
the latents dead (overcomplete from its own). The peers are those that were fastest in run.py.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import harness
import matplotlib as mpl
from contenders import PEERS, Contender, Job, Start, load
from contenders import fewfire as few
from harness import Product, interleaved, make_rows, opened

D, K, LATENTS, BATCH = 384, 32, 4096, 1024

Curves = dict[str, dict[int, float]]
"""of each contender, microseconds a row by latents or by rows"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--latents", nargs="*", type=int, default=[2**n for n in range(10, 17)])
    parser.add_argument("--batches", nargs="*", type=int, default=[2**n for n in range(6, 14)])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=["sparsify", "overcomplete"])
    parser.add_argument("--engines", nargs="+", default=["auto"], help="of fewfire")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    harness.one_arena()
    by_latents, by_batch = {}, {}
    for n in args.latents:
        add(by_latents, n, args, Job("topk", D, n, K, BATCH, make_rows(D, 8 * BATCH)))
    for rows in args.batches:
        add(by_batch, rows, args, Job("topk", D, LATENTS, K, rows, make_rows(D, 4 * max(rows, BATCH))))
    show(f"latents, at {BATCH:,} rows", by_latents)
    show(f"rows, at {LATENTS:,} latents", by_batch)
    if args.plot:
        draw(args.plot, {"latents": by_latents, "rows of a batch": by_batch})


def add(curves: Curves, at: int, args: argparse.Namespace, job: Job) -> None:
    finders = [partial(few.engine, e) for e in args.engines] + [partial(load, p) for p in args.peers]
    contenders: list[Contender] = [Product(job), *opened(finders, job)]
    verbs: dict[Any, Any] = {c: (c, c.steps) for c in contenders}
    for c, times in interleaved(verbs, args.reps, 0.05, Start.untrained(job)).items():
        curves.setdefault(c.name, {})[at] = times.median / job.batch * 1e6
        c.close()
    print(f"  {at:,}: " + ", ".join(f"{name} {curve[at]:.1f}" for name, curve in curves.items()), flush=True)


def show(title: str, curves: Curves) -> None:
    """As Markdown."""
    where = sorted({at for curve in curves.values() for at in curve})
    if not where:
        return
    print(f"\n| CPU microseconds a row, by {title} | " + " | ".join(f"{at:,}" for at in where) + " |")
    print("|---" * (len(where) + 1) + "|")
    for name, curve in curves.items():
        print(f"| {name} | " + " | ".join(f"{curve[at]:.1f}" if at in curve else "" for at in where) + " |")


def draw(path: Path, panels: dict[str, Curves]) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(9, 3.8), layout="constrained", sharey=True)
    for axis, (label, curves) in zip(axes, panels.items(), strict=True):
        for name, curve in curves.items():
            style = {"color": "0.6", "linestyle": ":"} if name == Product.name else {"marker": "o", "markersize": 3}
            axis.loglog(list(curve), list(curve.values()), label=name, **style)
        axis.set_xlabel(label)
        axis.set_xticks(shown := [*next(iter(curves.values()))][::2], [f"{at:,}" for at in shown])
        axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.grid(color="0.92", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("CPU microseconds a row, one step")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
