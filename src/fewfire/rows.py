"""Rows as people hand them over, and rows as products need them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Storage", "aligned", "as_rows", "as_storage", "check_finite", "compute_dtype", "take"]

Storage: TypeAlias = Tensor | npt.NDArray[Any]
"""The caller's memory: a tensor, or a numpy array where torch cannot borrow it."""

CACHE_LINE = 64
"""bytes"""


def compute_dtype(x: Tensor) -> torch.dtype:
    """The precision fewfire infers in: float64 stays float64, everything else becomes float32.

    float16 is raised before anything is squared or summed: in float16 a row of norm 1280 already overflows.
    """
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def as_rows(data: Any, what: str = "x") -> Tensor:
    """Anything array-like as a contiguous tensor in ``compute_dtype``; no gradient is followed through it.

    Raises
    ------
    TypeError
        It holds something else than real numbers, or hides some: a mask, a sparse matrix.
    ValueError
        Its rows are of unequal length, or it is a single number.
    """
    storage = _as_real(data, what)
    if storage.ndim == 0:
        raise ValueError(f"{what} must be rows, got a single number")
    return take(storage, slice(None)).contiguous()


def as_storage(data: Any, what: str) -> Storage:
    """The caller's memory, not copied, checked to be (n, columns) or (n, *row shape).

    Raises
    ------
    TypeError, ValueError
        As ``as_rows``; or there is no row, no column, or but one dimension.
    """
    storage = _as_real(data, what)
    if storage.ndim < 2:
        raise ValueError(
            f"{what} must be (n, columns) or (n, *row shape), got shape {tuple(storage.shape)}; "
            f"one column is {what}.reshape(-1, 1), one row {what}.reshape(1, -1)"
        )
    if 0 in storage.shape:
        raise ValueError(f"{what} must have at least one row and one column, got shape {tuple(storage.shape)}")
    return storage


def _as_real(data: Any, what: str) -> Storage:
    if isinstance(data, Tensor):
        if data.layout != torch.strided:
            raise TypeError(f"{what} is a sparse tensor, expected a dense one; pass {what}.to_dense()")
        storage: Storage = data.detach()
        real = not (data.is_complex() or data.is_quantized)
    else:
        storage = _as_numpy(data, what)
        real = storage.dtype.kind in "biuf"
    if not real:
        raise TypeError(f"{what} must hold real numbers, got dtype {storage.dtype}; convert or drop what is not one")
    return _borrow(storage) if isinstance(storage, np.ndarray) else storage


def _as_numpy(data: Any, what: str) -> npt.NDArray[Any]:
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError(f"{what} is a masked array, whose mask would be lost; pass {what}.filled(value)")
    if hasattr(data, "toarray"):
        raise TypeError(f"{what} is sparse ({type(data).__name__}), expected a dense array; pass {what}.toarray()")
    if isinstance(data, np.memmap):
        return data
    try:
        return np.asarray(data)
    except ValueError:
        raise ValueError(f"{what} has rows of unequal length; expected (n, columns)") from None


def _borrow(array: npt.NDArray[Any]) -> Storage:
    """A tensor on the same memory where torch accepts it, because torch gathers rows with all threads."""
    size = array.dtype.itemsize
    readable = array.dtype.isnative and size <= 8 and all(s >= 0 and s % size == 0 for s in array.strides)
    indexable = array.dtype.kind != "u" or size == 1  # torch cannot gather uint16 and wider
    if isinstance(array, np.memmap) or not (readable and indexable and array.flags.writeable):
        return array
    return torch.from_numpy(array)


def take(storage: Storage, where: slice | Tensor) -> Tensor:
    """These rows as float32 or float64. A slice of a float tensor is a view."""
    if isinstance(storage, Tensor):
        rows = storage[where] if isinstance(where, slice) else storage[where.to(storage.device)]
        return rows.to(compute_dtype(rows))
    taken = np.asarray(storage[where] if isinstance(where, slice) else storage[where.numpy()])
    dtype = np.float64 if taken.dtype.kind == "f" and taken.dtype.itemsize >= 8 else np.float32
    # A slice is the caller's memory, maybe read-only, which torch does not accept; a gather is ours already.
    ours = np.array(taken, dtype) if isinstance(where, slice) else taken.astype(dtype, copy=False)
    return torch.from_numpy(ours)


def check_finite(x: Tensor, what: str = "x", numbers: Tensor | None = None) -> None:
    """Refuse NaN and infinity, naming the first row that holds one. ``numbers``: what the rows are called.

    Raises
    ------
    ValueError
        A value is not finite.
    """
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bad.any():
        first = int(bad.nonzero()[0])
        row = first if numbers is None else int(numbers[first])
        raise ValueError(f"{what} holds NaN or infinity, first in row {row}; fill it or drop the row")


def aligned(x: Tensor) -> Tensor:
    """(B, W) with the same values, each row starting at a cache line.

    A product may round a row differently where it starts at another offset, so that a row's result would depend on
    its place in the batch. Rows that fill whole cache lines from the first on need nothing.
    """
    per_line = CACHE_LINE // x.element_size()
    width = x.shape[1]
    if width % per_line == 0 and x.is_contiguous() and x.data_ptr() % CACHE_LINE == 0:
        return x
    room = x.new_zeros(len(x), -(-width // per_line) * per_line)
    room[:, :width] = x
    return room[:, :width]
