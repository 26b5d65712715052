"""Which rows are training rows, told by a hash of their values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fewfire.anomaly.expect import expect

__all__ = ["Known"]


class Known:
    """Numbers of the rows that are among the training rows, bit for bit.

    People score the rows that they fitted on. A member that has seen a row finds nothing strange in it, so it must
    be known which have. Two different rows have the same hash once in 2**64 pairs.
    """

    def __init__(self, hashes: Tensor, numbers: Tensor) -> None:
        self._hashes, self._numbers = hashes, numbers
        """(n,) int64, ascending; (n,) int64. Of equal rows the first is first."""

    @classmethod
    def fit(cls, rows: Tensor) -> Known:
        """Remember (n, D) float64 rows."""
        hashes, numbers = torch.sort(_hashed(rows), stable=True)
        return cls(hashes, numbers)

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], n: int) -> Known:
        """Be as the one whose ``state`` this is, of n rows; KeyError or ValueError if it cannot be."""
        hashes = expect(state, "known", torch.int64, n)
        numbers = expect(state, "known_number", torch.int64, n)
        if (hashes.diff() < 0).any() or not torch.equal(numbers.sort().values, torch.arange(n)):
            raise ValueError("known rows are not in order")
        return cls(hashes, numbers)

    def __call__(self, rows: Tensor) -> Tensor:
        """(B, D) float64 -> (B,) int64: the number of the training row that each is, -1 where it is none."""
        hashes = _hashed(rows)
        place = torch.searchsorted(self._hashes, hashes).clamp(max=len(self._hashes) - 1)
        return torch.where(self._hashes[place] == hashes, self._numbers[place], -1)

    def state(self) -> dict[str, Tensor]:
        """What the constructor takes, by name."""
        return {"known": self._hashes, "known_number": self._numbers}


def _hashed(rows: Tensor) -> Tensor:
    """(B,) int64: each value mixed with its column, as splitmix64 does (Steele, Lea & Flood 2014), and all added."""
    values = (rows.numpy() + 0.0).view(np.uint64)  # 0.0 makes -0.0 a 0.0
    columns = np.arange(1, values.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = values ^ columns
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return torch.from_numpy((mixed ^ (mixed >> np.uint64(31))).sum(1, dtype=np.uint64).view(np.int64))
