"""JSON with one spelling when written, and no surprises when read."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

__all__ = ["MAX_DEPTH", "canonical_json", "deeper_than", "parse_json", "sha256_json", "sha256_text", "short"]

MAX_DEPTH = 32
"""Levels of nesting. A bomb of brackets would otherwise run Python's own parser into its recursion limit."""


def canonical_json(obj: Any) -> str:
    """``obj`` in the one canonical spelling of JSON: sorted keys, no spaces, ASCII.

    Raises
    ------
    ValueError
        ``obj`` holds something JSON has no word for: NaN, an infinity, a tensor, a key that is not text.
    """
    complaint = _not_json(obj, "")
    if complaint:
        raise ValueError(f"expected plain JSON values, got {complaint}; convert it first")
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_json(obj: Any) -> str:
    """Hexadecimal SHA-256 of the canonical JSON of ``obj``: equal for equal settings, in whatever order."""
    return sha256_text(canonical_json(obj))


def parse_json(data: bytes | str) -> Any:
    """Parse JSON that may come from a stranger, in time linear in its length.

    Raises
    ------
    ValueError
        Not UTF-8, not JSON, nested deeper than ``MAX_DEPTH``, a key twice in one object (which of them
        counts?), or a number that is not finite.
    """
    text = data.decode() if isinstance(data, bytes) else data
    if deeper_than(MAX_DEPTH, text):
        raise ValueError(f"JSON nested deeper than {MAX_DEPTH} levels")
    return json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)


def sha256_text(text: str) -> str:
    """Hexadecimal SHA-256 of ``text`` as UTF-8."""
    # surrogatepass: half a character, "\ud800" in a hostile file, must give a hash and not an error.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def short(value: object) -> str:
    """repr, on one line and of bounded length: for quoting what a stranger wrote."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# A string literal, perhaps one that never ends: were the closing quote required, a failed match would be
# tried again from the next quote, and the next, in quadratic time. `*+` gives nothing back, for that reason.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")


def deeper_than(limit: int, text: str) -> bool:
    """Whether JSON is nested deeper than ``limit`` levels, without parsing it."""
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub("", text)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > limit:
            return True
    return False


def _not_json(obj: Any, where: str) -> str | None:
    """What in ``obj`` is not JSON, and where; None: all of it is."""
    place = where or "the top"
    if obj is None or isinstance(obj, bool | int | str):
        return None
    if isinstance(obj, float):
        return None if math.isfinite(obj) else f"{obj} at {place}"
    if isinstance(obj, list | tuple):
        children = [(f"{where}[{i}]", value) for i, value in enumerate(obj)]
    elif isinstance(obj, dict):
        stranger = next((key for key in obj if not isinstance(key, str)), None)
        if stranger is not None:
            return f"the key {short(stranger)} in {place}"
        children = [(f"{where}.{key}" if where else key, value) for key, value in obj.items()]
    else:
        return f"a {type(obj).__name__} at {place}"
    return next(filter(None, (_not_json(value, inner) for inner, value in children)), None)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {short(key)} appears twice in one JSON object")
        found[key] = value
    return found


def _finite(literal: str) -> float:
    number = float(literal)  # reads the literals NaN and Infinity too
    if not math.isfinite(number):
        raise ValueError(f"the number {literal[:20]} is not finite")
    return number
