"""Which latents fire, and how often."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "DENSE",
    "Histogram",
    "by_latent",
    "dead_fraction",
    "dense_fraction",
    "density",
    "density_histogram",
    "l0",
    "mean_activation",
]

DENSE = 0.1
"""a latent that fires on a larger share of the rows is dense (as in Sun et al. 2025, on dense latents)"""


def l0(active: Tensor) -> float:
    """Mean number of latents that fire per row. ``active``: (B, L, ...) bool."""
    _are_bool(active)
    return active.flatten(1).sum(1).double().mean().item()


def density(active: Tensor) -> Tensor:
    """(L,) float64: the fraction of rows on which each latent fires."""
    _are_bool(active)
    return by_latent(active).double().mean(0)


def by_latent(active: Tensor) -> Tensor:
    """(B, L, ...) bool -> (B, L) bool: a feature map fires when any of its positions does."""
    return active.flatten(2).any(2) if active.ndim > 2 else active


def dead_fraction(active: Tensor) -> float:
    """The fraction of latents that fire on no row."""
    return (density(active) == 0).double().mean().item()


def dense_fraction(active: Tensor, threshold: float = DENSE) -> float:
    """The fraction of latents that fire on more than this share of the rows."""
    return (density(active) > threshold).double().mean().item()


class Histogram(NamedTuple):
    """How many latents fire how often."""

    counts: list[int]
    edges: list[float]
    """log10 of a share of rows; one more than ``counts``, evenly spaced, the last 0: every row"""
    n_dead: int
    """latents that fire on no row, which have no logarithm and are in none of the bins"""


def density_histogram(rates: Tensor, bins_per_decade: int = 6) -> Histogram:
    """(L,) shares of rows on which each latent fires -> a histogram over their log10. At least two decades are shown.

    Raises
    ------
    ValueError
        A rate is not between 0 and 1, or there is none.
    """
    rates = rates.double().flatten().cpu()
    if len(rates) == 0 or not bool(((rates >= 0) & (rates <= 1)).all()):
        raise ValueError(f"expected rates between 0 and 1, one per feature; got {rates.tolist()[:6]}")
    alive = rates[rates > 0].log10()
    decades = max(2, math.ceil(-float(alive.min()) + 1e-9)) if len(alive) else 2
    n_bins = decades * bins_per_decade
    places = ((alive + decades) * bins_per_decade).long().clamp(0, n_bins - 1)
    edges = [-decades + i / bins_per_decade for i in range(n_bins + 1)]
    return Histogram(torch.bincount(places, minlength=n_bins).tolist(), edges, int((rates == 0).sum()))


def mean_activation(latents: Tensor) -> float:
    """Mean over rows and latents: the course's average rho_hat."""
    return latents.double().mean().item()


def _are_bool(active: Tensor) -> None:
    if active.dtype != torch.bool:
        raise TypeError(f"expected which latents fire, as bool (Activation.active(latents)); got {active.dtype}")
