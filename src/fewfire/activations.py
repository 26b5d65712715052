"""From pre-activations to sparse latents. One class a mechanism.

To add one, write one class here; it owns whatever thresholds or magnitudes it needs beyond the encoder's bias::

    class AbsTopK(Activation):
        def __init__(self, k=8):
            super().__init__()
            self.k = k

        def forward(self, pre_acts, state=None):
            i = pre_acts.abs().topk(self.k, dim=1).indices
            return torch.zeros_like(pre_acts).scatter(1, i, pre_acts.gather(1, i))

Then ``activation={"name": "abstopk", "k": 4}``, the command line, the model folder, checkpoints and the parametrised
tests know it. What is learned is a Parameter; what is measured (a running threshold) is a buffer, so that saving
the model saves it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewfire.contracts import ForwardOutput, Named, TrainState
from fewfire.terms import L1, AuxK, KLSparsity, Term

__all__ = ["Activation", "ReLU", "Sigmoid", "TopK"]


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

    def build(self, n_latents: int) -> None:
        """Make parameters and buffers, fill in defaults that depend on the width. Autoencoder calls it once."""

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        """``state`` is None outside training: a row's latents then depend on that row alone."""
        raise NotImplementedError

    def encode(self, x_in: Tensor, model: Any, state: TrainState | None = None) -> tuple[Tensor, Tensor]:
        """(B, *input shape) -> (pre_acts, latents). A mechanism of several passes (matching pursuit) overrides it."""
        pre_acts = model.encoder(x_in)
        return pre_acts, self(pre_acts, state)

    def active(self, latents: Tensor) -> Tensor:
        """Which latents fire: (B, L) -> (B, L) bool."""
        return latents != 0

    def commit(self, out: ForwardOutput, state: TrainState) -> None:
        """Update buffers, once the step that produced ``out`` is known to be sound."""

    def default_terms(self) -> list[Term]:
        """The sparsity terms that usually go with this mechanism."""
        return []


class Sigmoid(Activation):
    """Logistic units ``a = 1 / (1 + exp(-z))``: the course's first autoencoder. Made sparse by ``KLSparsity``."""

    gives = frozenset({"logits"})
    exact_zeros = False

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        return torch.sigmoid(pre_acts)

    def active(self, latents: Tensor) -> Tensor:
        """A logistic unit is never 0; it counts as firing above one half."""
        return latents > 0.5

    def logits(self, pre_acts: Tensor) -> Tensor:
        return pre_acts

    def default_terms(self) -> list[Term]:
        return [KLSparsity()]


class ReLU(Activation):
    """``a = max(z, 0)``. Made sparse by ``L1``: the course's second autoencoder."""

    gives = frozenset({"scores"})
    unit_norm = True

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        return pre_acts.relu()

    def default_terms(self) -> list[Term]:
        return [L1()]


class TopK(Activation):
    """The k largest positive pre-activations of each row, the others 0.

    ``k``: None for a sixteenth of the latents, at least 1. Makhzani & Frey 2013; Gao et al. 2024.
    """

    gives = frozenset({"scores"})
    unit_norm = True

    def __init__(self, k: int | None = None) -> None:
        super().__init__()
        if k is not None and (k < 1 or k != int(k)):
            raise ValueError(f"k is the number of latents that fire per row: expected a whole number from 1, got {k}")
        self.k = k

    def build(self, n_latents: int) -> None:
        if self.k is None:
            self.k = max(1, n_latents // 16)
        if self.k > n_latents:
            raise ValueError(f"k is at most the number of latents: expected at most {n_latents}, got {self.k}")

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        top = pre_acts.topk(self._k, dim=1, sorted=False)
        return torch.zeros_like(pre_acts).scatter(1, top.indices, top.values.relu())

    @property
    def _k(self) -> int:
        if self.k is None:
            raise ValueError("TopK(k=None) learns its k from an Autoencoder; give k to use it alone")
        return round(self.k)

    def default_terms(self) -> list[Term]:
        return [AuxK()]
