"""A uniform sample of a stream, the same whatever the blocks it comes in."""

from __future__ import annotations

import torch
from torch import Tensor

from fewfire.rng import generator

__all__ = ["Sample"]

BLOCK = 1 << 12
"""rows whose keys are drawn from one generator"""


class Sample:
    """At most ``size`` rows of all that were added, each as likely to be among them; in their order.

    Every row has a random key by its number, and those of the smallest keys stay. (Vitter 1985 keeps such a sample row
    by row; keys do it by blocks.)
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.n_seen = 0
        self.rows = torch.empty(0, 0, dtype=torch.float64)
        self._keys = torch.empty(0, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in (B, D) float64 rows."""
        keys = self._keys_of(self.n_seen, len(rows))
        self.n_seen += len(rows)
        self.rows = torch.cat([self.rows, rows]) if len(self.rows) else rows.clone()
        self._keys = torch.cat([self._keys, keys])
        if len(self.rows) > self.size:
            kept = self._keys.topk(self.size, largest=False).indices.sort().values
            self.rows, self._keys = self.rows[kept], self._keys[kept]

    def _keys_of(self, first: int, count: int) -> Tensor:
        start, end = first // BLOCK, -(-(first + count) // BLOCK)
        drawn = [
            torch.rand(BLOCK, dtype=torch.float64, generator=generator(self.seed, "sample", block))
            for block in range(start, end)
        ]
        keys = torch.cat(drawn) if drawn else self._keys[:0]
        return keys[first - start * BLOCK :][:count]
