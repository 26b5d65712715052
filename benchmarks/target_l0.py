"""Ask for L0 and get it: one run from default settings for every mechanism and target, in float32 and bfloat16.

    python benchmarks/target_l0.py [--rows 200000] [--steps N] [--latents 1024]

Rows come from a world of 512 features in 128 columns. Prints L0 on fresh rows, how far it is from what was asked for,
the variance explained, and where the penalty went. Then, without a target, L0 under rising weights of the penalty.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import torch

import fewfire as ff

TARGETS = (10.0, 40.0, 160.0)
PENALTIES = {"relu": ff.L1, "gated": ff.L1, "jumprelu": ff.L0Penalty}
WEIGHTS = {"relu": (0.1, 0.3, 1.0, 3.0), "gated": (0.1, 0.3, 1.0, 3.0), "jumprelu": (0.003, 0.03, 0.3, 3.0)}


def fit(world: Any, activation: str, n_latents: int, terms: Any = None, **settings: Any) -> tuple[ff.Trainer, Any]:
    model = ff.Autoencoder(world.row_shape, n_latents, activation, preprocess="standardize")
    config = ff.TrainConfig(threads=1, checkpoint_every=0, **settings)
    trainer = ff.Trainer(model, world, terms, config, progress=False)
    trainer.fit()
    return trainer, ff.evaluate(model, world.fresh(20_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--latents", type=int, default=1024)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ff.SparsityWarning)
    torch.set_num_threads(1)
    world = ff.SyntheticWorld(512, 128, probability=(0.3, 0.004), mean=(4.0, 4.0), n_rows=arguments.rows)
    print(f"{world}: true L0 {world.l0:.2f}; {arguments.latents} latents; default settings")
    print(f"{'activation':12}{'dtype':10}{'asked':>7}{'L0':>9}{'off':>8}{'EV':>8}{'dead':>7}{'penalty':>10}{'s':>6}")
    for activation in (*PENALTIES, "sigmoid"):
        for dtype in ("float32", "bfloat16"):
            for target in TARGETS:
                started = time.perf_counter()
                trainer, found = fit(
                    world, activation, arguments.latents, target_l0=target, dtype=dtype, steps=arguments.steps
                )
                # of logistic units, the sum of their mean activations counts
                fires = found["mean_activation"] * arguments.latents if activation == "sigmoid" else found["l0"]
                penalty = getattr(trainer.steering.term, trainer.steering.setting)
                seconds = time.perf_counter() - started
                print(
                    f"{activation:12}{dtype:10}{target:7.0f}{fires:9.2f}{fires / target - 1:8.1%}"
                    f"{found['explained_variance']:8.3f}{found['dead_fraction']:7.1%}{penalty:10.3g}{seconds:6.0f}",
                    flush=True,
                )
    print("\nwithout a target: L0 under rising weights of the penalty")
    for activation, penalty in PENALTIES.items():
        found = []
        for weight in WEIGHTS[activation]:
            usual = ff.Activation.from_config(activation).default_terms()
            others = [term for term in usual if not isinstance(term, penalty)]
            _, summary = fit(world, activation, arguments.latents, [ff.MSE(), penalty(weight), *others], steps=1500)
            found.append(f"{weight:g}: {summary['l0']:.1f}")
        print(f"{activation:12}" + ", ".join(found), flush=True)


if __name__ == "__main__":
    main()
