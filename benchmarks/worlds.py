"""How much of the truth each mechanism finds: worlds of known features, the same budget for all.

    python benchmarks/worlds.py [--world hierarchical|independent|second] [--seeds 3] [--rows 2097152] [--only NAME ...]

Prints, for every recipe, mean and sample standard deviation over seeds of MCC, F1, precision, recall, explained
variance, uniqueness, L0 and dead latents on 65,536 fresh rows. Seeds change first weights, not the world. Every
recipe: Adam 0.002 (0.9, 0.999), warm-up over 2 %, linear decay over the last 20 %, batches of 1,024, unit-norm decoder,
AuxK 1/32 after 150 silent batches; thresholds calibrated to the wanted L0 on 65,536 training rows at the end.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import torch

import fewfire as ff
from fewfire import metrics

BATCH = 1024
EVALUATED = 65_536
MATRYOSHKA = [ff.MatryoshkaMSE(), ff.AuxK()]


def annealed(k: float, factor: float) -> dict[str, Any]:
    """k from ``factor`` times its value, falling to it by 0.8 of training."""
    return {"schedules": {"activation.k": [(0.0, factor * k), (0.8, k)]}}


def recipes(k: float) -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    """name -> activation, terms (None: the usual ones), settings of the training."""
    whole = max(1, round(k))
    target = {"target_l0": k}
    batch = {"name": "batchtopk", "k": k}
    return {
        "KL": ("sigmoid", None, target),
        "L1": ("relu", None, target),
        "Gated": ("gated", None, target),
        "JumpReLU": ("jumprelu", None, target),
        "TopK": ({"name": "topk", "k": whole}, None, {}),
        "BatchTopK": (batch, None, {}),
        "BatchTopK, k from 2k": (batch, None, annealed(k, 2)),
        "matching pursuit": ({"name": "matching_pursuit", "k": whole}, None, {}),
        "Matryoshka BatchTopK": (batch, MATRYOSHKA, {}),
        "Matryoshka BatchTopK, k from 2k": (batch, MATRYOSHKA, annealed(k, 2)),
        "Matryoshka BatchTopK, k from 4k": (batch, MATRYOSHKA, annealed(k, 4)),
        "the same, orthogonal": (batch, [*MATRYOSHKA, ff.Orthogonality(0.3)], annealed(k, 4)),
        "Matryoshka JumpReLU": ("jumprelu", [ff.MatryoshkaMSE(), ff.L0Penalty(), ff.AuxK()], target),
    }


WORLDS: dict[str, tuple[Any, int, float]] = {
    "hierarchical": (lambda n: ff.SyntheticWorld.hierarchical(n_rows=n), 256, 5.32),
    "second": (lambda n: ff.SyntheticWorld.hierarchical(roots=12, branching=3, seed=43, n_rows=n), 256, 7.13),
    "independent": (lambda n: ff.SyntheticWorld.independent(n_rows=n), 256, 5.12),
}
"""world of n rows, width of the dictionary, wanted L0"""


def train(world: Any, width: int, k: float, recipe: tuple[Any, Any, dict[str, Any]], seed: int) -> ff.Autoencoder:
    activation, terms, settings = recipe
    model = ff.Autoencoder(world.row_shape, width, activation, preprocess="center", seed=seed)
    config = ff.TrainConfig(
        epochs=1,
        batch_size=BATCH,
        learning_rate=2e-3,
        lr_warmup=0.02,
        lr_decay=0.2,
        dead_after=150 * BATCH,
        checkpoint_every=0,
        seed=seed,
        threads=1,
        **settings,
    )
    ff.Trainer(model, world, terms, config, progress=False).fit()
    if model.activation.name in ("batchtopk", "jumprelu", "gated"):
        ff.calibrate(model, world, k)
    return model


def measure(model: ff.Autoencoder, world: Any) -> dict[str, float]:
    learned = model.decoder.W_dec.detach()
    fresh = world.fresh(EVALUATED)
    counts = metrics.Detection(metrics.best_match(learned, world.features).b)
    for batch in fresh.batches(8192, shuffle=False):
        active = model.activation.active(model.encode(batch.x_in))
        counts.update(active, fresh.truth(batch.rows) != 0)
    found, summary = counts.result(), ff.evaluate(model, fresh)
    return {
        "MCC": metrics.mcc(learned, world.features),
        "F1": found.f1,
        "P": found.precision,
        "R": found.recall,
        "EV": summary["explained_variance"],
        "uniq": metrics.uniqueness(learned, world.features),
        "L0": summary["l0"],
        "dead": summary["dead_fraction"] * len(learned),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=WORLDS, default="hierarchical")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2_097_152)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    make, width, k = WORLDS[arguments.world]
    world = make(arguments.rows)
    print(f"{world}: true L0 {world.l0:.2f}, {width} latents, wanted L0 {k}, {arguments.seeds} seeds")
    print(
        f"{'recipe':34}" + "".join(f"{name:>14}" for name in ("MCC", "F1", "P", "R", "EV", "uniq", "L0", "dead", "s"))
    )
    warnings.simplefilter("ignore", ff.SparsityWarning)
    torch.set_num_threads(1)
    for name, recipe in recipes(k).items():
        if arguments.only and name not in arguments.only:
            continue
        rows = []
        for seed in range(arguments.seeds):
            started = time.perf_counter()
            model = train(world, width, k, recipe, seed)
            seconds = time.perf_counter() - started
            rows.append({**measure(model, world), "s": seconds})
        print(f"{name:34}" + "".join(f"{spread([row[key] for row in rows]):>14}" for key in rows[0]), flush=True)


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    mean = statistics.fmean(values)
    digits = 3 if abs(mean) < 2 else 1
    deviation = f"±{statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{deviation}"


if __name__ == "__main__":
    main()
