"""What training came to, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, cast

from fewfire.activations import Activation, Sigmoid
from fewfire.trainer.steering import Steering

if TYPE_CHECKING:
    from fewfire.trainer.loop import Trainer

__all__ = ["describe", "objections"]

MISSED = 1.25
"""factor by which target_l0 may be missed without a word"""


def describe(trainer: Trainer) -> str:
    """One sentence."""
    s, engine = trainer.summary, trainer.engine_reason.partition(" (")[0]
    skipped = f"; {trainer.skipped} steps were not finite and were skipped" if trainer.skipped else ""
    per_column = 1 - s["fvu_columns"]  # one column of large scale can hold nearly all of the variance
    apart = abs(per_column - s["explained_variance"]) > 0.1
    each = f" ({per_column:.1%} of an average column's)" if apart else ""
    return (
        f"{trainer.state.step:,} steps in {trainer.seconds:.1f} s, engine {engine}: "
        f"{s['explained_variance']:.1%} of variance explained{each}, "
        f"mean activation {s['mean_activation']:.3g}, {_firing(trainer.model.activation, s)}{skipped}"
    )


def _firing(activation: Activation, s: Mapping[str, float]) -> str:
    """How many latents fire, in words that are true of what counts as firing."""
    if not activation.exact_zeros and type(activation).active is Activation.active:
        return f"{s['n_latents']:,} latents, none of them ever 0"
    fire, never = ("exceed one half", "do") if isinstance(activation, Sigmoid) else ("fire", "fire")
    dead = round(s["dead_fraction"] * s["n_latents"])
    return f"{s['l0']:.1f} of {s['n_latents']:,} latents {fire} per row, {dead} never {never}"


def objections(trainer: Trainer) -> Iterator[str]:
    """A sentence for every term that did not do its work, and for a dictionary that came to nothing."""
    model = trainer.model
    found = {
        **trainer.summary,
        "n_positions": math.prod(model.latent_shape),
        "logistic": float("mean_logvar" not in model.gives),
    }
    for term in trainer.terms.values():
        steered = trainer.steering is not None and term is trainer.steering.term  # its setting is a means, no aim
        verdict = None if steered else term.verdict(found)
        if verdict is not None:
            yield verdict
    if trainer.steering is not None:
        yield from _missed(trainer, found)
    dead = found["dead_fraction"]
    if trainer.model.activation.exact_zeros and dead > 0.5:
        yield (
            f"{dead:.0%} of the latents never fire; lower the learning rate (now {trainer.config.learning_rate:g}), "
            "train longer, or ask for fewer latents"
        )


def _missed(trainer: Trainer, found: Mapping[str, float]) -> Iterator[str]:
    """A sentence where another number of latents fires than was asked for."""
    target, n = cast(Steering, trainer.steering).target, found["n_positions"]
    count = found["mean_activation"] * n if trainer.model.activation.counts == "sum" else found["l0"]
    if not target / MISSED <= count <= target * MISSED:
        yield (
            f"target_l0={target:g} was not reached: it is {count:.3g} of {n}; train longer (now "
            f"{trainer.total_steps:,} steps), or ask for another number"
        )
