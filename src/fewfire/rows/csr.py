"""Sparse matrices of scipy, as rows that become dense a batch at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fewfire.rows.cells import as_real
from fewfire.rows.gather import compute_dtype

__all__ = ["MAX_COLUMNS", "as_csr"]

MAX_COLUMNS = 1 << 24
"""A dense row of this many takes 64 MiB; a damaged file can claim any number."""


def as_csr(data: Any, what: str) -> Any:
    """Any sparse matrix or array of scipy as a ``csr_array`` of float32 or float64, in canonical form.

    The caller's arrays are shared where they are that already, and never written to. Entries given twice are
    summed, as scipy does; zeros that are stored stay.

    Raises
    ------
    TypeError
        It holds complex numbers.
    ValueError
        It is not two-dimensional, too wide to become dense, or its indices point outside.
    """
    from scipy import sparse  # not at the top: a tenth of a second, for those who have one

    data = data if sparse.issparse(data) else data.tocsr()
    if data.ndim != 2:
        raise ValueError(f"{what} must be (n, columns), got a sparse array of shape {tuple(data.shape)}")
    if data.shape[1] > MAX_COLUMNS:
        raise ValueError(f"{what} has {data.shape[1]:,} columns; at most {MAX_COLUMNS:,} can be made dense")
    if hasattr(data, "check_format"):  # before anything follows the indices: scipy's C++ does not look
        try:
            data.check_format(full_check=True)
        except ValueError as error:
            raise ValueError(f"{what} is damaged: {' '.join(str(error).split())}") from None
    csr = sparse.csr_array(data)
    values = as_real(csr.data, f"the stored values of {what}")
    dtype = np.float32 if compute_dtype(values) == torch.float32 else np.float64
    csr = sparse.csr_array((values.astype(dtype, copy=False), csr.indices, csr.indptr), shape=csr.shape)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    return csr
