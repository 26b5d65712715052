"""Winner-take-all autoencoders whose latents are rows: how far the nearest row of many small samples is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Generator, Tensor

from fewfire.anomaly.expect import expect
from fewfire.anomaly.part import Part, Reading, draw
from fewfire.rows import aligned

__all__ = ["Prototypes"]

SHARE = 0.75
"""of few rows, how many are prototypes of a member"""


@final
class Prototypes(Part, name="prototypes"):
    """``members`` autoencoders of one active latent: encode to the nearest of ``size`` rows, decode to that row.

    The score is the distance to it, averaged over members: a reconstruction error. Nothing is trained; the sparsest of
    autoencoders, with a training row for each decoder row, is nearest neighbours in a random sample, which such samples
    do better than all rows together when the data hold anomalies (Sugiyama & Borgwardt 2013, "Rapid distance-based
    outlier detection via sampling").
    """

    def __init__(self, view: Sequence[str] = ("range",), members: int = 8, size: int = 2048) -> None:
        self.view, self.members, self.size = view, members, size

    def fit(self, x: Tensor, generator: Generator) -> None:
        n = len(x)
        drawn, seen = draw(n, self.members, min(self.size, max(1, int(SHARE * n))), generator)
        self.restore({"rows": x[drawn], "seen": seen})

    def read(self, x: Tensor, trusted: Tensor) -> dict[str, Reading]:
        # squared distances but for the row's own square: (M, B, K), least where the prototype is nearest
        nearest = torch.baddbmm(self._squares, aligned(x).expand(self.members, -1, -1), self._turned, alpha=-2).argmin(
            2
        )
        # exactly, of the one found: the product's rounding would hide that a row is a prototype
        squared = (x - self._rows[torch.arange(self.members).unsqueeze(1), nearest]).square()
        distance = squared.sum(2).sqrt()
        count = trusted.sum(0)
        share = (squared * trusted.unsqueeze(2)).sum(0) / count.unsqueeze(1)
        return {"distance": Reading((distance * trusted).sum(0) / count, share)}

    def state(self) -> dict[str, Tensor]:
        return {"rows": self._rows, "seen": self.seen}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.seen = expect(state, "seen", torch.bool, self.members, None)
        self._rows = expect(state, "rows", torch.float32, self.members, None, None)  # (M, K, d)
        self._turned = self._rows.transpose(1, 2).contiguous()
        self._squares = self._rows.square().sum(2).unsqueeze(1)  # (M, 1, K)
