"""Columns of a table: which are read, by name; none that holds no numbers; and as rows."""

from __future__ import annotations

import difflib
import json
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["NEEDED", "Names", "also_without", "as_matrix", "choose", "on_the_command_line", "refuse_text"]

Names = Iterable[Any] | str | int | float | None
"""names as a configuration file gives them: 2019 may come as a number, and one name without a list"""

SHOWN = 5
"""names in an error message"""
MAX_HINT = 80
"""characters of names in a line to paste; of more, the reader is told how to write it"""
NEEDED = "these columns were asked for by name, and are needed: correct the file, or give one in which they are numbers"


def choose(names: Sequence[str], columns: Names, drop: Names, where: str) -> list[int]:
    """Positions of the columns to read: those named in ``columns``, in that order, or all, without those in ``drop``.

    A name that the table has twice must be asked for twice, and gives both.

    Raises
    ------
    ValueError
        A name is not in the table, is asked for another number of times than it is there, or nothing is left.
    """
    places: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        places.setdefault(name, []).append(position)
    wanted = list(names) if columns is None else _as_names(columns)
    dropped = set(_as_names(drop))
    _refuse_unknown([*wanted, *dropped], names, where)
    for name, count in Counter(wanted).items():
        if count != len(places[name]):
            raise ValueError(
                f"{where}: column {name!r} is there {len(places[name])} times and was asked for {count} times; "
                "rename it in the file, or take all columns"
            )
    chosen = [places[name].pop(0) for name in wanted if name not in dropped]
    if not chosen:
        raise ValueError(f"{where}: no column is left to read; it has {_listed(names)}")
    return chosen


def also_without(index: Sequence[str], drop: Names, why: str, where: str) -> list[str]:
    """``drop`` and a column that numbers the rows and says nothing of them; a warning says so."""
    warnings.warn(f"{where}: column {index[0]!r} {why}; it is left out, columns=[...] reads it", stacklevel=6)
    return [*_as_names(drop), *index]


def refuse_text(found: Mapping[str, str], where: str, advice: str | None = None) -> None:
    """One error for all columns that hold no numbers. ``found``: what each holds, by its name."""
    if not found:
        return
    what = ", ".join(f"{name!r:.40} ({holds:.50})" for name, holds in list(found.items())[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    if advice is None:
        names = f"[{', '.join(map(_in_yaml, found))}]"
        names = names if len(names) <= MAX_HINT else "[...]"
        advice = f"leave them out: drop=[...], on the command line {on_the_command_line('drop', names)}"
    raise ValueError(f"{where}: expected numbers in every column, got {what:.170}{more}; {advice}")


def on_the_command_line(option: str, value: str) -> str:
    """``--set "data.options.drop=[a, b]"``, as a shell and then YAML read it. ``value`` is YAML."""
    setting = f"data.options.{option}={value}"
    plain = not re.search(r'["$`\\!]', setting)
    return f'--set "{setting}"' if plain else f"--set {shlex.quote(setting)}"


def _in_yaml(name: str) -> str:
    """A name that YAML takes for this text and nothing else."""
    if name.isidentifier() and name.isascii() and name.lower() not in ("true", "false", "null"):
        return name
    return "'" + name.replace("'", "''") + "'" if name.isprintable() else json.dumps(name)


def as_matrix(columns: Sequence[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Arrow arrays of one length as rows (n, columns); what is missing is NaN, what float64 cannot hold is rounded."""
    import pyarrow as pa

    kind = pa.from_numpy_dtype(dtype)
    cast = [column.cast(kind, safe=False) for column in columns]
    batch = pa.record_batch(cast, names=[str(i) for i in range(len(cast))])
    rows: npt.NDArray[Any] = batch.to_tensor(null_to_nan=True, row_major=True).to_numpy()
    return rows


def _as_names(given: Names) -> list[str]:
    if given is None:
        return []
    return [str(given)] if isinstance(given, str | int | float) else [str(name) for name in given]


def _refuse_unknown(wanted: Sequence[str], names: Sequence[str], where: str) -> None:
    known = set(names)
    unknown = [name for name in wanted if name not in known]
    if not unknown:
        return
    close = difflib.get_close_matches(unknown[0], names, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    missing = ", ".join(map(repr, unknown[:SHOWN]))
    raise ValueError(f"{where} has no column {missing:.120}{hint or f'; it has {_listed(names)}'}")


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names):,} in all)" if len(names) > SHOWN else ""
    return f"{', '.join(map(repr, names[:SHOWN])):.200}{more}"
