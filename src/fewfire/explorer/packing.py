"""Numbers as JSON: arrays as base64 of their bytes, text that no parser can take for markup."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["packed", "plain", "rounded", "to_json"]


def to_json(value: Any) -> str:
    """Compact JSON of plain values, with ``<``, ``>`` and ``&`` escaped. ``plain`` makes them."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def packed(array: npt.NDArray[Any]) -> dict[str, Any]:
    """An array as ``{"dtype", "shape", "data"}``: base64 of its little-endian bytes in C order.

    ``dtype`` is numpy's: "u1", "i1", "u2", "i4", "f4".
    """
    small = np.ascontiguousarray(array)
    little = small.astype(small.dtype.newbyteorder("<"), copy=False)
    data = base64.b64encode(little.tobytes()).decode("ascii")
    return {"dtype": little.dtype.str[1:], "shape": list(small.shape), "data": data}


def rounded(value: float, digits: int = 5) -> float | None:
    """To so many significant digits; None where it is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def plain(value: Any) -> Any:
    """With numpy's numbers as Python's, and seven digits of each; null for what is not finite."""
    if isinstance(value, float):
        return rounded(value, 7)
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return plain(value.item()) if isinstance(value, np.generic) else value
