"""Rows out of a storage, in the precision and at the addresses that products need."""

from __future__ import annotations

import mmap
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["BFLOAT16", "Storage", "aligned", "compute_dtype", "take"]

Storage: TypeAlias = Any
"""The caller's memory: a tensor; a numpy array where torch cannot borrow it; or a ``scipy.sparse.csr_array``."""

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""Marks a numpy array of bfloat16, which numpy has no type for, by its bits."""

CACHE_LINE = 64
"""bytes"""

_BEYOND_FLOAT32 = (torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64)


def compute_dtype(x: Tensor | npt.NDArray[Any]) -> torch.dtype:
    """The precision fewfire infers in: float32 where it holds every value of the dtype exactly, else float64.

    A column of whole numbers such as seconds since 1970 would lose its last digits in float32. float16 is raised
    before anything is squared or summed: in float16 a row of norm 1280 already overflows.
    """
    exact = x.dtype not in _BEYOND_FLOAT32 if isinstance(x, Tensor) else np.can_cast(x.dtype, np.float32)
    return torch.float32 if exact else torch.float64


def take(storage: Storage, where: slice | Tensor) -> Tensor:
    """These rows as float32 or float64, dense. A slice of a float tensor is a view.

    Raises
    ------
    OSError
        The rows are mapped from a file that has since become shorter.
    """
    if isinstance(storage, Tensor):
        if isinstance(where, Tensor) and storage.is_floating_point():
            rows = storage.index_select(0, where.to(storage.device))  # whole rows: ten times as fast as indexing
        else:
            rows = storage[where if isinstance(where, slice) else where.to(storage.device)]
        return rows.to(compute_dtype(rows))
    places = where if isinstance(where, slice) else where.numpy()
    if not isinstance(storage, np.ndarray):
        return torch.from_numpy(storage[places].toarray())
    _check_not_cut_short(storage)
    taken = np.asarray(storage[places])
    if taken.dtype == BFLOAT16:
        return torch.from_numpy((taken["bfloat16"].astype(np.uint32) << 16).view(np.float32))
    dtype = np.float32 if compute_dtype(taken) == torch.float32 else np.float64
    # A slice is the caller's memory, maybe read-only, which torch does not accept; a gather is ours already.
    ours = np.array(taken, dtype) if isinstance(where, slice) else taken.astype(dtype, copy=False)
    return torch.from_numpy(ours)


def _check_not_cut_short(array: npt.NDArray[Any]) -> None:
    """Reading a mapped page that its file has lost kills the process (SIGBUS); asking for the size costs nothing.

    What remains is a file that shrinks between this question and the reading.
    """
    if not isinstance(array, np.memmap):
        return
    whole: Any = array
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    mapped = whole.base
    if isinstance(mapped, mmap.mmap) and mapped.size() < whole.offset + whole.nbytes:
        raise OSError(
            f"{whole.filename} was cut short while it was being read: expected {whole.offset + whole.nbytes:,} bytes, "
            f"now it has {mapped.size():,}; write a new file and rename it instead"
        )


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
