"""Windows of a time series: rows made of consecutive rows."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import accumulate, pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from fewfire.contracts import Layout, Source
from fewfire.sources.arrays import ArraySource
from fewfire.sources.blocks import PIECE_BYTES, BlockReader, BlockSource, Rows
from fewfire.sources.indexed import IndexedSource

__all__ = ["cut_windows"]

RUN_BYTES = 32 << 20
"""of rows that are read together at least: the rows that the last windows of a run need are read again for the next"""


def cut_windows(source: Source, window: int, stride: int = 1) -> Source:
    """A source whose rows are windows of ``window`` consecutive rows of another: (columns, window).

    Row i covers the rows ``i * stride`` to ``i * stride + window - 1``; what is left at the end of the data is in
    none. A column becomes a channel, and a row of the new source is (channels, length).

    A split holds out the end of the series, not a random part, because windows overlap: a random one would leave
    almost every held-out value in the training rows as well. Windows that share rows with the end are in neither
    part.

    Nothing is copied before a batch needs it. Of a file in blocks that does not fit into one pool (see
    :class:`BlockSource`), windows are read as its rows are, a block's windows going on into the next block.

    Parameters
    ----------
    source
        A table: an array, a ``.npy``, Parquet or CSV file, a sparse matrix. Not a part of a split.
    window
        Rows of a window.
    stride
        Rows from the beginning of one window to that of the next.

    Raises
    ------
    ValueError
        The rows are not flat, there are fewer than one window takes, or this source cannot be cut.
    """
    for name, value in (("window", window), ("stride", stride)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"expected {name} to be a whole number of rows, at least 1; got {value!r}")
    label = getattr(source, "name", "the source")
    if len(source.row_shape) != 1 or source.target_shape != source.row_shape:
        raise ValueError(f"windows are cut from a table; {label} has rows of shape {source.row_shape}")
    if source.n_rows is not None and source.n_rows < window:
        raise ValueError(f"a window of {window} rows needs as many; {label} has {source.n_rows}")
    if isinstance(source, BlockSource) and source.is_whole:
        if not source.fits:
            return _WindowBlockSource(source, _WindowReader(source.reader, window, stride))
        (batch,) = source.batches(len(source), shuffle=False)
        return _WindowSource(ArraySource(batch.x), window, stride, of=source)
    if isinstance(source, IndexedSource) and source._index is None:
        if source.has_target:
            raise ValueError(
                f"{label} has a target beside its rows; windows are cut from rows that are their own target"
            )
        return _WindowSource(source, window, stride, of=source)
    raise ValueError(f"windows cannot be cut from {label}: it is a part of a split, or knows no row by its number")


def _series(of: Any, window: int) -> Layout:
    (channels,) = of.row_shape
    names = of.layout.columns if len(of.layout.columns) == channels else ()
    return Layout("series", (channels, window), names)


def _parts(n: int, fraction: float, window: int, stride: int, name: str) -> tuple[int, int]:
    """(end of the training windows, beginning of the held-out ones)."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be above 0 and below 1, got {fraction}; 0.1 is usual")
    held = max(round(n * fraction), 1)
    overlapping = -(-window // stride) - 1
    if n - held - overlapping < 1:
        raise ValueError(
            f"{name} has {n} windows; holding out {held} and the {overlapping} that overlap them leaves none to train "
            "on; take shorter windows, or a longer series"
        )
    return n - held - overlapping, n - held


# ------------------------------------------------------------------------------------------- of rows known by number


class _WindowSource(IndexedSource):
    """Windows of rows that can be asked for by number."""

    suggested_preprocess = None
    labels = None

    def __init__(self, rows: IndexedSource, window: int, stride: int, *, of: Any) -> None:
        self._rows, self._window, self._stride, self._of = rows, window, stride, of
        self.n_rows = self._count()
        self.name = of.name
        self.layout = _series(of, window)
        self.row_shape = self.target_shape = self.layout.shape

    def _count(self) -> int:
        return (len(self._rows) - self._window) // self._stride + 1

    def _gather(self, where: slice | Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(where, slice):
            last = (where.stop - 1) * self._stride + self._window
            rows = self._rows._gather(slice(where.start * self._stride, last))[0]
            x = rows.unfold(0, self._window, self._stride)
        else:
            each = where[:, None] * self._stride + torch.arange(self._window)
            rows = self._rows._gather(each.flatten())[0]
            x = rows.reshape(len(where), self._window, -1).transpose(1, 2).contiguous()
        return x, x

    def _hash(self, digest: Any) -> None:
        digest.update(f"windows {self._window} {self._stride} {self._of.fingerprint}".encode())

    def split(self, fraction: float, seed: int = 0) -> tuple[Self, Self]:
        """(the beginning, the last ``fraction`` of the windows), sharing no row of the series; see ``cut_windows``.

        Raises
        ------
        ValueError
            ``fraction`` is not between 0 and 1, or nothing would be left to train on.
        """
        n = len(self)
        end, begin = _parts(n, fraction, self._window, self._stride, self.name)
        return self._subset(torch.arange(end)), self._subset(torch.arange(begin, n))


# ------------------------------------------------------------------------------------------------- of rows in blocks


class _WindowBlockSource(BlockSource):
    """Windows of a file in blocks."""

    reader: _WindowReader

    def __init__(self, of: BlockSource, reader: _WindowReader) -> None:
        self._of = of
        layout = _series(of, reader.window)
        super().__init__(reader, name=of.name, layout=layout, shuffle_bytes=of.shuffle_bytes)

    def split(self, fraction: float, seed: int = 0) -> tuple[_WindowBlockSource, _WindowBlockSource]:
        """As that of windows in memory."""
        reader, n = self.reader, len(self)
        end, begin = _parts(n, fraction, reader.window, reader.stride, self.name)
        parts = (reader.between(0, end), reader.between(begin, n))
        return _WindowBlockSource(self._of, parts[0]), _WindowBlockSource(self._of, parts[1])


class _WindowReader:
    """The windows ``first`` to ``last - 1`` of a reader's rows, as a BlockReader. A block is a run of its blocks."""

    def __init__(self, rows: BlockReader, window: int, stride: int, first: int = 0, last: int | None = None) -> None:
        self._rows, self.window, self.stride, self.first_row = rows, window, stride, first
        self._begins = [0, *accumulate(rows.block_rows)]
        self._last = (self._begins[-1] - window) // stride + 1 if last is None else last
        self.dtype = rows.dtype
        self.row_shape = (rows.row_shape[0], window)
        self._runs = self._long_enough()
        starts = [self._first_in(block) for block in [*self._runs, len(rows.block_rows)]]
        self._spans = list(pairwise(starts))
        self.block_rows = [last - first for first, last in self._spans]

    def between(self, first: int, last: int) -> _WindowReader:
        """These of my windows, counted from my first."""
        return _WindowReader(self._rows, self.window, self.stride, self.first_row + first, self.first_row + last)

    def _long_enough(self) -> list[int]:
        """The first block of each run."""
        enough = RUN_BYTES // (self._rows.row_shape[0] * self.dtype.itemsize)
        runs = [0]
        for block, begin in enumerate(self._begins[:-1]):
            if begin - self._begins[runs[-1]] >= enough:
                runs.append(block)
        return runs

    def _first_in(self, block: int) -> int:
        """The first window that begins in this block of rows, or after it."""
        return min(max(-(-self._begins[block] // self.stride), self.first_row), self._last)

    def read(self, block: int) -> Generator[Rows, None, None]:
        first, last = self._spans[block]
        step = max(PIECE_BYTES // (self.row_shape[0] * self.window * self.dtype.itemsize), 1)
        held = np.empty((0, self.row_shape[0]), self.dtype)
        passed = 0  # rows between windows, when the stride is longer than a window, that are still to come
        for piece in self._between(self._runs[block], first * self.stride, (last - 1) * self.stride + self.window):
            held = np.concatenate([held, piece[passed:]])
            passed = max(passed - len(piece), 0)
            if len(held) < self.window:
                continue
            windows = sliding_window_view(held, self.window, axis=0)[:: self.stride]
            for i in range(0, len(windows), step):
                yield windows[i : i + step]
            used = len(windows) * self.stride
            passed, held = max(used - len(held), 0), held[used:]

    def _between(self, block: int, first: int, last: int) -> Iterator[Rows]:
        """The rows ``first`` to ``last - 1``, from the beginning of a block on."""
        at = self._begins[block]
        while at < last:
            with closing(self._rows.read(block)) as pieces:
                for piece in pieces:
                    yield piece[max(first - at, 0) : max(last - at, 0)]
                    at += len(piece)
                    if at >= last:
                        return
            block += 1

    def digest(self) -> str:
        return f"windows {self.window} {self.stride} {self.first_row} {self._last} {self._rows.digest()}"
