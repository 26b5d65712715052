"""How sure a number is that was measured on a stream of rows.

Every number of ``evaluate`` with limits is a ratio of two sums over rows. Sums are kept for blocks of consecutive rows,
and how much the blocks differ says how far the ratio would move on other rows (batch means; the ratio linearised as in
Cochran 1977, chapter 6). Neighbouring rows that are alike, such as the tokens of one text, fall into one
block, and so do not pass for independent ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["EVERYTHING", "Blocks", "limits"]

MOST_BLOCKS = 64
CONFIDENCE = 0.95
EVERYTHING = (-math.inf, math.inf)


class Blocks:
    """Sums of columns over at most 64 blocks of consecutive rows of a stream, in constant memory.

    All blocks but the last have ``size`` rows. There are never fewer than 33 once there were 64 rows: a full set is
    merged two by two, and ``size`` doubles. What comes out depends on the rows and not on how they were batched.
    """

    def __init__(self) -> None:
        self.size = 1
        self.count = 0
        self.sums = torch.zeros(0, 0, dtype=torch.float64)
        """(G, K)"""

    def make_room(self, n_rows: int) -> None:
        """So many rows come next, perhaps in parts: merge now, and no part is cut smaller than it must be."""
        while self.count + n_rows > MOST_BLOCKS * self.size:
            self._merge()

    def update(self, values: Tensor) -> None:
        """Take in (B, K) more rows."""
        values = values.double()
        if self.count == 0:
            self.sums = values.new_zeros(0, values.shape[1])
        self.make_room(len(values))
        start, end = self.count, self.count + len(values)
        missing = math.ceil(end / self.size) - len(self.sums)
        self.sums = torch.cat([self.sums, values.new_zeros(missing, values.shape[1])])
        while start < end:
            block = start // self.size
            stop = min(end, (block + 1) * self.size)
            self.sums[block] += values[start - self.count : stop - self.count].sum(0)
            start = stop
        self.count = end

    def _merge(self) -> None:
        n, width = self.sums.shape
        odd = self.sums.new_zeros(n % 2, width)
        self.sums = torch.cat([self.sums, odd]).view((n + 1) // 2, 2, width).sum(1)
        self.size *= 2

    @property
    def rows(self) -> Tensor:
        """(G,) how many rows each block has."""
        starts = torch.arange(len(self.sums), dtype=torch.float64) * self.size
        return (self.count - starts).clamp(max=self.size)

    @property
    def total(self) -> Tensor:
        """(K,) sums over all rows."""
        return self.sums.sum(0)


def limits(
    above: Tensor, below: Tensor, ratio: float, possible: tuple[float, float] = EVERYTHING
) -> tuple[float, float]:
    """95 % confidence limits of ``ratio = sum(above) / sum(below)``, from the (G,) sums of each block.

    Student's t with G - 1 degrees of freedom; limits outside ``possible`` are cut off there. Where the blocks say
    nothing, because there is one or because there is nothing to divide by, the limits are ``possible`` itself.
    """
    from scipy.special import stdtrit

    n, divisor = len(above), float(below.sum())
    if n < 2 or divisor == 0 or not math.isfinite(ratio):
        return possible
    moved = float((above - ratio * below).square().sum())
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(n / (n - 1) * moved) / abs(divisor)
    if not math.isfinite(half):
        return possible
    return max(possible[0], ratio - half), min(possible[1], ratio + half)
