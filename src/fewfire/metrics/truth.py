"""Against known features: which latent detects which, and how well (SynthSAEBench, arXiv 2602.14687)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fewfire.metrics.reconstruction import l2_ratio
from fewfire.metrics.sparsity import by_latent

__all__ = ["Detected", "Detection", "detection", "shrinkage"]

ENTRIES_AT_ONCE = 1 << 26
"""of (rows, latents): 64 MiB of bool"""


class Detected(NamedTuple):
    """Means over latents. A latent that never fires has precision, recall and F1 of 0, and counts."""

    precision: float
    """of the rows on which a latent fires, the share on which its feature does"""
    recall: float
    """of the rows on which its feature fires, the share on which the latent does"""
    f1: float
    """the harmonic mean of the two, latent by latent"""


class Detection:
    """Running counts of each latent as a detector of its best-matching true feature. Rows are not kept.

    Parameters
    ----------
    matches
        (L,) the number of the true feature of each latent: ``best_match(learned, true).b``.
    """

    def __init__(self, matches: Tensor) -> None:
        self.matches = matches
        self.both, self.fired, self.true = (torch.zeros(len(matches), dtype=torch.int64) for _ in range(3))
        """(L,) rows on which the latent and its feature fired, the latent did, its feature did"""

    def update(self, latents_active: Tensor, truth_active: Tensor) -> None:
        """Take in (B, L) and (B, features) bool of more rows.

        Raises
        ------
        TypeError, ValueError
            They are not bool, or their sizes do not fit.
        """
        latents_active = by_latent(latents_active)
        self._check(latents_active, truth_active)
        matches = self.matches.to(truth_active.device)
        self.true += truth_active.sum(0)[matches].cpu()
        rows = max(1, ENTRIES_AT_ONCE // len(matches))
        for found, truth in zip(torch.split(latents_active, rows), torch.split(truth_active, rows), strict=True):
            self.fired += found.sum(0).cpu()
            self.both += (found & truth[:, matches].to(found.device)).sum(0).cpu()

    def per_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """(L,) float64 precision, recall and F1, 0 where there is nothing to divide by."""
        both, fired, true = (counts.double() for counts in (self.both, self.fired, self.true))
        return both / fired.clamp(min=1), both / true.clamp(min=1), 2 * both / (fired + true).clamp(min=1)

    def result(self) -> Detected:
        return Detected(*(values.mean().item() for values in self.per_latent()))

    def _check(self, latents_active: Tensor, truth_active: Tensor) -> None:
        if latents_active.dtype != torch.bool or truth_active.dtype != torch.bool:
            raise TypeError(
                f"expected which latents and which features fire, as bool; got {latents_active.dtype} and "
                f"{truth_active.dtype}"
            )
        fits = truth_active.ndim == 2 and tuple(latents_active.shape) == (len(truth_active), len(self.matches))
        if not fits:
            raise ValueError(
                f"expected the same rows of {len(self.matches)} latents and of true features; got "
                f"{tuple(latents_active.shape)} and {tuple(truth_active.shape)}"
            )


def detection(latents_active: Tensor, truth_active: Tensor, matches: Tensor) -> Detected:
    """Precision, recall and F1 of each latent as a detector of its best-matching true feature, averaged over latents.

    ``latents_active`` (B, L) and ``truth_active`` (B, features) bool; ``matches`` (L,): as ``best_match(learned,
    true).b`` gives. ``Detection`` takes rows in parts.

    Raises
    ------
    TypeError, ValueError
        They are not bool, or their sizes do not fit.
    """
    counts = Detection(matches)
    counts.update(latents_active, truth_active)
    return counts.result()


def shrinkage(x: Tensor, recon: Tensor) -> float:
    """Mean ``||recon|| / ||x||`` over rows: what SynthSAEBench calls ``l2_ratio``. 1 is none."""
    return l2_ratio(x, recon)
