"""JSON with one spelling when written, and no surprises when read."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from itertools import accumulate
from typing import Any

__all__ = [
    "MAX_DEPTH",
    "MAX_VALUES",
    "canonical_json",
    "check_size",
    "one_line",
    "parse_json",
    "sha256_json",
    "sha256_text",
    "short",
]

MAX_DEPTH = 32
"""Levels of nesting. A bomb of brackets would otherwise run Python's own parser into its recursion limit."""
MAX_VALUES = 1 << 18
"""Values in one text: room for every column name of a very wide table. Eight megabytes of `[],` would otherwise
become three hundred of lists."""
MAX_DIGITS = 100
"""Of a whole number: reading many digits takes the square of their number."""


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


def parse_json(data: bytes | str, max_values: int = MAX_VALUES) -> Any:
    """Parse JSON that may come from a stranger, in time and memory linear in its length.

    Raises
    ------
    ValueError
        Not UTF-8, not JSON, nested deeper than ``MAX_DEPTH``, of more than ``max_values`` values, a key twice in one
        object (which of them counts?), or a number that is not finite or endlessly long.
    """
    text = data.decode() if isinstance(data, bytes) else data
    check_size(text, max_values)
    return json.loads(text, object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite, parse_constant=_finite)


def sha256_text(text: str) -> str:
    """Hexadecimal SHA-256 of ``text`` as UTF-8."""
    # surrogatepass: half a character, "\ud800" in a hostile file, must give a hash and not an error.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def short(value: object) -> str:
    """repr, on one line and of bounded length: for quoting what a stranger wrote."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def one_line(text: object, limit: int = 200) -> str:
    """Words of an error that a stranger may have put together: one line, bounded, and nothing a terminal obeys."""
    line = " ".join(str(text).split())
    line = line if len(line) <= limit else f"{line[: limit - 3]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{},'))


def check_size(text: str, max_values: int = MAX_VALUES) -> None:
    """Refuse JSON that has too many values or is nested too deeply, without parsing it.

    Raises
    ------
    ValueError
        It has more than ``max_values`` values, or more than ``MAX_DEPTH`` levels.
    """
    data = text.encode("utf-8", "surrogatepass")
    data = data.replace(b"\\\\", b"").replace(b'\\"', b"")  # an escaped quote does not end a string
    marks = data.translate(None, _NOT_STRUCTURE)
    few = marks.count(b'"') <= 4 * max_values  # a value has at most a key and a string: splitting is safe
    outside = b"".join(marks.split(b'"')[::2]) if few else b""
    if not few or sum(map(outside.count, (b",", b"[", b"{"))) >= max_values:
        raise ValueError(f"JSON of more than {max_values} values")
    brackets = outside.replace(b",", b"")
    if max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0) > MAX_DEPTH:
        raise ValueError(f"JSON nested deeper than {MAX_DEPTH} levels")


def _not_json(obj: Any, where: str) -> str | None:
    """What in ``obj`` is not JSON, and where; None: all of it is."""
    place = where or "the top"
    if obj is None or isinstance(obj, bool | str):
        return None
    if isinstance(obj, int):
        return None if abs(obj) < 10 ** (MAX_DIGITS - 1) else f"a number of more digits than are read at {place}"
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
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {short(twice)} appears twice in one JSON object")
    return found


def _whole(literal: str) -> int:
    if len(literal) > MAX_DIGITS:
        raise ValueError(f"the number {literal[:20]}... has {len(literal)} digits")
    return int(literal)


def _finite(literal: str) -> float:
    number = float(literal)  # reads the literals NaN and Infinity too
    if not math.isfinite(number):
        raise ValueError(f"the number {literal[:20]} is not finite")
    return number
