"""What training came to, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewfire.trainer.loop import Trainer

__all__ = ["describe", "objections"]


def describe(trainer: Trainer) -> str:
    """One sentence."""
    s = trainer.summary
    dead = round(s["dead_fraction"] * s["n_latents"])
    skipped = f"; {trainer.skipped} steps were not finite and were skipped" if trainer.skipped else ""
    fire, never = ("fire", "fire") if trainer.model.activation.exact_zeros else ("exceed one half", "do")
    per_column = 1 - s["fvu_columns"]  # one column of large scale can hold nearly all of the variance
    apart = abs(per_column - s["explained_variance"]) > 0.1
    each = f" ({per_column:.1%} of an average column's)" if apart else ""
    return (
        f"{trainer.state.step:,} steps in {trainer.seconds:.1f} s: "
        f"{s['explained_variance']:.1%} of variance explained{each}, "
        f"mean activation {s['mean_activation']:.3g}, {s['l0']:.1f} of {s['n_latents']:,} latents {fire} per row, "
        f"{dead} never {never}{skipped}"
    )


def objections(trainer: Trainer) -> Iterator[str]:
    """A sentence for every term that did not do its work, and for a dictionary that came to nothing."""
    found = {**trainer.summary, "n_positions": math.prod(trainer.model.latent_shape)}
    for term in trainer.terms.values():
        verdict = term.verdict(found)
        if verdict is not None:
            yield verdict
    dead = found["dead_fraction"]
    if trainer.model.activation.exact_zeros and dead > 0.5:
        yield (
            f"{dead:.0%} of the latents never fire; lower the learning rate (now {trainer.config.learning_rate:g}), "
            "train longer, or ask for fewer latents"
        )
