"""Of a stream of entries, the few of each feature that count: the strongest, or a random sample."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Entries", "Smallest", "hashed", "joined", "strongest_first"]

BUFFERED = 1 << 22
"""entries that wait before they are merged: about 70 MB"""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Keys = npt.NDArray[np.uint32]


class Entries(NamedTuple):
    """Latents that are not 0, one entry each."""

    features: Ints
    rows: Ints
    values: Floats

    def where(self, chosen: npt.NDArray[np.bool_]) -> Entries:
        return Entries(self.features[chosen], self.rows[chosen], self.values[chosen])


def joined(parts: Iterable[Entries]) -> Entries:
    """Entries one after another."""
    sides: list[Any] = [np.concatenate(side) for side in zip(*parts, strict=True)]
    return Entries(*sides)


class Smallest:
    """The ``keep`` entries of each feature whose keys are smallest, of a stream of any length.

    Memory is bounded by ``n_features * keep`` and a buffer. Of equal keys the first to come stay.
    With :func:`strongest_first` as key these are the top examples; with :func:`hashed`, a sample of each feature's
    entries, every one as likely as any other (bottom-k sampling: Cohen & Kaplan 2007).
    """

    def __init__(self, n_features: int, keep: int) -> None:
        self.n_features, self.keep = n_features, keep
        self._limit = np.full(n_features, np.iinfo(np.uint32).max, dtype=np.uint32)
        self._parts: list[tuple[Keys, Entries]] = []
        self._waiting = 0

    def add(self, keys: Keys, entries: Entries) -> None:
        """Entries and their keys, (n,) each. Those that cannot be among the smallest any more are dropped at once."""
        chosen = keys <= self._limit[entries.features]
        self._parts.append((keys[chosen], entries.where(chosen)))
        self._waiting += int(chosen.sum())
        if self._waiting > BUFFERED:
            self._merge()

    def table(self) -> tuple[Ints, Floats]:
        """(L, keep) rows, and their values; smallest key first, row -1 where a feature has fewer."""
        self._merge()
        rows = np.full((self.n_features, self.keep), -1, dtype=np.int64)
        values = np.zeros((self.n_features, self.keep), dtype=np.float32)
        for _, entries in self._parts:
            place = _place_in_group(entries.features)
            rows[entries.features, place] = entries.rows
            values[entries.features, place] = entries.values
        return rows, values

    def _merge(self) -> None:
        if not self._parts:
            return
        keys = np.concatenate([part[0] for part in self._parts])
        merged = joined(part[1] for part in self._parts)
        order = np.argsort(merged.features.astype(np.uint64) << np.uint64(32) | keys, kind="stable")
        order = order[_place_in_group(merged.features[order]) < self.keep]
        kept = Entries(merged.features[order], merged.rows[order], merged.values[order])
        self._parts, self._waiting = [(keys[order], kept)], 0
        full = np.flatnonzero(_place_in_group(kept.features) == self.keep - 1)
        self._limit[kept.features[full]] = keys[order][full]


def strongest_first(values: Floats) -> Keys:
    """Keys that grow as values fall: the bits of a float32, turned so that they sort as whole numbers."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    negative = bits >> np.uint32(31) == 1
    return np.where(negative, bits, ~(bits | np.uint32(0x80000000)))


def hashed(entries: Entries) -> Keys:
    """Keys that look random and depend on the feature and the row alone (the mixer of splitmix64)."""
    x = entries.features.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + entries.rows.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)


def _place_in_group(features: Ints) -> Ints:
    """Of sorted features: how many of the same feature come before."""
    first = np.flatnonzero(np.diff(features, prepend=-1))
    lengths = np.diff(first, append=len(features))
    return np.arange(len(features)) - np.repeat(first, lengths)
