"""Latents found one after the other, each in what those before leave over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewfire.activations.family import Activation
from fewfire.contracts import TrainState

__all__ = ["MatchingPursuit"]


class MatchingPursuit(Activation, name="matching_pursuit"):
    """In each of ``k`` rounds the encoder reads what is left of the row, and its largest answer is taken off it.

    With tied weights at unit norm, as it is by default, this is matching pursuit (Mallat & Zhang 1993) unrolled:
    Costa et al. 2025, "From flat to hierarchical: extracting sparse representations with matching pursuit". A latent
    may win more than once, and its winnings add up; answers below 0 count as 0. Costs k times the encoder and the
    decoder.

    Parameters
    ----------
    k
        Rounds, and so the most latents that fire per row. None: a sixteenth of the latents, from 1 to 32.
    """

    gives = frozenset({"scores"})
    needs = frozenset({"residual"})
    unit_norm = True
    tied = True

    def __init__(self, k: int | None = None) -> None:
        super().__init__()
        if k is not None and (k < 1 or k != int(k)):
            raise ValueError(f"k is the number of rounds: expected a whole number from 1, got {k}")
        self.k = k

    def build(self, n_latents: int) -> None:
        if self.k is None:
            self.k = min(max(1, n_latents // 16), 32)

    def set_k(self, n_active: float) -> bool:
        self.k = max(1, round(n_active))
        return True

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        """One round: the largest positive pre-activation of each row, the others 0."""
        flat = pre_acts.flatten(1)
        top = flat.max(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, top.indices, top.values.relu()).view_as(pre_acts)

    def encode(self, x_in: Tensor, model: Any, state: TrainState | None = None) -> tuple[Tensor, Tensor]:
        first = pre_acts = model.encoder(x_in).to(model.dtype)
        latents = self(pre_acts, state)
        nothing = model.decoder(torch.zeros_like(latents[:1]))
        for _ in range(int(self.k or 1) - 1):
            left = x_in - (model.decoder(latents) - nothing).to(model.dtype)
            pre_acts = model.encoder(left).to(model.dtype)
            latents = latents + self(pre_acts, state)
        return first, latents
