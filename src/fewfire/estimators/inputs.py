"""What people hand to an estimator: arrays, checked as scikit-learn checks them; paths, names and Sources."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data
from torch import Tensor

from fewfire.contracts import Layout, Source
from fewfire.rows import as_storage, check_finite, column_names
from fewfire.rows.tables import is_table, read_table
from fewfire.sources import ArraySource, open_source

__all__ = ["checked_clean", "checked_codes", "checked_rows", "names_data", "open_data", "output_dtype", "source_over"]

FLOATS = (np.float64, np.float32)
BLOCK = 1 << 20
"""values looked at together for NaN"""


# ---------------------------------------------------------------------------------------------- arrays


def checked_rows(estimator: Any, X: Any, *, reset: bool, min_rows: int = 1) -> Any:
    """(n, columns) finite real numbers, an ndarray or a CSR matrix; never a copy where none is needed.

    ``reset``: the estimator learns number and names of the columns; otherwise they must be those it has learned.

    Raises
    ------
    TypeError, ValueError
        In scikit-learn's words; and for what it lets pass: masked values, dates. NaN is named by row and column.
    """
    checks = {"accept_sparse": "csr", "ensure_all_finite": False, "ensure_min_samples": min_rows}
    if isinstance(X, Tensor):
        X = _from_torch(X)
    _refuse_what_scikit_learn_takes(X)
    names = column_names(X)
    if is_table(X):
        values = read_table(X, "X")
        validate_data(estimator, X, reset=reset, skip_check_array=True)
        X = check_array(values, input_name="X", estimator=estimator, dtype=_conversion(values), **checks)
    else:
        X = validate_data(estimator, X, reset=reset, dtype=_conversion(X), **checks)
    _check_finite(X, "X", names)
    return X


def _refuse_what_scikit_learn_takes(X: Any, what: str = "X") -> None:
    """Or refuses without naming it: nothing, masked values, dates, complex numbers, text, a name twice.

    Raises
    ------
    TypeError, ValueError
        What is wrong with X.
    """
    if X is None:
        raise ValueError(f"{what} is None; expected rows (n, columns)")
    if is_table(X):
        twice = [name for name, count in Counter(column_names(X)).items() if count > 1]
        if twice:
            raise ValueError(
                f"{what} has duplicate column names: {', '.join(twice[:5]):.100}; rename them, or pass the values"
            )
    if not isinstance(X, np.ndarray):
        return
    if X.dtype.kind == "c":
        raise ValueError(
            f"Complex data not supported: {what} has dtype {X.dtype}; pass real and imaginary parts as columns"
        )
    has_text = X.dtype.kind in "US" or (X.dtype.kind == "O" and any(isinstance(v, str | bytes) for v in X.flat))
    if has_text or np.ma.is_masked(X) or X.dtype.kind in "mM":
        as_storage(X, what)


def checked_codes(estimator: Any, Z: Any, n_components: int) -> Any:
    """(n, n_components) finite codes, an ndarray or a CSR matrix of float32 or float64."""
    if isinstance(Z, Tensor):
        Z = _from_torch(Z)
    elif is_table(Z):
        Z = read_table(Z, "Z")
    Z = check_array(Z, accept_sparse="csr", dtype=FLOATS, ensure_all_finite=False, input_name="Z", estimator=estimator)
    if Z.shape[1] != n_components:
        raise ValueError(
            f"Z has {Z.shape[1]} columns, but {type(estimator).__name__} has {n_components} components; "
            "expected what transform gives"
        )
    _check_finite(Z, "Z")
    return Z


def checked_clean(estimator: Any, clean: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """(n, columns) finite real numbers, one row for each noisy one; columns in the names and order of fit."""
    if names_data(clean):
        raise ValueError(
            f"expected clean to be rows in memory, got a {type(clean).__name__}; give a Source of pairs for X, such as "
            "fewfire.ArraySource(noisy, clean), or memory-mapped arrays"
        )
    if isinstance(clean, Tensor):
        clean = _from_torch(clean)
    _refuse_what_scikit_learn_takes(clean, "clean")
    Layout(columns=tuple(map(str, getattr(estimator, "feature_names_in_", ())))).check_columns(column_names(clean))
    values: Any = read_table(clean, "clean") if is_table(clean) else clean
    values = np.asarray(values.toarray() if sparse.issparse(values) else values)
    values = values.reshape(len(values), -1) if values.ndim > 2 else values
    checked = check_array(values, dtype=FLOATS, ensure_all_finite=False, input_name="clean", estimator=estimator)
    if checked.shape != shape:
        raise ValueError(f"expected clean to hold a row for each of X, {shape}; got {checked.shape}")
    _check_finite(checked, "clean", column_names(clean))
    return np.asarray(checked)


def source_over(X: Any, row_shape: tuple[int, ...], layout: Layout, target: Any = None) -> Source:
    """Checked rows, and targets if they are others, as a Source of this shape; sparse ones become dense by batches."""
    if len(row_shape) == 1:
        return ArraySource(X, target, layout=layout)
    shaped = (None if x is None else _dense(x).reshape(-1, *row_shape) for x in (X, target))
    return ArraySource(*shaped, layout=layout)


def _dense(X: Any) -> npt.NDArray[Any]:
    """A sparse matrix has no rows of two or three dimensions."""
    return np.asarray(X.toarray() if sparse.issparse(X) else X)


def output_dtype(X: Any) -> torch.dtype:
    """float32 for rows of float32 and narrower floats, float64 for all others, whole numbers among them."""
    return torch.float32 if X.dtype in (np.float32, np.float16) else torch.float64


def _from_torch(tensor: Tensor) -> Any:
    storage: Tensor = as_storage(tensor, "X") if tensor.ndim > 1 else tensor.detach()
    narrow = storage.dtype in (torch.bfloat16, torch.float16)
    return (storage.float() if narrow else storage).cpu().numpy()


def _conversion(X: Any) -> Any:
    """What check_array shall convert to; None for what float32 holds exactly, which batches take bit by bit."""
    narrow = isinstance(X, np.ndarray) and X.dtype.kind in "biuf" and X.dtype.itemsize <= 2
    return None if narrow else FLOATS


def _check_finite(X: Any, what: str, names: Sequence[str] = ()) -> None:
    if not isinstance(X, np.ndarray):
        finite = np.isfinite(X.data)
        if not finite.all():
            row = int(np.searchsorted(X.indptr, np.argmin(finite), side="right")) - 1
            check_finite(torch.from_numpy(X[[row]].toarray()), what, torch.tensor([row]), names)
        return
    step = max(1, BLOCK // X.shape[1])
    for first in range(0, len(X), step):
        block = X[first : first + step]
        if not np.isfinite(block).all():
            numbers = torch.arange(first, first + len(block)) if len(block) < len(X) else None
            check_finite(torch.from_numpy(block.astype(np.float64)), what, numbers, names)


# ---------------------------------------------------------------------------------------------- paths and Sources


def names_data(X: Any) -> bool:
    """Whether ``X`` says where the rows are, as a path, a built-in name or a Source, instead of holding them."""
    return isinstance(X, str | Path) or hasattr(X, "batches")


def open_data(estimator: Any, X: Any, *, reset: bool) -> Source:
    """A path, a name or a Source as a Source, its columns learned (``reset``) or compared with those learned.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        As ``open_source``; or the rows never end, have not fit's columns, or have targets other than themselves.
    """
    source = open_source(X)
    if source.n_rows is None:
        raise ValueError("X has no last row; expected data that end. fewfire.Trainer trains on endless ones")
    if tuple(source.target_shape) != tuple(source.row_shape):
        raise ValueError(
            f"X has rows of shape {tuple(source.row_shape)} and targets of {tuple(source.target_shape)}; an estimator "
            "reconstructs its own input, fewfire.Trainer any target"
        )
    width = math.prod(source.row_shape)
    names = source.layout.columns if source.layout.kind == "table" else ()
    if reset:
        estimator.n_features_in_ = width
        vars(estimator).pop("feature_names_in_", None)
        if names:
            estimator.feature_names_in_ = np.array(names, dtype=object)
    elif width != estimator.n_features_in_:
        raise ValueError(
            f"X has {width} features, but {type(estimator).__name__} is expecting {estimator.n_features_in_} features "
            "as input"
        )
    else:
        Layout(columns=tuple(map(str, getattr(estimator, "feature_names_in_", ())))).check_columns(names)
    return source
