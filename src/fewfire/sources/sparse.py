"""Sparse matrices in ``.npz`` archives, as ``scipy.sparse.save_npz`` and ``fewfire encode`` write them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fewfire.rows import MAX_COLUMNS, as_real
from fewfire.sources.npy import NpyHeader

__all__ = ["holds_sparse", "read_sparse"]

Array = npt.NDArray[Any]
Load = Callable[[str], Array]


def holds_sparse(names: Collection[str]) -> bool:
    """Whether arrays of these names are the parts of a sparse matrix."""
    return {"format", "shape", "data"} <= set(names)


def read_sparse(headers: Mapping[str, NpyHeader], load: Load, budget: int | None) -> Any:
    """A ``csr_array`` out of its parts, each of which is checked before scipy follows it: its C++ does not look.

    Parameters
    ----------
    headers
        What the parts are, by name.
    load
        The part of this name.
    budget
        Bytes that may be made of what the file does not hold; None: any number.

    Raises
    ------
    TypeError, ValueError
        The parts do not make a matrix of real numbers in the format CSR, CSC or COO.
    """
    from scipy import sparse  # not at the top: see rows.csr

    kind = _read_format(headers, load)
    n, columns = _read_shape(headers, load)
    if not 0 < columns <= MAX_COLUMNS or n < 1:
        raise ValueError(f"its sparse matrix has shape ({n}, {columns}); expected 1 to {MAX_COLUMNS:,} columns")
    if kind != "csr" and budget is not None and 8 * n > budget:  # one offset a row, which the file does not hold
        raise ValueError(f"its sparse matrix claims {n:,} rows; if you trust it, pass allow_expansion=True")
    data = as_real(_read_vector("data", headers, load), "its data")
    data = data.astype(np.float32 if np.can_cast(data.dtype, np.float32) else np.float64, copy=False)
    if kind == "coo":
        row, column = (_read_indices(name, headers, load, size) for name, size in (("row", n), ("col", columns)))
        if not len(row) == len(column) == len(data):
            raise ValueError(f"its sparse matrix has {len(data)} values at {len(row)} rows and {len(column)} columns")
        return sparse.coo_array((data, (row, column)), shape=(n, columns)).tocsr()
    major, minor = (n, columns) if kind == "csr" else (columns, n)
    indptr = _read_indices("indptr", headers, load, len(data) + 1)
    indices = _read_indices("indices", headers, load, minor)
    if len(indptr) != major + 1 or indptr[0] != 0 or (np.diff(indptr) < 0).any() or len(indices) != len(data):
        raise ValueError(f"its sparse matrix is damaged: indptr does not divide {len(data)} values into {major} parts")
    used = int(indptr[-1])
    container = sparse.csr_array if kind == "csr" else sparse.csc_array
    return container((data[:used], indices[:used], indptr), shape=(n, columns)).tocsr()


def _read_format(headers: Mapping[str, NpyHeader], load: Load) -> str:
    header = headers["format"]
    if header.shape != () or header.dtype.kind not in "SU" or header.dtype.itemsize > 64:
        raise ValueError("its array 'format' does not name the format of a sparse matrix")
    value = load("format").item()
    kind = value.decode("latin1") if isinstance(value, bytes) else str(value)
    if kind not in ("csr", "csc", "coo"):
        raise ValueError(f"expected a sparse matrix in the format csr, csc or coo, got {kind!r:.20}; save x.tocsr()")
    return kind


def _read_shape(headers: Mapping[str, NpyHeader], load: Load) -> tuple[int, int]:
    header = headers["shape"]
    if header.shape != (2,) or header.dtype.kind not in "iu":
        raise ValueError("its array 'shape' is not the shape of a matrix")
    n, columns = load("shape").tolist()
    return n, columns


def _read_vector(name: str, headers: Mapping[str, NpyHeader], load: Load) -> Array:
    if name not in headers or len(headers[name].shape) != 1:
        raise ValueError(f"expected {name!r}, a vector, among the parts of its sparse matrix")
    return load(name)


def _read_indices(name: str, headers: Mapping[str, NpyHeader], load: Load, size: int) -> Array:
    """Whole numbers from 0 to below ``size``."""
    values = _read_vector(name, headers, load)
    if values.dtype.kind not in "iu":
        raise ValueError(f"expected {name!r} of its sparse matrix to be whole numbers, got {values.dtype}")
    if len(values) and not (values.min() >= 0 and values.max() < size):
        raise ValueError(f"{name!r} of its sparse matrix points outside its {size:,} places")
    return values.astype(np.int32 if values.dtype.itemsize <= 4 and size < 1 << 31 else np.int64, copy=False)
