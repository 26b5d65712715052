"""The results of run.py as Markdown tables, and as a picture.

    python benchmarks/speed/table.py results.json [more.json ...] [--plot speed.png]

A cell is the median of the CPU milliseconds of a step, or of a batch encoded or decoded, on one thread; with more
threads of the wall time. In brackets: how many times as fast as the fastest peer, or with how many times less memory
than the most frugal. Plain torch written by hand counts as a peer. Give each size of a kind once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

SCALE = "torch.mm of the encoder alone"
Results = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    files = [json.loads(path.read_text()) for path in args.results]
    for told in {json.dumps(file["conditions"]): file["conditions"] for file in files}.values():
        packages = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
        print(f"{told['cpu']}, {told['cores']} cores, Python {told['python']}; {packages}")
    results = [one for file in files for one in file["results"]]
    for kind in unique(results, "kind"):
        for what in unique(results, "what"):
            of_both = [one for one in results if one["kind"] == kind and one["what"] == what]
            for threads in unique(of_both, "threads"):
                table(kind, what, threads, [one for one in of_both if one["threads"] == threads])
    if unique(results, "threads") != [1]:
        gains(results)
    if args.plot:
        draw(args.plot, [one for one in results if one["what"] == "step" and one["threads"] == 1])


def unique(results: Results, key: str) -> list[Any]:
    return list(dict.fromkeys(one[key] for one in results))


def value(one: dict[str, Any]) -> float:
    """Milliseconds, or megabytes."""
    if one["what"] == "memory":
        return float(one["mb"])
    return median(one["cpu" if one["threads"] == 1 else "wall"]) * 1e3


def is_peer(name: str) -> bool:
    return name != SCALE and not name.startswith("fewfire")


def table(kind: str, what: str, threads: int, results: Results) -> None:
    unit = "MB over what was there before" if what == "memory" else f"ms of {'CPU' if threads == 1 else 'wall'} time"
    columns = unique(results, "size")
    cells = {size: values(results, size) for size in columns}
    best = {size: min((v for n, v in cells[size].items() if is_peer(n)), default=None) for size in columns}
    print(f"\n**{kind}, {what}**, {unit}, {threads} thread{'s' * (threads > 1)}\n")
    print("| | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for name in sorted(unique(results, "contender"), key=order(cells[columns[-1]])):
        print(f"| {name} | " + " | ".join(cell(cells[size].get(name), best[size]) for size in columns) + " |")


def values(results: Results, size: str) -> dict[str, float]:
    return {one["contender"]: value(one) for one in results if one["size"] == size}


def order(cells: dict[str, float]) -> Callable[[str], tuple[bool, float]]:
    return lambda name: (name != SCALE, cells.get(name, float("inf")))


def cell(mine: float | None, best: float | None) -> str:
    if mine is None:
        return ""
    number = f"{mine:,.0f}" if mine >= 100 else f"{mine:.3g}"
    return number if best is None else f"{number} ({best / mine:.2f}x)"


def gains(results: Results) -> None:
    """What more threads bring to a step, beside what they bring to one product."""
    steps = [one for one in results if one["what"] == "step"]
    wall = {tuple(one[key] for key in ("contender", "size", "kind", "threads")): median(one["wall"]) for one in steps}
    print("\n**Wall time of a step on one thread over that on more, in the same run**\n")
    print("| | size | kind | threads | gain |\n|---|---|---|---|---|")
    for (name, size, kind, threads), seconds in wall.items():
        alone = wall.get((name, size, kind, 1))
        if threads > 1 and alone:
            print(f"| {name} | {size} | {kind} | {threads} | {alone / seconds:.2f} |")


def draw(path: Path, results: Results) -> None:
    """Rows a CPU second, a panel for each kind and size, three in a row."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((one["kind"], one["size"]) for one in results))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, panel in zip(axes.flat, panels, strict=False):
        axis.axis("on")
        these = [one for one in results if (one["kind"], one["size"]) == panel and one["contender"] != SCALE]
        these.sort(key=value, reverse=True)
        rates = [one["rows"] / median(one["cpu"]) for one in these]
        colors = ["0.75" if is_peer(one["contender"]) else "tab:orange" for one in these]
        bars = axis.barh([one["contender"] for one in these], rates, color=colors)
        axis.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=2, fontsize=7)
        axis.set_title(", ".join(panel), fontsize=9)
        axis.set_xticks([])
        axis.tick_params(labelsize=7)
        axis.margins(x=0.2)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle("rows a CPU second, training", fontsize=9)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
