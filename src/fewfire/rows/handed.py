"""Rows as people hand them over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire.rows.cells import as_real
from fewfire.rows.csr import as_csr
from fewfire.rows.gather import Storage, take
from fewfire.rows.tables import is_table, read_table

__all__ = ["as_rows", "as_storage"]


def as_rows(data: Any, what: str = "x") -> Tensor:
    """Anything array-like as a contiguous tensor in ``compute_dtype``; no gradient is followed through it.

    Raises
    ------
    TypeError
        It holds something else than real numbers, or hides some: a mask, a sparse matrix.
    ValueError
        Its rows are of unequal length, it is a single number, or a number is beyond float64.
    """
    storage = _as_real(data, what)
    if storage.ndim == 0:
        raise ValueError(f"{what} must be rows, got a single number")
    return take(storage, slice(None)).contiguous()


def as_storage(data: Any, what: str) -> Storage:
    """The caller's memory, checked to be (n, columns) or (n, *row shape) of real numbers, and never written to.

    It is not copied, but for Python objects, tables of several types, numbers wider than 64 bits, and sparse
    matrices that are not CSR of float32 or float64.

    Raises
    ------
    TypeError, ValueError
        As ``as_rows``, except that sparse matrices of scipy are taken; or there is no row, no column, or but one
        dimension.
    """
    storage = as_csr(data, what) if hasattr(data, "tocsr") else _as_real(data, what)
    if storage.ndim < 2:
        raise ValueError(
            f"{what} must be (n, columns) or (n, *row shape), got shape {tuple(storage.shape)}; "
            f"one column is {what}.reshape(-1, 1), one row {what}.reshape(1, -1)"
        )
    if 0 in storage.shape:
        raise ValueError(f"{what} must have at least one row and one column, got shape {tuple(storage.shape)}")
    return storage


def _as_real(data: Any, what: str) -> Storage:
    if isinstance(data, list | tuple) and data and all(isinstance(row, Tensor) for row in data):
        data = _stack(data, what)
    if isinstance(data, Tensor):
        return _check_tensor(data, what)
    return _borrow(read_table(data, what) if is_table(data) else as_real(_as_numpy(data, what), what))


# ---------------------------------------------------------------------------------------------- tensors


def _check_tensor(data: Tensor, what: str) -> Tensor:
    if data.layout != torch.strided:
        raise TypeError(f"{what} is a sparse or nested tensor, expected a dense one; pass {what}.to_dense()")
    if hasattr(data, "get_mask"):
        raise TypeError(f"{what} is a masked tensor; masked values would be ignored; pass {what}.to_tensor(value)")
    if data.is_complex() or data.is_quantized:
        raise TypeError(f"{what} must hold real numbers, got dtype {data.dtype}; convert or drop what is not one")
    if data.is_meta:
        raise TypeError(f"{what} is a meta tensor, which holds no numbers; load its data first")
    return data.detach()


def _stack(tensors: Sequence[Tensor], what: str) -> Tensor:
    rows = [_check_tensor(tensor, what) for tensor in tensors]
    try:
        return torch.stack(rows)
    except RuntimeError:
        raise ValueError(f"{what} has rows of unequal length; expected tensors of one shape and device") from None


# ---------------------------------------------------------------------------------------------- arrays


def _as_numpy(data: Any, what: str) -> npt.NDArray[Any]:
    if isinstance(data, np.memmap):
        return data
    if hasattr(data, "toarray"):
        raise TypeError(f"{what} is sparse ({type(data).__name__}), expected a dense array; pass {what}.toarray()")
    rows = data if isinstance(data, list | tuple) else (data,)
    if any(isinstance(row, np.ma.MaskedArray) and np.ma.is_masked(row) for row in rows):
        raise TypeError(
            f"{what} is a masked array; masked values would be ignored: fill them, {what}.filled(value), or drop them"
        )
    try:
        array = np.asarray(data)
    except ValueError as error:
        if "inhomogeneous" in str(error) or "sequence" in str(error):
            raise ValueError(f"{what} has rows of unequal length; expected (n, columns)") from None
        raise ValueError(f"{what} cannot be read as an array of numbers: {_reason(error)}") from None
    except Exception as error:  # whatever an object's __array__ raises: a tensor on another device, a data set
        raise TypeError(f"{what} ({type(data).__name__}) cannot be read as an array: {_reason(error)}") from None
    if array.dtype.kind in "OUS" and array.ndim == 0:
        hint = "; call its collect() first" if hasattr(data, "collect") else ""
        raise TypeError(f"{what} must be an array of numbers (n, columns), got a {type(data).__name__}{hint}")
    if array.dtype.kind in "US" and isinstance(data, list | tuple):
        return np.asarray(data, dtype=object)  # numpy made text of the numbers as well; the error names the text
    return array


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:150] or type(error).__name__


def _borrow(array: npt.NDArray[Any]) -> Storage:
    """A tensor on the same memory where torch accepts it, because torch gathers rows with all threads."""
    size = array.dtype.itemsize
    readable = array.dtype.isnative and array.dtype.kind != "V" and all(s >= 0 and s % size == 0 for s in array.strides)
    indexable = array.dtype.kind != "u" or size == 1  # torch cannot gather uint16 and wider
    if isinstance(array, np.memmap) or not (readable and indexable and array.flags.writeable):
        return array
    return torch.from_numpy(array)
