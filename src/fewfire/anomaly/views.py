"""Columns of a table as numbers that can be compared, whatever their units: three ways to look at a row."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fewfire.anomaly.expect import expect
from fewfire.rows import aligned

__all__ = ["Views"]

VIEWS = ("range", "standard", "asinh", "directions")
FAR = 1000.0
"""where a value seen from outside is cut off: it is as strange as can be, and products of it stay finite"""
SAME = 1e-9
"""a column whose range is this small beside its values is constant but for rounding"""
TINY = 1e-200
"""a deviation below it, in a column whose largest value is near 1, cannot be divided by"""
NORMAL_IQR = 1.349
"""interquartile range of a standard normal"""
DIRECTIONS = 64
SHRINK = 0.05
"""of the mean variance of the directions, added to the variance of each before it becomes 1"""


class Views:
    """What the training rows say of their columns, and rows seen through it.

    ``range``: the column's range to [0, 1], then all by one factor, so that the mean variance is 1. Columns with far
    values, and rare categories, weigh little. ``standard``: mean 0, deviation 1. ``asinh``: arcsinh((x - median) /
    robust deviation), standardised; heavy tails are drawn in, and what is unusual near the median is not lost beside
    them.

    ``directions``: the first principal directions of ``range``, at most 64, each to a variance near 1: what few of many
    columns do together. Of noise, which fills the last directions, less is made (``SHRINK``).

    Constant columns are in none of them: no scale is theirs. ``strange`` says where a row has another value.

    Each column is first multiplied by a power of two, which changes no bit of what follows and lets columns of 1e-300
    and 1e300 be squared.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = dict(state)
        self.columns: Tensor = state["columns"]
        """(d,) int64, those that vary"""

    @classmethod
    def restore(cls, state: Mapping[str, Tensor]) -> Views:
        """Be as the one whose ``state`` this is; KeyError or ValueError if it cannot be."""
        columns, usual = state["columns"], expect(state, "usual", torch.float64, None)
        expect(state, "columns", torch.int64, len(columns))
        if len(columns) and (columns[0] < 0 or columns[-1] >= len(usual) or (columns.diff() <= 0).any()):
            raise ValueError("columns are not those of the table")
        if len(columns):
            for name in ("low", "mean", "median", "bent_mean"):
                expect(state, name, torch.float64, len(columns))
            for name in ("root", "width", "std", "spread", "bent_std"):
                expect(state, name, torch.float64, len(columns), positive=True)
        if "axes" in state:
            axes = expect(state, "axes", torch.float64, None, len(columns))
            expect(state, "centre", torch.float64, len(columns))
            expect(state, "axis_scale", torch.float64, len(axes), positive=True)
        return cls(state)

    @property
    def n_columns(self) -> int:
        """D, of the table."""
        return len(self._state["usual"])

    @classmethod
    def fit(cls, rows: Tensor, names: Collection[str]) -> Views:
        """Learn what the views of these names need from (n, D) finite float64 rows; n at least 1."""
        low, high = rows.amin(0), rows.amax(0)
        varies = high - low > SAME * torch.maximum(low.abs(), high.abs())
        columns = varies.nonzero().flatten()
        always = {"columns": columns, "usual": rows[0].clone()}
        if not len(columns):
            return cls(always)
        root = _root(torch.maximum(low.abs(), high.abs())[columns])
        kept, low, high = (x * root * root for x in (rows[:, columns], low[columns], high[columns]))
        width = high - low
        std, mean = torch.std_mean(kept, 0, correction=0)
        quarters = torch.from_numpy(np.quantile(kept.numpy(), (0.25, 0.5, 0.75), axis=0))  # torch's has a limit
        spread = (quarters[2] - quarters[0]) / NORMAL_IQR
        rounding = (SAME * quarters.abs().amax(0)).clamp(min=TINY)
        spread = torch.where(spread > rounding, spread, std)
        bent_std, bent_mean = torch.std_mean(torch.asinh((kept - quarters[1]) / spread), 0, correction=0)
        variance = ((kept - low) / width).var(0, correction=0).mean()
        views = cls(
            {
                **always,
                "root": root,
                "low": low,
                "width": width * variance.sqrt(),
                "mean": mean,
                "std": std,
                "median": quarters[1],
                "spread": spread,
                "bent_mean": bent_mean,
                "bent_std": bent_std,
            }
        )
        if "directions" in names:
            views._fit_directions(views._range(kept))
        return views

    def _fit_directions(self, seen: Tensor) -> None:
        mean = seen.mean(0)
        count = min(DIRECTIONS, seen.shape[1], max(1, len(seen) - 1))
        # of the smaller of the two Gram matrices: exact, and quick for few rows as for few columns
        centred = seen - mean
        if len(seen) < seen.shape[1]:
            values, left = torch.linalg.eigh(centred @ centred.T)
            axes = centred.T @ left[:, -count:]
            axes = axes / axes.norm(dim=0).clamp(min=1e-12)
        else:
            values, axes = torch.linalg.eigh(centred.T @ centred)
            axes = axes[:, -count:]
        variance = values[-count:].clamp(min=0) / len(seen)
        scale = (variance + SHRINK * variance.mean()).sqrt().clamp(min=1e-12)
        self._state |= {"centre": mean, "axes": axes.T.contiguous(), "axis_scale": scale}

    def __call__(self, rows: Tensor, names: Sequence[str]) -> Tensor:
        """(B, D) float64 -> (B, len(names) * d) float32, the views side by side; together they weigh as much as one.

        Raises
        ------
        ValueError
            There is no view of such a name, or one is named twice.
        """
        if len(set(names) & set(VIEWS)) < len(names):
            raise ValueError(f"expected different views of {', '.join(VIEWS)}; got {list(names)!r:.100}")
        kept = rows[:, self.columns]
        if len(self.columns):
            kept = kept * self._state["root"] * self._state["root"]
        seen = [getattr(self, f"_{name}")(kept).clamp(-FAR, FAR) for name in names]
        return torch.cat(seen, 1).div(math.sqrt(len(names))).float()

    def _range(self, kept: Tensor) -> Tensor:
        return (kept - self._state["low"]) / self._state["width"]

    def _standard(self, kept: Tensor) -> Tensor:
        return (kept - self._state["mean"]) / self._state["std"]

    def _asinh(self, kept: Tensor) -> Tensor:
        bent = torch.asinh((kept - self._state["median"]) / self._state["spread"])
        return (bent - self._state["bent_mean"]) / self._state["bent_std"]

    def _directions(self, kept: Tensor) -> Tensor:
        centred = self._range(kept).clamp(-FAR, FAR) - self._state["centre"]
        return aligned(centred) @ self._state["axes"].T / self._state["axis_scale"]

    def by_column(self, share: Tensor, names: Sequence[str]) -> Tensor:
        """Shares of what the views show as shares of the table's columns, of sum 1 where there are any.

        A direction's share goes to the columns that make it up, by their squared loadings.
        """
        at = 0
        kept = share.new_zeros(len(share), len(self.columns), dtype=torch.float64)
        for name in names:
            loads = self._state["axes"].T.square().contiguous() if name == "directions" else None
            width = len(self.columns) if loads is None else loads.shape[1]
            part = share[:, at : at + width].double()
            kept += part if loads is None else aligned(part) @ loads.T  # so laid out, a row's bits are its own
            at += width
        shares = kept.new_zeros(len(share), len(self._state["usual"]))
        shares[:, self.columns] = kept
        total = shares.sum(1, keepdim=True)
        shared: Tensor = shares / total.where(total > 0, 1.0)
        return shared

    def strange(self, rows: Tensor) -> Tensor:
        """(B, D) bool: where a column that never varied has another value than always."""
        usual = self._state["usual"]
        other = (rows - usual).abs() > SAME * torch.maximum(rows.abs(), usual.abs())
        other[:, self.columns] = False
        return other

    def state(self) -> dict[str, Tensor]:
        """All that was learned; ``Views(state)`` is this again."""
        return dict(self._state)


def _root(largest: Tensor) -> Tensor:
    """(d,) powers of two; times their squares, values of at most ``largest`` are at most 1. Squares may not exist."""
    exponent = torch.frexp(largest).exponent.numpy()
    return torch.from_numpy(np.ldexp(1.0, -((exponent + 1) // 2)))
