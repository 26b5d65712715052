"""Tables with named columns: pandas, polars, pyarrow. None of them is imported; they are told by their methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fewfire.rows.cells import as_real

__all__ = ["column_names", "is_table", "read_column", "read_table", "refuse_dates", "split_columns"]

_NAMED = 5
"""columns named in an error"""


def is_table(data: Any) -> bool:
    """Whether the columns of ``data`` may have types of their own."""
    is_arrow = hasattr(data, "column_names") and hasattr(data, "columns")
    return _is_pandas(data) or hasattr(data, "get_columns") or is_arrow


def column_names(data: Any) -> tuple[str, ...]:
    """The columns' names as text, empty where there are none; the levels of a MultiIndex are joined by dots."""
    names = getattr(data, "column_names", None)
    if names is None:
        names = getattr(data, "columns", None)
    if names is None or callable(names):
        return ()
    return tuple(".".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in names)


def read_table(data: Any, what: str) -> npt.NDArray[Any]:
    """(n, columns) as float32 where it holds every column exactly, else float64; missing values are NaN.

    A pandas DataFrame of one numeric type is handed through without a copy where pandas allows it.

    Raises
    ------
    TypeError
        A column holds something else than numbers; dates are named together.
    ValueError
        A number that float64 cannot hold.
    """
    names = column_names(data)
    columns = split_columns(data)
    refuse_dates(names, columns, what)
    if _is_pandas(data) and all(isinstance(c.dtype, np.dtype) and c.dtype.kind in "iuf" for c in columns):
        return as_real(np.asarray(data), what, names)
    arrays = [read_column(column, name, what) for column, name in zip(columns, names, strict=True)]
    exact = all(np.can_cast(array.dtype, np.float32) for array in arrays)
    table = np.empty((len(data), len(arrays)), np.float32 if exact else np.float64)
    for i, array in enumerate(arrays):
        table[:, i] = array
    return table


def _is_pandas(data: Any) -> bool:
    return hasattr(data, "iloc") and hasattr(data, "columns")


def split_columns(data: Any) -> list[Any]:
    """The columns, each a series of its own library's."""
    if _is_pandas(data):
        return [data.iloc[:, i] for i in range(data.shape[1])]  # by position: names may repeat
    return list(data.get_columns() if hasattr(data, "get_columns") else data.columns)


def refuse_dates(names: Sequence[str], columns: Sequence[Any], what: str) -> None:
    """Name the columns of dates, if there are any, in one TypeError."""
    found = {name: kind for name, column in zip(names, columns, strict=True) if (kind := _kind_of_date(column))}
    if found:
        listed = ", ".join(map(repr, list(found)[:_NAMED])) + (", ..." if len(found) > _NAMED else "")
        kinds = " and ".join(sorted(set(found.values())))
        raise TypeError(f"{what}: column(s) {listed:.200} are {kinds}; convert to numbers first")


def _kind_of_date(column: Any) -> str | None:
    """By the name of the type, which all three libraries spell alike; a pandas category is not asked."""
    dtype = str(column.dtype if hasattr(column, "dtype") else getattr(column, "type", "")).lower()
    if dtype.startswith(("datetime", "date", "timestamp", "time32", "time64")) or dtype == "time":
        return "datetime64"
    return "timedelta64" if dtype.startswith(("timedelta", "duration")) else None


def read_column(column: Any, name: str, what: str) -> npt.NDArray[Any]:
    """(n,) real numbers of one column; missing values are NaN.

    Raises
    ------
    TypeError, ValueError
        It holds something else, or numbers that float64 cannot hold.
    """
    dtype = getattr(column, "dtype", None)
    if not isinstance(dtype, np.dtype) and getattr(dtype, "kind", "") in tuple("biuf"):  # pandas' nullable numbers
        plain = np.dtype(getattr(dtype, "numpy_dtype", np.float64))
        wanted = np.float32 if np.can_cast(plain, np.float32) else np.float64
        values = np.asarray(column.to_numpy(dtype=wanted, na_value=np.nan))
    else:
        values = np.asarray(column)
    return as_real(values, f"{what}, column {name!r:.60},")
