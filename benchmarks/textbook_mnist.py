"""The textbook's two sparse autoencoders on MNIST: do their codes say more than the pixels do?

    python benchmarks/textbook_mnist.py --data FOLDER_WITH_THE_FOUR_MNIST_FILES

Both read pixels in [0, 1], train on the 60,000 rows with Adam, batches of 256:

* **KL**: 784-256-784, logistic both ways, cross-entropy, KL with rho 0.05 and weight 3, 20 epochs, rate 0.003 falling
  as a cosine. "no penalty" is the same run without KL.
* **L1**: 784-1000-784, rectified units, linear decoder with rows of norm 1, squared error with weight 1/2, L1 with
  weight 0.3, 10 epochs, rate 0.001, falling linearly to 0 over the last fifth.

"Probe" is the test accuracy of a logistic regression (``measure.probe``, C = 1) on the standardised codes of all 60,000
rows. L0 and alive units (those that fire on some test row) count a logistic unit as firing above one half.
"CPU s" is Trainer.fit alone, one thread.

How the settings were chosen: reconstruction, rate, its schedule and the L1 weight, some twenty combinations in all, by
the probe on 5,000 or 10,000 rows held out from the training set (``--choose`` trains on 55,000 and prints the probe of
the other 5,000; the goals are for the test set). Nothing was chosen on the test set. The held-out rows are harder: raw
pixels score 90.9 % there. For KL a cosine was worth 0.3 points over the default schedule, and rates of 0.001, 0.002
and 0.003 were equal within 0.1; the last gives the sparsest codes. From seed to seed the probe scatters by 0.1 points.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
from dataclasses import dataclass
from pathlib import Path

import fewfire as ff
from fewfire.contracts import Source
from fewfire.evaluation import evaluate
from measure import CpuSeconds, Labelled, Mnist, mnist, print_table, print_title, probe

PLAIN, LOGISTIC = {"name": "linear"}, {"name": "linear", "output": "sigmoid"}


@dataclass(frozen=True)
class Recipe:
    """One line of the table."""

    name: str
    n_latents: int
    activation: str
    network: dict[str, str]
    terms: tuple[ff.Term, ...]
    epochs: int
    rate: float
    schedule: str
    goal: str
    least_probe: float = 0.0
    most_seconds: float = float("inf")
    most_l0: float = float("inf")


RECIPES = (
    Recipe(
        "KL, 256 logistic units",
        256,
        "sigmoid",
        LOGISTIC,
        (ff.BCE(), ff.KLSparsity(weight=3.0, rho=0.05)),
        epochs=20,
        rate=3e-3,
        schedule="cosine",
        goal=">= 96.2 %, <= 45 s",
        least_probe=0.962,
        most_seconds=45,
    ),
    Recipe(
        "  no penalty",
        256,
        "sigmoid",
        LOGISTIC,
        (ff.BCE(),),
        epochs=20,
        rate=3e-3,
        schedule="cosine",
        goal="",
    ),
    Recipe(
        "L1, 1000 rectified units",
        1000,
        "relu",
        PLAIN,
        (ff.MSE(weight=0.5), ff.L1(weight=0.3)),
        epochs=10,
        rate=1e-3,
        schedule="linear",
        goal=">= 96.4 %, L0 <= 50",
        least_probe=0.964,
        most_l0=50,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the four MNIST *-ubyte.gz files")
    parser.add_argument("--choose", action="store_true", help="hold out 5,000 training rows; leave the test set alone")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and the order of the rows")
    parser.add_argument(
        "--only", default="", metavar="WORD", help="only lines with this in their name: KL, L1, penalty"
    )
    args = parser.parse_args()
    data = mnist(args.data)
    if args.choose:
        data = data.held_out(55_000, 5_000)
    recipes = [recipe for recipe in RECIPES if args.only in recipe.name]
    print_title(f"MNIST codes, probed: {len(data.train.x):,} rows, {len(data.test.x):,} to test, seed {args.seed}")
    header = ["", "probe", "CPU s", "L0", "mean act.", "alive", "FVU", "goal", ""]
    pixels = ["raw pixels", f"{probe(*data):.2%}", "", "", "", "", "", "", ""]
    print_table(header, [pixels, *(measured(recipe, data, args.seed) for recipe in recipes)])


def measured(recipe: Recipe, data: Mnist, seed: int) -> list[str]:
    """Train, encode, probe: one line of the table."""
    model, seconds = trained(recipe, ff.ArraySource(data.train.x), seed)
    accuracy = probe(*(Labelled(model.encode(part.x).numpy(), part.y) for part in data))
    found = evaluate(model, ff.ArraySource(data.test.x))
    met = accuracy >= recipe.least_probe and seconds <= recipe.most_seconds and found["l0"] <= recipe.most_l0
    return [
        recipe.name,
        f"{accuracy:.2%}",
        f"{seconds:.1f}",
        f"{found['l0']:.1f}",
        f"{found['mean_activation']:.3f}",
        f"{1 - found['dead_fraction']:.1%}",
        f"{found['fvu']:.3f}",
        recipe.goal,
        ("ok" if met else "MISSED") if recipe.goal else "",
    ]


def trained(recipe: Recipe, source: Source, seed: int) -> tuple[ff.Autoencoder, float]:
    """The model, and the CPU seconds of its fit."""
    model = ff.Autoencoder(784, recipe.n_latents, recipe.activation, network=recipe.network, seed=seed)
    config = ff.TrainConfig(
        epochs=recipe.epochs, batch_size=256, learning_rate=recipe.rate, lr_schedule=recipe.schedule, seed=seed
    )
    trainer = ff.Trainer(model, source, terms=recipe.terms, config=config, progress=False)
    with CpuSeconds() as cpu:
        trainer.fit()
    return model, cpu.used


if __name__ == "__main__":
    main()
