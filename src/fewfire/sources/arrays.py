"""Rows of arrays and tensors, in memory or on disk."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire import rng
from fewfire.contracts import Batch, Layout
from fewfire.preprocess import Spec
from fewfire.rows import Storage, as_storage, take

__all__ = ["ArraySource"]


_BLOCK_BYTES = 1 << 20
_HASH_WHOLE_BYTES = 64 << 20
_SAMPLED_BLOCKS = 32


class ArraySource:
    """A source over an array: numpy, memory-mapped, a torch tensor on any device, or a DataFrame of numbers.

    The data are not copied: each batch gathers its rows. float64 stays float64; other floats, integers and
    booleans come as float32. Batches in natural order may be views of the data: do not write into them. NaN
    is allowed.

    Parameters
    ----------
    x
        (n, *row shape): at least two dimensions and one row.
    target
        (n, *target shape): what to reconstruct from ``x``, e.g. a layer's output from its input. None: ``x``
        itself; then ``batch.x_in is batch.x``.
    layout
        How a person sees a row. By default an image for rows of (h, w) or (1, 3 or 4 channels, h, w), else a
        table, with a DataFrame's column names.
    name
        A short label for people.
    suggested_preprocess
        What suits these data, for ``make_preprocess``; used when the configuration says nothing.
    labels
        One per row, for pictures and tables: ``labels[batch.rows]``. Never trained on.

    Raises
    ------
    TypeError
        Not an array of real numbers: objects, text, dates, complex, masked, sparse.
    ValueError
        Fewer than two dimensions, no rows or columns, rows of unequal length, or a target, layout or labels
        that do not fit ``x``.
    """

    n_rows: int | None
    row_shape: tuple[int, ...]
    target_shape: tuple[int, ...]

    def __init__(
        self,
        x: Any,
        target: Any = None,
        *,
        layout: Layout | Mapping[str, Any] | None = None,
        name: str = "array",
        suggested_preprocess: Spec = None,
        labels: npt.ArrayLike | None = None,
    ) -> None:
        self._x = as_storage(x, "x")
        self._target = None if target is None else as_storage(target, "target")
        self._index: Tensor | None = None  # original row numbers; None: all of them
        self.n_rows = len(self)
        self.row_shape = tuple(self._x.shape[1:])
        self.target_shape = self.row_shape if self._target is None else tuple(self._target.shape[1:])
        self.name = name
        self.suggested_preprocess = suggested_preprocess
        self.labels = None if labels is None else np.asarray(labels)
        for what, value in (("target", self._target), ("labels", self.labels)):
            if value is not None and len(value) != len(self):
                raise ValueError(f"x and {what} need one row each; x has {len(self)}, {what} {len(value)}")
        if isinstance(layout, Mapping):  # from a configuration file: {kind: table, columns: [...]}
            layout = Layout.from_dict(layout)
        self.layout = _default_layout(x, self.row_shape) if layout is None else layout
        _check_layout(self.layout, self.row_shape)

    def __len__(self) -> int:
        return len(self._x if self._index is None else self._index)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {len(self)} rows of {self.row_shape}>"

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
        return self._batches(batch_size, seed, epoch, start, shuffle)

    def _batches(self, batch_size: int, seed: int, epoch: int, start: int, shuffle: bool) -> Iterator[Batch]:
        n = len(self)
        order = rng.permutation(n, seed, epoch) if shuffle else None
        for first in range(start * batch_size, n, batch_size):
            last = min(first + batch_size, n)
            rows = torch.arange(first, last) if order is None else order[first:last]
            if self._index is not None:
                rows = self._index[rows]
            # A run of neighbours is a slice, which needs no copy; L-BFGS asks for the whole array every step.
            contiguous = order is None and self._index is None
            where = slice(first, last) if contiguous else rows
            x_in = take(self._x, where)
            yield Batch(x_in, x_in if self._target is None else take(self._target, where), rows)

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
        """sha256 of shape, dtype, content and, for a part, its row numbers.

        Of a memory-mapped file beyond 64 MiB, its size and modification time and 32 spread blocks of 1 MiB
        stand for the content, so that opening a terabyte takes no time. A copy of it must keep the time.
        """
        digest = hashlib.sha256()
        for storage in (self._x, self._target):
            if storage is not None:
                _hash_storage(digest, storage)
        if self._index is not None:
            digest.update(self._index.numpy().data)
        return digest.hexdigest()

    # On first use, because gigabytes take seconds; the protocol asks for an attribute, and it reads like one.
    fingerprint: str = cached_property(_fingerprint)  # type: ignore[assignment]


# -------------------------------------------------------------------------------------------------------- describing


def _default_layout(data: Any, row_shape: tuple[int, ...]) -> Layout:
    if len(row_shape) == 2 or (len(row_shape) == 3 and row_shape[0] in (1, 3, 4)):
        return Layout("image", row_shape)
    columns = getattr(data, "columns", None)
    return Layout("table", columns=() if columns is None else tuple(map(str, columns)))


def _check_layout(layout: Layout, row_shape: tuple[int, ...]) -> None:
    size = math.prod(row_shape)
    described = math.prod(layout.shape) if layout.kind == "image" else len(layout.columns) or size
    if described != size:
        what = f"an image of {layout.shape}" if layout.kind == "image" else f"a table of {described} columns"
        raise ValueError(f"the layout describes {what}, the rows have {size} values of shape {row_shape}")


# ------------------------------------------------------------------------------------------------------- fingerprint


def _hash_storage(digest: Any, storage: Storage) -> None:
    digest.update(f"{storage.dtype} {tuple(storage.shape)}".encode())
    blocks = _blocks(storage)
    path = storage.filename if isinstance(storage, np.memmap) else None
    if path is not None and storage.nbytes > _HASH_WHOLE_BYTES:
        status = Path(path).stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        blocks = [blocks[i * (len(blocks) - 1) // (_SAMPLED_BLOCKS - 1)] for i in range(_SAMPLED_BLOCKS)]
    for block in blocks:
        piece = storage[block]
        raw = piece.cpu().contiguous().view(torch.uint8).numpy() if isinstance(piece, Tensor) else piece
        digest.update(np.ascontiguousarray(raw).data)


def _blocks(storage: Storage) -> list[slice]:
    """The rows in blocks of about 1 MiB: what is hashed never needs a second copy of the data."""
    row_bytes = storage[:1].nbytes
    step = max(_BLOCK_BYTES // row_bytes, 1)
    return [slice(first, first + step) for first in range(0, len(storage), step)]
