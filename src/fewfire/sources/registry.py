"""The table of kinds of data that ``open_source`` knows.

A new kind of data is one function or class in one file of this folder, under one decorator, re-exported by
``sources/__init__.py``::

    @suffixes(".csv", ".tsv")
    class CsvSource: ...                    # CsvSource(path, **options)

    @folder("images", holds_images)
    def image_folder(path, **options): ...  # holds_images(path) -> bool

    @built_in
    def spiral(n=1000, **options): ...      # "spiral"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fewfire.contracts import Source

__all__ = ["KINDS", "Kind", "built_in", "folder", "suffixes"]

Opener = TypeVar("Opener", bound=Callable[..., Source])


@dataclass(frozen=True)
class Kind:
    """One kind of data: how it is recognised, and what opens it."""

    label: str
    """how an error message lists it"""
    open: Callable[..., Source]
    """(path, **options), or (**options) for a built-in"""
    accepts: Callable[[Path], bool] | None
    """whether an existing path is of this kind; None: found by name only"""


KINDS: dict[str, Kind] = {}
"""by the name that the ``kind`` option takes: "npy", "digits", ..."""


def suffixes(*endings: str) -> Callable[[Opener], Opener]:
    """Register what opens files with these endings, written ``".npy"``; the first one names the kind."""

    def register(opener: Opener) -> Opener:
        label = " or ".join(endings)
        KINDS[endings[0].lstrip(".")] = Kind(
            label, opener, lambda path: path.is_file() and path.suffix.lower() in endings
        )
        return opener

    return register


def folder(name: str, accepts: Callable[[Path], bool]) -> Callable[[Opener], Opener]:
    """Register what opens folders for which ``accepts(path)``; earlier registrations are asked first."""

    def register(opener: Opener) -> Opener:
        KINDS[name] = Kind(f"a folder of {name}", opener, lambda path: path.is_dir() and accepts(path))
        return opener

    return register


def built_in(opener: Opener) -> Opener:
    """Register a data set that comes with the installation, under the name of its function."""
    name = opener.__name__
    KINDS[name] = Kind(name, opener, None)
    return opener
