"""Arrays of whatever numpy can hold, as arrays of real numbers or as a refusal that names the cell."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from fewfire.rows.finite import place
from fewfire.rows.gather import BFLOAT16

__all__ = ["as_real", "is_missing"]

_MISSING = ("NAType", "NaTType")
"""pandas.NA and NaT, told by their names: pandas is not imported"""
_DATES = {"M": "datetime64", "m": "timedelta64"}


def is_missing(label: Any) -> bool:
    """Whether a label is none: None, no text, NaN, or what pandas writes where a cell is empty."""
    return label is None or type(label).__name__ in _MISSING or bool(label != label) or label == ""


def as_real(array: npt.NDArray[Any], what: str, columns: Sequence[str] = ()) -> npt.NDArray[Any]:
    """The array itself where it holds real numbers; Python objects as float64, None and NA among them as NaN.

    Raises
    ------
    TypeError
        Dates, text, complex numbers, fields, or an object that is no real number.
    ValueError
        A number that float64 cannot hold.
    """
    kind = array.dtype.kind
    if kind in "biuf" or array.dtype == BFLOAT16:
        return _as_double(array, what, columns) if array.dtype.itemsize > 8 else array
    if kind == "O":
        return _from_objects(array, what, columns)
    if kind in _DATES:
        raise TypeError(f"{what} is {_DATES[kind]} in every column; convert to numbers first")
    if kind == "c":
        raise TypeError(f"{what} holds complex numbers, expected real ones; pass real and imaginary parts as columns")
    if array.dtype.names:
        fields = ", ".join(map(repr, array.dtype.names))
        raise TypeError(
            f"{what} is a structured array with the fields {fields:.100}, expected a plain one of numbers; "
            "numpy.lib.recfunctions.structured_to_unstructured makes it one"
        )
    if not array.size:
        raise TypeError(f"{what} must hold real numbers, got dtype {array.dtype}")
    raise _refusal(array, 0, what, columns)


def _as_double(array: npt.NDArray[Any], what: str, columns: Sequence[str]) -> npt.NDArray[np.float64]:
    """From a wider float; what overflows would become infinity without a word."""
    with np.errstate(over="ignore"):
        double = np.asarray(array).astype(np.float64)
    lost = np.isinf(double) & np.isfinite(array)
    if lost.any():
        raise _refusal(array, int(np.flatnonzero(lost)[0]), what, columns)
    return double


def _from_objects(array: npt.NDArray[Any], what: str, columns: Sequence[str]) -> npt.NDArray[np.float64]:
    found = [_number(value) for value in array.flat]
    if None in found:
        raise _refusal(array, found.index(None), what, columns)
    return np.array(found, dtype=np.float64).reshape(array.shape)


def _number(value: Any) -> float | None:
    """As a float, NaN for a missing value; None: it is no real number, or one beyond float64."""
    if isinstance(value, float):
        return float(value)
    if value is None or type(value).__name__ == "NAType":
        return math.nan
    if not (value.dtype.kind in "biuf" if isinstance(value, np.generic) else isinstance(value, numbers.Real | Decimal)):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):  # an integer beyond float64; Decimal("sNaN")
        return None
    return None if math.isinf(number) and value not in (math.inf, -math.inf) else number


def _refusal(array: npt.NDArray[Any], position: int, what: str, columns: Sequence[str]) -> TypeError | ValueError:
    """What stands at this position of the flattened array, and that it should not."""
    value = array.flat[position]
    row_shape = array.shape[1:]
    where = place(*divmod(position, math.prod(row_shape)), row_shape, columns)
    if isinstance(value, numbers.Real | Decimal):
        return ValueError(f"{what}: {where} holds {_quoted(value)}, beyond what float64 can hold (1.8e308); rescale it")
    if isinstance(value, np.str_ | np.bytes_):
        value = value.item()
    return TypeError(
        f"{what} must hold real numbers; {where} holds {_quoted(value)} ({type(value).__name__}); convert it or drop it"
    )


def _quoted(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
