"""Sources whose rows can be asked for by number: order, parts and resuming are counting."""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from fewfire import rng
from fewfire.contracts import Batch, Layout
from fewfire.preprocess import Spec

__all__ = ["IndexedSource"]


class IndexedSource:
    """What sources over rows with numbers share. A subclass sets the attributes and writes the two methods below.

    Raises
    ------
    ValueError
        From ``batches`` and ``split``, when called with numbers that make no sense.
    """

    n_rows: int | None
    row_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    layout: Layout
    name: str
    suggested_preprocess: Spec
    _index: Tensor | None = None
    """original row numbers of a part; None: all of them"""

    @abstractmethod
    def _gather(self, where: slice | Tensor) -> tuple[Tensor, Tensor]:
        """(x_in, x) of these rows of the whole; one tensor twice where the target is the row itself."""

    @abstractmethod
    def _hash(self, digest: Any) -> None:
        """Feed what stands for the content of the whole."""

    @abstractmethod
    def _count(self) -> int:
        """Rows of the whole."""

    def __len__(self) -> int:
        return self._count() if self._index is None else len(self._index)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {len(self)} rows of {self.row_shape}>"

    @property
    def has_target(self) -> bool:
        """Whether what is reconstructed from a row is something else than the row itself."""
        x_in, x = self._gather(slice(0, 1))
        return x is not x_in

    # ---------------------------------------------------------------------------------------------- batches

    def batches(
        self, batch_size: int, *, seed: int = 0, epoch: int = 0, start: int = 0, shuffle: bool = True
    ) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, ... of an epoch, without producing the earlier ones.

        The order is a function of (seed, epoch) alone; ``shuffle=False`` is the order of the data. Every row
        comes once; the last batch may be smaller.

        Raises
        ------
        ValueError
            ``batch_size`` below 1 or ``start`` below 0.
        """
        if batch_size < 1 or start < 0:
            raise ValueError(f"expected batch_size >= 1 and start >= 0, got {batch_size} and {start}")
        return self._batches(self._places(batch_size, seed, epoch, start, shuffle))

    def _batches(self, places: Iterator[tuple[slice | Tensor, Tensor]]) -> Iterator[Batch]:
        for where, rows in places:
            x_in, x = self._gather(where)
            yield Batch(x_in, x, rows)

    def _places(
        self, batch_size: int, seed: int, epoch: int, start: int, shuffle: bool
    ) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Which rows of the whole each batch takes, and their numbers."""
        n = len(self)
        order = rng.permutation(n, seed, epoch) if shuffle else None
        for first in range(start * batch_size, n, batch_size):
            last = min(first + batch_size, n)
            rows = torch.arange(first, last) if order is None else order[first:last]
            if self._index is not None:
                rows = self._index[rows]
            # A run of neighbours is a slice, which needs no copy; L-BFGS asks for the whole array every step.
            contiguous = order is None and self._index is None
            yield slice(first, last) if contiguous else rows, rows

    # ---------------------------------------------------------------------------------------------- subsets

    def split(self, fraction: float, seed: int = 0) -> tuple[Self, Self]:
        """(the rest, a random ``fraction`` of the rows), disjoint, each with at least one row.

        Both keep the row numbers of the original in ``Batch.rows`` and share its memory.

        Raises
        ------
        ValueError
            ``fraction`` is not between 0 and 1, or there is only one row.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be above 0 and below 1, got {fraction}; 0.1 is usual")
        n = len(self)
        if n < 2:
            raise ValueError(f"a split needs at least 2 rows, {self.name} has {n}")
        count = min(max(round(n * fraction), 1), n - 1)
        order = rng.permutation(n, seed, "split")
        # Sorted: the natural order of a part is that of the data, and reading it from disk goes forward.
        return self._subset(order[count:].sort().values), self._subset(order[:count].sort().values)

    def _subset(self, positions: Tensor) -> Self:
        part = copy.copy(self)
        part.__dict__.pop("fingerprint", None)
        part._index = positions if self._index is None else self._index[positions]
        part.n_rows = len(positions)
        return part

    # ------------------------------------------------------------------------------------------ fingerprint

    def _fingerprint(self) -> str:
        """sha256 of the content and, for a part, its row numbers."""
        digest = hashlib.sha256()
        self._hash(digest)
        if self._index is not None:
            digest.update(self._index.numpy().data)
        return digest.hexdigest()

    # On first use, because gigabytes take seconds; the protocol asks for an attribute, and it reads like one.
    fingerprint: str = cached_property(_fingerprint)  # type: ignore[assignment]
