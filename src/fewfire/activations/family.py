"""What every activation answers, and what it may be asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from fewfire.contracts import ForwardOutput, Named, TrainState
from fewfire.kernels import Kernels
from fewfire.terms import Term

__all__ = ["Activation", "for_latents", "threshold_for"]


class Activation(Named, nn.Module):
    """``latents = activation(pre_acts)``: (B, P) -> (B, L), with P = n_pre * L."""

    gives: ClassVar[frozenset[str]] = frozenset()
    """what terms may ask of it (the table in ``Term``)"""
    n_pre: ClassVar[int] = 1
    """pre-activations per latent"""
    smooth: ClassVar[bool] = True
    """False for a straight-through gradient: tests then compare with a formula, not with finite differences"""
    exact_zeros: ClassVar[bool] = True
    """False where no latent is ever 0, so that to count those that fire, or never do, says little"""
    unit_norm: ClassVar[bool] = False
    """whether decoder rows are kept at unit norm unless the user says otherwise"""
    tied: ClassVar[bool] = False
    """whether the decoder reads with the encoder's weights unless the user says otherwise"""
    needs: ClassVar[frozenset[str]] = frozenset()
    """what it asks of the network (the table in ``Term``)"""
    dead_below_zero: ClassVar[bool] = False
    """True where a latent that never fires has no pre-activation above 0, as AuxK must know"""
    counts: ClassVar[str] = "l0"
    """what ``target_l0`` counts: "l0", latents that fire per row; or "sum", of the activations of a row"""

    def build(self, n_latents: int) -> None:
        """Make parameters and buffers, fill in defaults that depend on the width. Autoencoder calls it once."""

    def start(self, pre_acts: Tensor, n_active: float | None = None) -> None:
        """Before the first step, set what depends on the data: pre-activations (B, P) of some rows.

        ``n_active``: how many latents shall fire per row; None: nobody said.
        """

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        """``state`` is None outside training: a row's latents then depend on that row alone."""
        raise NotImplementedError

    def encode(self, x_in: Tensor, model: Any, state: TrainState | None = None) -> tuple[Tensor, Tensor]:
        """(B, *input shape) -> (pre_acts, latents). A mechanism of several passes (matching pursuit) overrides it."""
        pre_acts = model.encoder(x_in).to(model.dtype)  # products may come in bfloat16; sums and thresholds must not
        return pre_acts, self(pre_acts, state)

    def active(self, latents: Tensor) -> Tensor:
        """Which latents fire: (B, L) -> (B, L) bool."""
        return latents != 0

    def penalised(self, out: ForwardOutput) -> Tensor:
        """What a penalty on the latents' size acts on: (B, L)."""
        return out.latents

    def margins(self, pre_acts: Tensor) -> Tensor | None:
        """By how much each latent exceeds what it must exceed to fire: (B, P) -> (B, L). None: it has no threshold."""
        return None

    def reach(self, pre_acts: Tensor) -> float:
        """How far thresholds move for the number that fires to change by a factor of e; 0: they would not change it.

        Margins fall off about exponentially above a threshold, with their mean as the scale.
        """
        margins = self.margins(pre_acts)
        return 0.0 if margins is None or not (margins > 0).any() else float(margins[margins > 0].mean())

    def raise_threshold(self, amount: Tensor) -> bool:
        """Move thresholds by a number, or by one each (L,); False: it has none, and the encoder's biases shall fall."""
        return False

    def set_k(self, n_active: float) -> bool:
        """Let so many latents fire per row; False: it does not fire a fixed number."""
        return False

    def commit(self, out: ForwardOutput, state: TrainState) -> None:
        """Update buffers, once the step that produced ``out`` is known to be sound."""

    def settle(self, pre_acts: Tensor) -> None:
        """After the last step, set what training knew only in passing: from pre-activations (B, P) of some rows."""

    def find(self, kernels: Kernels, x_in: Tensor, n_latents: int) -> None:
        """Leave the codes of rows (B, D), as at inference, in kernels that hold the encoder's weights.

        Asked only of a class that defines it itself: one that inherits it may fire otherwise.
        """
        raise NotImplementedError

    def derivative(self, pre_acts: Tensor) -> Tensor | None:
        """d latents / d pre_acts where each latent depends on its own pre-activation alone: (B, L) -> (B, L).

        None: it does not, or nobody wrote it down; ``Contractive`` then differentiates.
        """
        return None

    def default_terms(self) -> list[Term]:
        """The terms that usually go with this mechanism: what makes it sparse, and what that needs."""
        return []

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Thresholds and magnitudes never go below float32: in bfloat16 small steps of them round to nothing."""

        def keep_precision(value: Tensor) -> Tensor:
            moved = fn(value)
            narrowed = moved.is_floating_point() and moved.dtype.itemsize < 4 <= value.dtype.itemsize
            return value.to(moved.device) if narrowed else moved

        super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]
        return self


def threshold_for(scores: Tensor, n_active: float) -> Tensor:
    """The number that ``n_active`` of a row's scores (B, ...) exceed on average.

    Raises
    ------
    ValueError
        A row does not have so many, or so many never fire (a score of minus infinity).
    """
    flat = scores.flatten()
    rank = len(flat) - round(n_active * len(scores))
    if not 0 < rank < len(flat):
        raise ValueError(
            f"expected a mean number of latents between 0 and {len(flat) // len(scores)}, got {n_active:g}"
        )
    lowest = flat.kthvalue(rank).values
    if not lowest.isfinite():
        most = scores.isfinite().sum() / len(scores)
        raise ValueError(f"only {most:.1f} latents per row can fire, {n_active:g} were asked for; train more of them")
    return lowest


def for_latents(values: Tensor, pre_acts: Tensor) -> Tensor:
    """(L,) as pre-activations (B, L, ...) take them: of a feature map, one for all places."""
    return values.to(pre_acts.dtype).view(-1, *[1] * (pre_acts.ndim - 2))
