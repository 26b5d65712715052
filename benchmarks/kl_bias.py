"""How much a mini-batch overstates the KL penalty of the whole set.

    python benchmarks/kl_bias.py --data FOLDER_WITH_THE_FOUR_MNIST_FILES

KL is convex in a unit's mean activation, so the mean of a batch of B rows costs more, on average over batches, than the
mean of all rows (Jensen). ``KLSparsity`` states the difference to second order, summed over units::

    (rho / r^2 + (1 - rho) / (1 - r)^2) sigma^2 / 2B        r, sigma^2: a unit's mean and variance over all rows

This trains 256 logistic units on MNIST for a few epochs (rho 0.05, weight 3), then measures the penalty of random
batches drawn with replacement, in float64, beside the formula and the penalty of the whole set. (An epoch draws
without replacement, which makes the difference smaller by a factor of 1 - B / 60,000.) "Of objective" is weight times
bias over the objective of the whole set.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
from pathlib import Path

import torch
from torch import Tensor

import fewfire as ff
from measure import mnist, print_table, print_title

RHO, WEIGHT = 0.05, 3.0
SIZES = (16, 64, 256, 1024, 4096)
DRAWS = 500_000
"""rows drawn for each size, but at least 400 batches"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the four MNIST *-ubyte.gz files")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    x = torch.from_numpy(mnist(args.data).train.x)
    model, loss = trained(x, args.epochs)
    codes = torch.cat([model(rows).pre_acts for rows in x.split(5000)]).detach().double()
    whole = penalty(model, codes)
    print_title(
        f"KL of 256 units, MNIST, {args.epochs} epochs: whole set {whole:.4f}, mean activation "
        f"{codes.sigmoid().mean():.4f}, objective {loss:.3f}"
    )
    rows = [bias_row(model, codes, whole, size, loss) for size in SIZES]
    header = ["B", "KL of a batch", "bias measured", "standard error", "formula", "measured / formula", "of objective"]
    print_table(header, rows)


def trained(x: Tensor, epochs: int) -> tuple[ff.Autoencoder, float]:
    """The model, and its objective with the penalty of the whole set."""
    model = ff.Autoencoder(784, 256, "sigmoid", network={"name": "linear", "output": "sigmoid"})
    terms = [ff.MSE(weight=0.5), ff.KLSparsity(weight=WEIGHT, rho=RHO)]
    config = ff.TrainConfig(epochs=epochs, batch_size=256, learning_rate=3e-3)
    ff.Trainer(model, ff.ArraySource(x), terms=terms, config=config, progress=False).fit()
    with torch.no_grad():
        out = model(x)
        return model, sum(float(term.weight * term(model, out)) for term in terms)


def bias_row(model: ff.Autoencoder, codes: Tensor, whole: float, size: int, loss: float) -> list[str]:
    bias, error = measured_bias(model, codes, whole, size)
    expected = formula(codes.sigmoid(), size)
    return [
        f"{size}",
        f"{whole + bias:.4f}",
        f"{bias:.5f}",
        f"{error:.5f}",
        f"{expected:.5f}",
        f"{bias / expected:.3f}",
        f"{WEIGHT * bias / loss:.2%}",
    ]


def measured_bias(model: ff.Autoencoder, codes: Tensor, whole: float, size: int) -> tuple[float, float]:
    """What batches of this size cost beyond the whole set, on average, and its standard error.

    The part linear in the batch's mean activations is 0 on average and by far the noisiest: it is taken out.
    """
    random = torch.Generator().manual_seed(size)
    r = codes.sigmoid().mean(0)
    slope = (1 - RHO) / (1 - r) - RHO / r
    values = []
    for _ in range(max(400, DRAWS // size)):
        batch = codes[torch.randint(len(codes), (size,), generator=random)]
        values.append(penalty(model, batch) - whole - float(slope @ (batch.sigmoid().mean(0) - r)))
    sample = torch.tensor(values, dtype=torch.float64)
    return float(sample.mean()), float(sample.std()) / len(sample) ** 0.5


def penalty(model: ff.Autoencoder, pre_acts: Tensor) -> float:
    """``KLSparsity`` itself on these pre-activations."""
    empty = pre_acts[:0]
    out = ff.ForwardOutput(empty, empty, pre_acts, empty, empty, empty)
    return float(ff.KLSparsity(weight=WEIGHT, rho=RHO)(model, out))


def formula(activations: Tensor, size: int) -> float:
    r, variance = activations.mean(0), activations.var(0, correction=0)
    return float(((RHO / r**2 + (1 - RHO) / (1 - r) ** 2) * variance).sum()) / (2 * size)


if __name__ == "__main__":
    main()
