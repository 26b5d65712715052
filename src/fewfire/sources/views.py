"""Aligned sources: rows with targets of their own, for a transcoder, and several views of a row, for a crosscoder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewfire.contracts import Layout
from fewfire.disk import one_line
from fewfire.sources.arrays import ArraySource
from fewfire.sources.indexed import IndexedSource

__all__ = ["Pairs", "Views"]

MOST_NAMED = 1 << 16
"""columns; the names of more would fill the header of a model file"""


class Pairs(IndexedSource):
    """Rows of one source as inputs, and the rows of the same numbers of another as what is reconstructed from them.

    Such as a layer's input and its output: a model trained on them is a transcoder (Dunefsky et al. 2024,
    "Transcoders find interpretable LLM feature circuits"). What people see of a row, its name and its labels, is the
    input's. Nothing is copied before a batch needs it.

    Parameters
    ----------
    rows
        (n, *row shape), of any kind that knows its rows by number, or an array.
    target
        (n, *target shape), as ``rows``.

    Raises
    ------
    TypeError, ValueError
        One of them cannot be read, knows no row by its number, or has targets already; or they differ in their
        numbers of rows.
    """

    def __init__(self, rows: Any, target: Any) -> None:
        self._rows, self._target = _by_number(rows, "the data"), _by_number(target, "the target")
        _check_counts([self._rows, self._target])
        self.n_rows = len(self._rows)
        self.row_shape, self.target_shape = self._rows.row_shape, self._target.row_shape
        self.layout, self.name = self._rows.layout, self._rows.name
        self.suggested_preprocess = self._rows.suggested_preprocess
        self.suggested_preprocess_out = self._target.suggested_preprocess
        self.labels = _labels(self._rows)

    def _count(self) -> int:
        return len(self._rows)

    def _gather(self, where: slice | Tensor) -> tuple[Tensor, Tensor]:
        return _take(self._rows, where), _take(self._target, where)

    def _hash(self, digest: Any) -> None:
        digest.update(f"pairs {self._rows.fingerprint} {self._target.fingerprint}".encode())


class Views(IndexedSource):
    """Several views of the same things as one row each, such as the activations of several layers at a token.

    A model trained on them is a crosscoder (Lindsey et al. 2024, "Sparse crosscoders for cross-layer features and model
    diffing"): one set of latents that reads and writes all views. ``view_shares`` says which views a latent writes.

    Rows are (V, D) where all V views have D columns, else one view's columns after another's. Rows of a view that are
    not flat, such as pictures, are laid flat. Nothing is copied before a batch needs it.

    Parameters
    ----------
    views
        Two or more: arrays (n, columns), or sources that know their rows by number.
    names
        One a view, each different, without ":". By default those of the sources if they differ, else 0, 1, ...
        Columns are called ``name:column``, unless they are more than ``MOST_NAMED``.

    Raises
    ------
    TypeError, ValueError
        A view cannot be read, knows no row by its number, or has targets of its own; they differ in their numbers of
        rows; there are fewer than two; or the names do not fit.
    """

    suggested_preprocess = None  # column by column: whatever the scales of the views, each has the same say

    def __init__(self, views: Iterable[Any], names: Sequence[Any] | None = None) -> None:
        self._parts = [_by_number(view, f"view {i}") for i, view in enumerate(views)]
        if len(self._parts) < 2:
            raise ValueError(f"expected two views or more; got {len(self._parts)}")
        _check_counts(self._parts)
        self._names = _names(self._parts, names)
        self._widths = [math.prod(part.row_shape) for part in self._parts]
        self.n_rows = len(self._parts[0])
        same = len(set(self._widths)) == 1
        self.row_shape = self.target_shape = (len(self._parts), self._widths[0]) if same else (sum(self._widths),)
        self.name = "+".join(self._names)
        self.layout = Layout("table", columns=self._columns())  # (V, D) is no picture of V lines
        self.labels = _labels(self._parts[0])

    @property
    def views(self) -> list[tuple[str, slice]]:
        """(name, which of a row's columns, the row laid flat) of each view, in order."""
        ends = accumulate(self._widths, initial=0)
        return [(name, slice(*span)) for name, span in zip(self._names, pairwise(ends), strict=True)]

    def _columns(self) -> tuple[str, ...]:
        if sum(self._widths) > MOST_NAMED:
            return ()
        named = []
        for name, part, width in zip(self._names, self._parts, self._widths, strict=True):
            columns = part.layout.columns if len(part.layout.columns) == width else range(width)
            named += [f"{name}:{column}" for column in columns]
        return tuple(named)

    def _count(self) -> int:
        return len(self._parts[0])

    def _gather(self, where: slice | Tensor) -> tuple[Tensor, Tensor]:
        parts = [_take(part, where).flatten(1) for part in self._parts]
        x = torch.cat(parts, dim=1)  # of float32 and float64, float64
        x = x.reshape(len(x), *self.row_shape)
        return x, x

    def _hash(self, digest: Any) -> None:
        """Not the names: files that were renamed hold the same data."""
        digest.update(f"views {' '.join(part.fingerprint for part in self._parts)}".encode())


def _by_number(given: Any, what: str) -> IndexedSource:
    """A source that can be aligned with another."""
    if isinstance(given, str | Path):
        raise TypeError(f"{what}: expected an array or a source; open the file first: ff.open_source({str(given)!r})")
    source = given if hasattr(given, "batches") else ArraySource(given, name="array")
    label = getattr(source, "name", type(source).__name__)
    if not isinstance(source, IndexedSource):
        raise ValueError(
            f"{what}, {label!r:.60}: expected rows that can be asked for by number, as those of arrays, .npy, .npz, "
            f".safetensors and pictures; got a {type(source).__name__}; save it as .npy"
        )
    if type(source).split is not IndexedSource.split:  # a random part of windows would share rows with the others
        raise ValueError(f"{what}, {label!r:.60}: windows of a series overlap, and cannot be aligned with other rows")
    if source.has_target:
        raise ValueError(f"{what}, {label!r:.60}, has a target beside its rows; expected rows alone")
    return source


def _check_counts(parts: Sequence[IndexedSource]) -> None:
    if len({len(part) for part in parts}) > 1:
        counts = ", ".join(f"{part.name} has {len(part):,}" for part in parts)
        raise ValueError(f"expected as many rows in each, one for one; {counts:.200}")


def _take(part: IndexedSource, where: slice | Tensor) -> Tensor:
    """These rows of a source, which may be a part of a split."""
    return part._gather(where if part._index is None else part._index[where])[0]


def _labels(part: Any) -> Any:
    labels = getattr(part, "labels", None)
    return labels if labels is None or part._index is None else labels[part._index.numpy()]


def _names(parts: Sequence[IndexedSource], names: Sequence[Any] | None) -> list[str]:
    if names is None:
        known = [part.name.replace(":", "_") for part in parts]
        return known if len(set(known)) == len(parts) else [str(i) for i in range(len(parts))]
    wanted = [str(name) for name in names] if isinstance(names, list | tuple) else []
    if len(wanted) != len(parts) or len(set(wanted)) != len(parts) or any(":" in name or not name for name in wanted):
        raise ValueError(
            f"expected a name for each of the {len(parts)} views, all different and without ':'; got "
            f"{one_line(repr(names), 100)}"
        )
    return wanted
