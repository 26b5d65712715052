"""Columns of text in a table as columns of numbers: 1 where the row has the category, else 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fewfire.rows.cells import is_missing
from fewfire.rows.tables import column_names, read_column, refuse_dates, split_columns

__all__ = ["MAX_CATEGORIES", "Categories"]

MAX_CATEGORIES = 256
"""of one column; more are names or numbers of things, not kinds of them"""
MISSING = ""
"""the category of an empty cell"""


class Categories:
    """How the columns of a table become numbers.

    A column of numbers stays one. A column of text, or of pandas' or polars' categories, becomes a column for each
    category seen in ``fit``, in order of their text, an empty cell being one more category; and a last column for texts
    that were not seen, which is 0 wherever ``fit`` looked.

    Attributes
    ----------
    found
        For each column of the table: its categories, or None where it holds numbers.
    column_of
        (E,) int64, for each encoded column the number of the table's column it comes from.
    """

    def __init__(self, found: Sequence[Sequence[str] | None]) -> None:
        self.found = [None if labels is None else tuple(labels) for labels in found]
        widths = [1 if labels is None else len(labels) + 1 for labels in self.found]
        self.column_of = np.repeat(np.arange(len(widths)), widths)

    @classmethod
    def fit(cls, table: Any, what: str = "X") -> Categories:
        """Learn which columns hold text, and which.

        Raises
        ------
        TypeError, ValueError
            A column holds dates, things that are neither numbers nor text, or too many different texts.
        """
        refuse_dates(column_names(table), split_columns(table), what)
        found: list[tuple[str, ...] | None] = []
        for name, column in zip(column_names(table), split_columns(table), strict=True):
            labels = tuple(sorted(set(_texts(column)))) if _is_text(column) else None
            if labels is not None and len(labels) > MAX_CATEGORIES:
                raise ValueError(
                    f"{what}, column {name!r:.60}: {len(labels):,} different texts, expected at most {MAX_CATEGORIES} "
                    "categories; drop it, or group its texts into fewer"
                )
            found.append(labels)
        return cls(found)

    @property
    def is_plain(self) -> bool:
        """Whether there is no text at all: then the table is its own encoding."""
        return all(labels is None for labels in self.found)

    def __call__(self, table: Any, what: str = "X") -> npt.NDArray[np.float64]:
        """(n, E) float64.

        Raises
        ------
        TypeError
            A column that held numbers in ``fit`` holds something else.
        """
        parts: list[npt.NDArray[Any]] = []
        for labels, column, name in zip(self.found, split_columns(table), column_names(table), strict=True):
            if labels is None:
                parts.append(read_column(column, name, what).reshape(-1, 1))
                continue
            place = {label: i for i, label in enumerate(labels)}
            codes = np.array([place.get(text, len(labels)) for text in _texts(column)])
            parts.append(np.eye(len(labels) + 1)[codes])
        return np.concatenate(parts, 1).astype(np.float64)


def _is_text(column: Any) -> bool:
    """Whether a column is one of categories: by its type, or by the first cell that is not empty."""
    dtype = str(getattr(column, "dtype", getattr(column, "type", ""))).lower()
    if dtype.startswith(("cat", "enum", "dictionary")):
        return True
    values = np.asarray(column)
    if values.dtype.kind in "US":
        return True
    return values.dtype.kind == "O" and isinstance(next((v for v in values if not is_missing(v)), None), str)


def _texts(column: Any) -> list[str]:
    # pyarrow's own list: numpy's view of its dictionaries has a category in each empty cell
    values = column.to_pylist() if hasattr(column, "to_pylist") else np.asarray(column).tolist()
    return [MISSING if is_missing(value) else _text(value) for value in values]


def _text(value: Any) -> str:
    """Categories that are whole numbers come as floats from a column with empty cells."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
