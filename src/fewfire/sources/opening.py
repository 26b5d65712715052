"""From what a person points at to a source."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fewfire.contracts import Source
from fewfire.disk import one_line
from fewfire.sources.arrays import ArraySource
from fewfire.sources.registry import KINDS, Kind
from fewfire.sources.views import Pairs, Views
from fewfire.sources.windows import cut_windows

__all__ = ["open_source"]


def open_source(
    data: Any,
    *,
    kind: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    views: Any = None,
    view_names: Any = None,
    target: Any = None,
    **options: Any,
) -> Source:
    """A source from whatever holds the data.

    Parameters
    ----------
    data
        The name of a built-in data set, a path, an array or tensor, or a source, which is handed through. A
        string that equals a built-in name always means the built-in, so that a command does the same in every
        folder; a file of that name is ``"./digits"`` or ``Path("digits")``.
    kind
        The kind of a path whose ending does not tell, one of ``KINDS``.
    window, stride
        Rows become windows of so many consecutive rows, one every ``stride`` (1) rows: see :func:`cut_windows`.
    views, view_names
        More views of the same rows, a list, and what they and ``data``, the first, are called: see :class:`Views`.
    target
        What to reconstruct from the rows: see :class:`Pairs`. A view or a target is what ``data`` may be, or
        ``{"path": ..., option: value}`` for one that takes options of its own.
    options
        For whatever opens the data, such as ``size=12`` for "patches".

    Raises
    ------
    FileNotFoundError
        There is nothing at that path.
    TypeError
        ``data`` is none of these.
    ValueError
        The kind is unknown, an option is, or the data cannot be used.
    """
    if target is not None:
        rows = open_source(data, kind=kind, window=window, stride=stride, views=views, view_names=view_names, **options)
        return Pairs(rows, _open_another(target, "target"))
    if views is not None:
        first = open_source(data, kind=kind, window=window, stride=stride, **options)
        more = views if isinstance(views, list | tuple) else [views]
        return Views([first, *(_open_another(view, f"view {i}") for i, view in enumerate(more, 1))], view_names)
    if view_names is not None:
        raise ValueError(f"view_names={view_names!r:.60} are names of views; say which they are with views=[...]")
    if window is not None:
        return cut_windows(open_source(data, kind=kind, **options), window, 1 if stride is None else stride)
    if stride is not None:
        raise ValueError(f"stride={stride!r} is the distance of windows; say how long they are with window=...")
    return _open_whole(data, kind, options)


def _open_whole(data: Any, kind: str | None, options: dict[str, Any]) -> Source:
    """All of one data set's rows, as they are: neither windows of them nor views beside them."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of data {kind!r}; choose from: {', '.join(sorted(KINDS))}")
    if isinstance(data, str) and data in KINDS and KINDS[data].accepts is None and kind in (None, data):
        return _call(KINDS[data].open, data, (), options)
    if isinstance(data, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/|file:", data) and not Path(data).exists():
        raise ValueError(f"{data:.80} is an address, and nothing is fetched; download it, and name the file")
    if isinstance(data, str | Path):
        path = Path(data)
        return _call(_kind_of(path, kind).open, str(data), (path,), options)
    if kind is not None:
        raise ValueError(f"kind={kind!r} is for paths; this is a {type(data).__name__}")
    if hasattr(data, "batches"):
        if options:
            raise ValueError(f"a source is handed through as it is and takes no options, got {_names(options)}")
        source: Source = data
        return source
    if not hasattr(data, "__array__") and not hasattr(data, "toarray") and not isinstance(data, list | tuple):
        raise TypeError(f"cannot read data from a {type(data).__name__}; expected {_supported()}")
    return _call(ArraySource, "an array", (data,), options)


def _open_another(given: Any, what: str) -> Source:
    """A source that stands beside another, with options of its own if it is a mapping. Errors say which it is."""
    options = dict(given) if isinstance(given, Mapping) else {"path": given}
    if "path" not in options or "data" in options:
        names = one_line(", ".join(map(str, options)) or "nothing", 80)
        raise ValueError(f"{what}: expected a path, or {{path: ..., option: value}}; got {names}")
    path = options.pop("path")
    try:
        return open_source(path, **{str(name): value for name, value in options.items()})
    except (FileNotFoundError, TypeError, ValueError) as error:
        kind = next(k for k in (FileNotFoundError, TypeError, ValueError) if isinstance(error, k))
        raise kind(f"{what}: {error}") from None


def _kind_of(path: Path, kind: str | None) -> Kind:
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}; expected {_nameable()}")
    if kind is not None and KINDS[kind].accepts is not None:
        return KINDS[kind]
    for candidate in KINDS.values():
        if kind is None and candidate.accepts is not None and candidate.accepts(path):
            return candidate
    if path.is_dir() and not any(path.iterdir()):
        raise ValueError(f"the folder {path} is empty; expected {_nameable()}")
    raise ValueError(f"cannot tell how to read {path}; expected {_nameable()}")


def _call(opener: Callable[..., Source], what: str, args: tuple[Any, ...], options: dict[str, Any]) -> Source:
    allowed = list(inspect.signature(opener).parameters)[len(args) :]
    if unknown := {name: value for name, value in options.items() if name not in allowed}:
        takes = ", ".join(allowed) or "nothing"
        close = difflib.get_close_matches(next(iter(unknown)), allowed, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{what} has no option {_names(unknown)}; it takes: {takes}{hint}")
    return opener(*args, **options)


def _names(options: dict[str, Any]) -> str:
    return ", ".join(map(repr, options))


def _supported() -> str:
    return f"{_nameable()}, an array or tensor (n, columns), or a Source"


def _nameable() -> str:
    """What can be said in words, on the command line too."""
    names = ", ".join(name for name, kind in KINDS.items() if kind.accepts is None)
    paths = ", ".join(kind.label for kind in KINDS.values() if kind.accepts is not None)
    return f"a built-in name ({names}), a path to {paths}"
