"""Which features of a synthetic world fire on a row, and how strongly."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fewfire import rng

__all__ = ["Coefficients", "Fired"]


class Fired(NamedTuple):
    """Coefficients that are not 0, (n,) each."""

    row: Tensor
    feature: Tensor
    value: Tensor

    def at(self, places: Tensor) -> Fired:
        """These of them. A mask's ``nonzero`` is asked for once: indexing each with the mask is three times as slow."""
        return Fired(*(column.index_select(0, places) for column in self))


_LEAST_OWN = 0.01
"""of a feature's variance in the copula, what is its own at least"""


class Coefficients:
    """The law of a world's coefficients; the settings are those of :class:`SyntheticWorld`.

    Feature j would fire where a normal variable exceeds a threshold; the variables of two features are correlated::

        g_j = loadings_j . common + own_j * normal,     fires if g_j > threshold_j

    so that, given the ``common`` variables of a row, features fire independently, with probability
    q = erfc((threshold_j - loadings_j . common) / own_j / sqrt(2)) / 2. Roots and free features are drawn for all rows,
    children only where their parent fires.
    """

    def __init__(
        self,
        n_features: int,
        *,
        probability: float | tuple[float, float],
        exponent: float,
        trees: tuple[int, int, int],
        exclusive: bool,
        compensate: bool,
        rank: int,
        correlation: float,
        mean: float | tuple[float, float],
        std: tuple[float, float],
        seed: int,
        device: torch.device,
    ) -> None:
        self._exclusive = exclusive
        self._roots, self._branching, self._depth = trees
        levels, parents = _plant(n_features, *trees)
        probabilities = _zipf(n_features, probability, exponent)
        if compensate:
            probabilities = _compensated(probabilities, parents, exclusive)
        loadings, own = _loadings(n_features, rank, correlation, seed)
        means = torch.linspace(*_ends(mean), n_features, dtype=torch.float64)
        deviations = torch.randn(n_features, generator=rng.generator(seed, "std"), dtype=torch.float64)

        self.levels, self.parents = levels.to(device), parents.to(device)
        self._n_children = int((parents >= 0).sum())
        self._free = torch.cat([torch.arange(self._roots), (levels < 0).nonzero().flatten()]).to(device)
        self._loadings = loadings.float().to(device)
        # the argument of erfc, without and with the common variables
        self._threshold = (torch.special.ndtri(1 - probabilities) / own / math.sqrt(2)).float().to(device)
        self._slope = (loadings / own[:, None] / math.sqrt(2)).float().to(device)
        self._mean = means.float().to(device)
        self._std = (std[0] + std[1] * deviations).abs().float().to(device)

    def draw(self, n_rows: int, generator: torch.Generator) -> Fired:
        """The coefficients of some rows; nothing but the generator decides which."""
        common = torch.randn(n_rows, self._slope.shape[1], generator=generator, device=self._mean.device)
        parts = [self._independent(common, generator)]
        if self._roots and self._depth:
            threshold = self._given(common, slice(self._roots, self._roots + self._n_children))
            level = parts[0].at((parts[0].feature < self._roots).nonzero().view(-1))
            for _ in range(self._depth):
                level = self._children(level, threshold, generator)
                parts.append(level)
        fired = Fired(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))
        return fired.at((fired.row * len(self._mean) + fired.feature).argsort())

    def _given(self, common: Tensor, which: slice | Tensor) -> Tensor:
        """(rows, features): the argument of erfc, of these features on these rows."""
        return torch.addmm(self._threshold[which], common, self._slope[which].T, alpha=-1)

    def _independent(self, common: Tensor, generator: torch.Generator) -> Fired:
        """The roots and free features that fire.

        A uniform number decides: it fires if u < q. Its first byte is enough where that is beyond q on every row, as
        it is for most, and a byte costs an eighth of a random word; the others get the rest of their number.
        """
        threshold = self._given(common, self._free)
        # erfc falls: the lowest argument has the highest q
        most = (128 * torch.erfc(threshold.amin(0))).floor().clamp_max(255).to(torch.uint8)
        words = torch.empty(-(-threshold.numel() // 8), dtype=torch.int64, device=threshold.device)
        first = words.random_(-(2**63), None, generator=generator).view(torch.uint8)[: threshold.numel()]
        place = (first.view(threshold.shape) <= most).view(-1).nonzero().view(-1)
        rest = torch.rand(len(place), generator=generator, device=place.device)
        q = torch.erfc(threshold.view(-1).index_select(0, place)) / 2
        place = place[first.index_select(0, place) + rest < 256 * q]
        return self._with_values(place // len(self._free), self._free[place % len(self._free)], generator)

    def _children(self, parents: Fired, threshold: Tensor, generator: torch.Generator) -> Fired:
        """Of the children of these, those that fire; ``threshold`` (rows, children) begins with the first child."""
        row, parent, strength = parents
        b = self._branching
        first = b * parent[:, None] + torch.arange(b, device=row.device)  # children are numbered as their parents are
        q = torch.erfc(threshold.view(-1).index_select(0, (first + row[:, None] * threshold.shape[1]).view(-1))) / 2
        place = (torch.rand(len(q), generator=generator, device=row.device) < q).nonzero().view(-1)
        fired = self._with_values(place // b, first.view(-1)[place] + self._roots, generator)
        if self._exclusive:
            fired = fired.at(_one_of_each(fired.row, len(row), generator))
        which = fired.row
        return Fired(row[which], fired.feature, fired.value * (strength / self._mean[parent])[which])

    def _with_values(self, row: Tensor, feature: Tensor, generator: torch.Generator) -> Fired:
        """Coefficients drawn, and what is not above 0 left out."""
        normal = torch.randn(len(row), generator=generator, device=row.device)
        value = self._mean.index_select(0, feature) + self._std.index_select(0, feature) * normal
        return Fired(row, feature, value).at((value > 0).nonzero().view(-1))


def _one_of_each(group: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """One place at random of each run of equal numbers below ``n``; ``group`` is sorted."""
    count = torch.bincount(group, minlength=n)
    first = count.cumsum(0) - count
    there = count > 0
    uniform = torch.rand(n, generator=generator, device=group.device, dtype=torch.float64)  # below 1 after the product
    return (first + (uniform * count).long())[there]


# --------------------------------------------------------------------------------------------------------- the law


def _ends(pair: float | tuple[float, float]) -> tuple[float, float]:
    first, last = pair if isinstance(pair, tuple | list) else (pair, pair)
    return float(first), float(last)


def _plant(n_features: int, roots: int, branching: int, depth: int) -> tuple[Tensor, Tensor]:
    """(levels, parents) of all features: trees level by level, then the free ones."""
    sizes = [roots * branching**level for level in range(depth + 1)]
    levels = torch.cat([torch.full((size,), level) for level, size in enumerate(sizes)])
    parents = torch.arange(-roots, len(levels) - roots).div(branching, rounding_mode="floor").clamp_min(-1)
    left = n_features - len(levels)
    if left < 0:
        raise ValueError(
            f"{roots} roots with {branching} children each and {depth} levels below are {len(levels)} features; "
            f"expected n_features to be as many, got {n_features}"
        )
    free = torch.full((left,), -1)
    return torch.cat([levels, free]), torch.cat([parents, free])


def _zipf(n: int, probability: float | tuple[float, float], exponent: float) -> Tensor:
    """(n,) float64: rank**-exponent, moved and scaled to go from the first probability to the last."""
    first, last = _ends(probability)
    law = torch.arange(1, n + 1, dtype=torch.float64) ** -exponent
    spread = law[0] - law[-1]
    return (
        torch.full((n,), first, dtype=torch.float64)
        if spread == 0
        else last + (first - last) * (law - law[-1]) / spread
    )


def _compensated(p: Tensor, parents: Tensor, exclusive: bool) -> Tensor:
    """The probabilities of children given their parent, so that all in all they are about ``p``."""
    child = parents >= 0
    of_parent = p[parents.clamp_min(0)]
    siblings = torch.zeros_like(p).index_add(0, parents[child], p[child])[parents.clamp_min(0)]
    rivals = (siblings - p).clamp_min(0) / of_parent if exclusive else torch.zeros_like(p)
    return torch.where(child, p / of_parent * (1 + rivals), p).clamp_max(1)


def _loadings(n: int, rank: int, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    """(n, rank) and (n,): what of a feature's normal variable is common, and its own; their squares sum to 1."""
    loadings = scale * torch.randn(n, rank, generator=rng.generator(seed, "correlation"), dtype=torch.float64)
    common = loadings.square().sum(1)
    loadings = loadings * ((1 - _LEAST_OWN) / common.clamp_min(1 - _LEAST_OWN)).sqrt()[:, None]
    return loadings, (1 - loadings.square().sum(1)).sqrt()
