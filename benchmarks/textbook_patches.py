"""The textbook's sparse autoencoder: 25 logistic units learn the edges of photographs.

    python benchmarks/textbook_patches.py --data FOLDER_OF_PHOTOGRAPHS [--picture filters.png]

CS294A / UFLDL, Ng 2011: 10,000 patches of 8 x 8 from 1/f-whitened photographs (the folder, or its subfolder
train/); each patch's mean removed, values clipped at 3 sigma and scaled to [0.1, 0.9]; 64-25-64, logistic both ways;
squared error with weight 1/2, KL with rho 0.01 and weight 3, weight decay 1e-4; 400 iterations of L-BFGS in float32.
One seed draws the patches and the first weights; no seed is chosen or left out.

"Objective" is the sum of the weighted terms at the trained weights; a model that gives the mean patch and nothing
else has about 0.463. "Oriented" counts encoder filters as ``gabor.py`` describes, "at 0.8" the same with R^2 of at
least 0.8: noise as smooth as an edge reaches 0.5 now and then, 0.8 never. The controls say what the count is worth.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

import fewfire as ff
from fewfire.sources import photographs
from gabor import controls, fit_gabor
from measure import CpuSeconds, print_table, print_title

SIDE, UNITS, PATCHES, STEPS = 8, 25, 10_000, 400
GOAL_OBJECTIVE, GOAL_CPU_SECONDS, GOAL_ORIENTED = 0.42, 15.0, 23

TERMS = [ff.MSE(weight=0.5), ff.KLSparsity(weight=3.0, rho=0.01), ff.WeightDecay(weight=1e-4)]

Array = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs, or of train/ and test/")
    parser.add_argument("--picture", type=Path, help="write the filters of the first seed here (.png)")
    parser.add_argument("--seeds", type=int, default=5, help="train with seeds 0, 1, ... so many")
    args = parser.parse_args()
    folder = args.data / "train" if (args.data / "train").is_dir() else args.data
    images = photographs(folder)
    print_title(f"Sparse autoencoder 64-25-64 on {PATCHES:,} patches of {len(images)} photographs")
    rows, filters = [], []
    for seed in range(args.seeds):
        row, weights = train(images, seed)
        rows.append(row)
        filters.append(weights)
        if seed == 0 and args.picture:
            draw(weights, args.picture)
    header = ["", "objective", "error / 2", "mean act.", "CPU s", "oriented", "at 0.8", ""]
    goal = ["goal", "<= 0.42", "", "0.01", "<= 15", ">= 23 of 25", "", ""]
    print_table(header, [*rows, goal, *(plain_script(images, 0, dtype) for dtype in ("float32", "float64"))])
    print()
    print_table(["filters that learned nothing", "oriented", "at 0.8"], control_rows(np.concatenate(filters[:2])))


def train(images: list[Array], seed: int) -> tuple[list[str], Array]:
    """One line of the table, and the encoder's filters (UNITS, SIDE, SIDE)."""
    source = ff.patches(SIDE, PATCHES, seed=seed, images=images)
    model = untrained(seed)
    config = ff.TrainConfig(optimizer="lbfgs", steps=STEPS, seed=seed)
    with CpuSeconds() as cpu:
        ff.Trainer(model, source, terms=TERMS, config=config, progress=False).fit()
    return line(f"seed {seed}", model, source, cpu.used), filters_of(model)


def plain_script(images: list[Array], seed: int, dtype: str) -> list[str]:
    """What a person would otherwise type: torch's own L-BFGS and the formulas as they stand in the course.

    The same rows, first weights and number of iterations. In float32 it does not leave the plateau.
    """
    source = ff.patches(SIDE, PATCHES, seed=seed, images=images)
    model = untrained(seed).to(getattr(torch, dtype))
    model.preprocess.fit(lambda: (batch.x for batch in source.batches(PATCHES, shuffle=False)))
    with CpuSeconds() as cpu:
        x = model.to_model_space(next(source.batches(PATCHES, shuffle=False)).x).to(model.dtype)
        w1, b1 = model.encoder.W_enc, model.encoder.b_enc
        w2, b2 = model.decoder.W_dec, model.decoder.b_dec
        optimizer = torch.optim.LBFGS(
            [w1, b1, w2, b2], max_iter=STEPS, max_eval=10 * STEPS, tolerance_grad=0, tolerance_change=0,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            a = torch.sigmoid(x @ w1.T + b1)
            x_hat = torch.sigmoid(a @ w2 + b2)
            rho, rho_hat = 0.01, a.mean(0)
            kl = (rho * torch.log(rho / rho_hat) + (1 - rho) * torch.log((1 - rho) / (1 - rho_hat))).sum()
            decay = (w1.square().sum() + w2.square().sum()) / 2
            loss = 0.5 * (x_hat - x).square().sum() / len(x) + 3 * kl + 1e-4 * decay
            loss.backward()
            return loss

        optimizer.step(closure)
    return line(f"plain torch {dtype}, seed {seed}", model.float(), source, cpu.used)


def line(name: str, model: ff.Autoencoder, source: ff.ArraySource, cpu_seconds: float) -> list[str]:
    values, activation = objective(model, source, TERMS)
    total, (oriented, strictly) = sum(values), counts(filters_of(model))
    met = total <= GOAL_OBJECTIVE and cpu_seconds <= GOAL_CPU_SECONDS and oriented >= GOAL_ORIENTED
    return [
        name,
        f"{total:.4f}",
        f"{values[0]:.4f}",
        f"{activation:.4f}",
        f"{cpu_seconds:.1f}",
        f"{oriented} of {UNITS}",
        f"{strictly}",
        "ok" if met else "MISSED",
    ]


def untrained(seed: int) -> ff.Autoencoder:
    return ff.Autoencoder(
        SIDE * SIDE,
        UNITS,
        "sigmoid",
        network={"name": "linear", "output": "sigmoid"},
        preprocess=["row_mean", "clip_scale"],
        seed=seed,
    )


@torch.no_grad()
def objective(model: ff.Autoencoder, source: ff.ArraySource, terms: list[Any]) -> tuple[list[float], float]:
    """The weighted terms at the model's present weights, and the mean activation, over the whole source."""
    x = next(source.batches(PATCHES, shuffle=False)).x
    out = model(model.to_model_space(x))
    return [float(term.weight * term(model, out)) for term in terms], float(out.latents.mean())


def filters_of(model: ff.Autoencoder) -> Array:
    return model.encoder.W_enc.detach().double().numpy().reshape(-1, SIDE, SIDE)


# ------------------------------------------------------------------------------------------------ oriented


def counts(filters: Array) -> tuple[int, int]:
    """Filters that count as oriented; those of them whose Gabor has an R^2 of at least 0.8."""
    fits = [fit for fit in map(fit_gabor, filters) if fit.oriented]
    return len(fits), sum(fit.r2 >= 0.8 for fit in fits)


def control_rows(filters: Array) -> list[list[str]]:
    """The same count where nothing was learned, on as many filters as are given."""
    groups = controls(filters)
    groups["first weights of untrained models"] = np.concatenate(
        [filters_of(untrained(seed)) for seed in range(100, 100 + len(filters) // UNITS)]
    )
    rows = []
    for name, group in groups.items():
        oriented, strictly = counts(group)
        rows.append([name, f"{oriented} of {len(group)}", f"{strictly}"])
    return rows


# ------------------------------------------------------------------------------------------------- picture


def draw(filters: Array, path: Path, zoom: int = 12, gap: int = 4) -> None:
    """The filters in a square, each on its own grey scale with 0 in the middle, between thin white lines."""
    columns = int(np.ceil(np.sqrt(len(filters))))
    cell = SIDE * zoom + gap
    canvas = np.full((columns * cell + gap, columns * cell + gap), 255, dtype=np.uint8)
    for i, one in enumerate(filters):
        grey = np.rint(127.5 + 127.5 * one / np.abs(one).max()).astype(np.uint8)
        top, left = gap + i // columns * cell, gap + i % columns * cell
        canvas[top : top + SIDE * zoom, left : left + SIDE * zoom] = np.kron(grey, np.ones((zoom, zoom), np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).save(path, optimize=True)


if __name__ == "__main__":
    main()
