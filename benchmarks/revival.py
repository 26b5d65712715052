"""Dead latents: how many there are at 32 times the input width with default settings, with AuxK and without.

    python benchmarks/revival.py [--d 64] [--rows 400000] [--steps N] [--seeds 1] [--kinds ...] [--activations ...]

Three kinds of rows: features that fire by a power law; rows that lie near a subspace of an eighth of the columns, as
what attention writes does; and both. Dead: fired on none of 100,000 fresh rows.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
import torch

import fewfire as ff

FRESH = 100_000


def low_rank(d: int, n: int, seed: int) -> np.ndarray[Any, Any]:
    """Normal rows whose spectrum falls steeply: nearly all variance in an eighth of the directions."""
    random = np.random.default_rng(seed)
    scales = np.where(np.arange(d) < d // 8, 1.0, 0.02) / np.sqrt(1 + np.arange(d) % (d // 8 or 1))
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0]
    return (random.normal(size=(n, d)) * scales @ basis).astype(np.float32)


def power_law(d: int, n: int) -> Any:
    return ff.SyntheticWorld(8 * d, d, probability=(0.3, 2e-4), exponent=1.0, mean=(4.0, 4.0), n_rows=n)


def data(kind: str, d: int, n: int) -> tuple[Any, Any]:
    """(rows to train on, fresh ones)."""
    if kind == "power law":
        world = power_law(d, n)
        return world, world.fresh(FRESH)
    if kind == "low rank":
        return low_rank(d, n, 1), low_rank(d, FRESH, 2)
    narrow = power_law(d // 8, n)
    lift = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0][: d // 8].astype(np.float32)
    parts = []
    for source, seed in ((narrow, 1), (narrow.fresh(FRESH), 2)):
        rows = np.concatenate([b.x.numpy() for b in source.batches(8192, shuffle=False)]) @ lift
        parts.append(rows + 0.02 * np.random.default_rng(seed).normal(size=rows.shape).astype(np.float32))
    return parts[0], parts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", default=["power law", "low rank", "low-rank power law"])
    parser.add_argument("--activations", nargs="+", default=["topk", "batchtopk", "jumprelu", "gated"])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ff.SparsityWarning)
    torch.set_num_threads(1)
    n_latents = 32 * arguments.d
    print(f"{n_latents} latents for {arguments.d} columns, k {arguments.k}; default settings")
    print(f"{'rows':20}{'activation':12}{'revival':9}{'dead':>8}{'FVU':>9}{'L0':>8}{'s':>6}")
    for kind in arguments.kinds:
        rows, fresh = data(kind, arguments.d, arguments.rows)
        for activation in arguments.activations:
            has_k = activation.endswith("topk")
            for revival in (True, False):
                for seed in range(arguments.seeds):
                    started = time.perf_counter()
                    spec = {"name": activation, **({"k": arguments.k} if has_k else {})}
                    model = ff.Autoencoder(arguments.d, n_latents, spec, preprocess="standardize", seed=seed)
                    terms = [ff.MSE(), *model.activation.default_terms()]
                    if not revival:
                        terms = [term for term in terms if not isinstance(term, ff.AuxK)]
                    settings = {} if has_k else {"target_l0": arguments.k}
                    config = ff.TrainConfig(steps=arguments.steps, threads=1, checkpoint_every=0, seed=seed, **settings)
                    ff.Trainer(model, rows, terms, config, progress=False).fit()
                    found = ff.evaluate(model, fresh)
                    print(
                        f"{kind:20}{activation:12}{'AuxK' if revival else 'none':9}{found['dead_fraction']:8.2%}"
                        f"{found['fvu']:9.4f}{found['l0']:8.1f}{time.perf_counter() - started:6.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
