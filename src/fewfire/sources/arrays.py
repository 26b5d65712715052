"""Rows of arrays and tensors, in memory or on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire.contracts import Layout
from fewfire.preprocess import Spec
from fewfire.rows import Storage, as_storage, column_names, take
from fewfire.sources.indexed import IndexedSource

__all__ = ["ArraySource"]


_BLOCK_BYTES = 1 << 20
_HASH_WHOLE_BYTES = 64 << 20
_SAMPLED_BLOCKS = 32


class ArraySource(IndexedSource):
    """A source over an array: numpy, memory-mapped, a torch tensor on any device, a table, or a sparse matrix.

    A table is a DataFrame of pandas or polars or a table of pyarrow, all of whose columns are numbers; a sparse
    matrix is one of scipy, in any format, and only the rows of a batch become dense. Missing values are NaN, and
    NaN is allowed here.

    Rows come as float32 where that holds every value of the dtype exactly: float16, bfloat16, bool and integers of
    8 or 16 bits; all else comes as float64. The data are not copied, but for Python objects, tables of several
    types, and sparse matrices of another kind than CSR of floats: each batch gathers its rows. Batches in natural
    order may be views of the data: do not write into them.

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
        Not an array of real numbers: objects, text, dates, complex, masked.
    ValueError
        Fewer than two dimensions, no rows or columns, rows of unequal length, or a target, layout or labels
        that do not fit ``x``.
    """

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
        self.n_rows = len(self)
        self.row_shape = tuple(self._x.shape[1:])
        self.target_shape = self.row_shape if self._target is None else tuple(self._target.shape[1:])
        self.name = name
        self.suggested_preprocess = suggested_preprocess
        self.labels = None if labels is None else np.asarray(labels)
        for what, value in (("target", self._target), ("labels", self.labels)):
            if value is not None and value.shape[:1] != (len(self),):
                count = value.shape[0] if value.ndim else "only one value"
                raise ValueError(f"x and {what} need one row each; x has {len(self)}, {what} {count}")
        if isinstance(layout, Mapping):  # from a configuration file: {kind: table, columns: [...]}
            layout = Layout.from_dict(layout)
        self.layout = _default_layout(x, self.row_shape) if layout is None else layout
        self.layout.check(self.row_shape)

    def _count(self) -> int:
        return int(self._x.shape[0])  # a sparse matrix has no len()

    def _gather(self, where: slice | Tensor) -> tuple[Tensor, Tensor]:
        x_in = take(self._x, where)
        return x_in, x_in if self._target is None else take(self._target, where)

    def _hash(self, digest: Any) -> None:
        """Shape, dtype and content.

        Of a memory-mapped file beyond 64 MiB, its size and modification time and 32 spread blocks of 1 MiB
        stand for the content, so that opening a terabyte takes no time. A copy of it must keep the time.
        """
        for storage in (self._x, self._target):
            if storage is not None:
                _hash_storage(digest, storage)


# -------------------------------------------------------------------------------------------------------- describing


def _default_layout(data: Any, row_shape: tuple[int, ...]) -> Layout:
    if len(row_shape) == 2 or (len(row_shape) == 3 and row_shape[0] in (1, 3, 4)):
        return Layout("image", row_shape)
    columns = column_names(data)
    return Layout("table", columns=columns if len(columns) == math.prod(row_shape) else ())


# ------------------------------------------------------------------------------------------------------- fingerprint


def _hash_storage(digest: Any, storage: Storage) -> None:
    digest.update(f"{storage.dtype} {tuple(storage.shape)}".encode())
    if not isinstance(storage, Tensor | np.ndarray):  # CSR; 64 bits, for scipy chooses the width of indices by size
        for part in (storage.indptr.astype(np.int64), storage.indices.astype(np.int64), storage.data):
            digest.update(np.ascontiguousarray(part).data)
        return
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
