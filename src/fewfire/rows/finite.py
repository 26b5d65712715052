"""Where a value stands, in words, and values that are none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["all_finite", "check_finite", "place"]


def check_finite(x: Tensor, what: str = "x", numbers: Tensor | None = None, columns: Sequence[str] = ()) -> None:
    """Refuse NaN and infinity, naming the first value that is one.

    Parameters
    ----------
    x
        (B, *row shape).
    numbers
        (B,) what the rows are called, when they are a batch of a source.
    columns
        Names of the columns, where they have some.

    Raises
    ------
    ValueError
        A value is not finite. The message names row, column, and how many such values there are.
    """
    if all_finite(x):
        return
    finite = torch.isfinite(x)
    wrong = ~finite.reshape(len(x), -1)
    row, column = wrong.nonzero()[0].tolist()
    kinds = [word for word, found in (("NaN", x.isnan()), ("infinity", x.isinf())) if found.any()]
    where = place(row if numbers is None else int(numbers[row]), column, tuple(x.shape[1:]), columns)
    among = f"{int(wrong.sum()):,} of {wrong.numel():,} values" + ("" if numbers is None else " of its batch")
    raise ValueError(f"{what} holds {' and '.join(kinds)}, first in {where}, {among}; fill it or drop the row")


def all_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinity. Their sum says it twenty times as fast, unless it overflows."""
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())


def place(row: int, column: int, row_shape: tuple[int, ...], columns: Sequence[str] = ()) -> str:
    """``row 3, column 2 ('f2')``; ``row 3, position (0, 1, 2)`` in a picture; ``row 3`` where a row is one value."""
    if not row_shape:
        return f"row {row}"
    if len(row_shape) > 1:
        return f"row {row}, position {tuple(int(i) for i in np.unravel_index(column, row_shape))}"
    name = f" ({columns[column]!r:.60})" if len(columns) == row_shape[0] else ""
    return f"row {row}, column {column}{name}"
