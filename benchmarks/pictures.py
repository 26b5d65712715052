"""Draw the README's picture: the features of the demo, most used first.

python benchmarks/pictures.py --out docs/pictures
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import fewfire as ff
from fewfire.demo import DEMOS
from fewfire.evaluation import Evaluation
from fewfire.runs import RunConfig, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        run = train(RunConfig.model_validate(DEMOS["patches"]), Path(folder) / "run")
        evaluation = Evaluation.over(run.model, run.source(), max_rows=20_000)
    figure, ax = plt.subplots(figsize=(10, 5), layout="constrained")
    ff.plot.filters(run.model, ax, order=evaluation, n=200, columns=20)
    ax.set_title("", loc="left")  # the README has its own caption
    figure.savefig(out / "demo_filters.png", dpi=110)
    print(f"{out / 'demo_filters.png'}")


if __name__ == "__main__":
    main()
