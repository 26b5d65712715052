"""Means and variances of a stream."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments", "unexplained"]


class Moments:
    """Count, mean and squared deviations per column, over a stream, without keeping it.

    Chan, Golub & LeVeque 1983: merging blocks keeps the digits that ``E[x^2] - E[x]^2`` loses.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.m2 = torch.zeros((), dtype=torch.float64)

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        moments = cls()
        moments.update(x)
        return moments

    def update(self, x: Tensor) -> None:
        """Take in (B, ...) more rows."""
        x = x.double()
        n = len(x)
        if n == 0:
            return
        mean = x.mean(0)
        self.merge(n, mean, (x - mean).square().sum(0))

    def merge(self, n: int, mean: Tensor, m2: Tensor) -> None:
        """Take in ``n`` more rows by their own mean and squared deviations, (...) each in float64."""
        if n == 0:
            return
        total = self.count + n
        delta = mean - self.mean
        self.m2 = self.m2 + m2 + delta.square() * (self.count * n / total)
        self.mean = self.mean + delta * (n / total)
        self.count = total

    @property
    def squared_deviation(self) -> float:
        """Sum over rows and columns of (x - mean)^2; what rounding leaves in a constant column counts as 0."""
        return float(self._deviation.sum())

    def mean_unexplained(self, squared_error: Tensor) -> float:
        """Mean over columns of each column's own FVU, so that one of large scale does not speak for all. (D,) -> 1.

        A column that comes out worse than its own mean counts as 1, wholly unexplained; constant columns have nothing
        to explain and are left out.
        """
        varies = self._deviation != 0
        if not varies.any():
            return unexplained(float(squared_error.sum()), 0.0)
        return float((squared_error[varies] / self._deviation[varies]).clamp(max=1).mean())

    @property
    def _deviation(self) -> Tensor:
        rounding = self.count * (8 * torch.finfo(torch.float64).eps * self.mean).square()
        return self.m2.where((self.m2 > rounding) | self.m2.isnan(), 0.0)

    @property
    def variance(self) -> Tensor:
        """Population variance of each column."""
        return self.m2 / max(self.count, 1)


def unexplained(squared_error: float, squared_deviation: float) -> float:
    """FVU from its two sums. Data without variance: 0 when reproduced exactly, else 1 (as scikit-learn's r2_score)."""
    if squared_deviation != 0:  # NaN among them, which must come out as NaN
        return squared_error / squared_deviation
    return 0.0 if squared_error == 0 else 1.0
