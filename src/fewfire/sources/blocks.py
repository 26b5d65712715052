"""Tables that may be larger than memory: read a block at a time, shuffled a pool at a time, one pool ahead."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from threading import Event
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire import rng
from fewfire.contracts import Batch, Layout
from fewfire.preprocess import Spec
from fewfire.rows import take
from fewfire.sources.ahead import ahead

__all__ = ["PIECE_BYTES", "SHUFFLE_BYTES", "BlockReader", "BlockSource", "Rows"]

SHUFFLE_BYTES = 256 << 20
PIECE_BYTES = 4 << 20
"""of rows that a reader hands over at once, about"""

Rows = npt.NDArray[Any]
"""(n, *row shape) float32 or float64; or float16, of which a pool holds twice as many, and a batch is float32"""
Positions = npt.NDArray[np.int64]


class BlockReader(Protocol):
    """What a kind of file must say of itself. :class:`BlockSource` does everything else.

    A block is what can be read without what stands before it: a row group, some megabytes of lines. It may be
    larger than memory, because it is handed over in pieces.
    """

    @property
    def row_shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 where it holds every value exactly, else float64; float16 where the file has nothing else."""
        ...

    @property
    def block_rows(self) -> Sequence[int]:
        """Rows of each block."""
        ...

    @property
    def first_row(self) -> int:
        """Number of the first row; not 0 for the later part of a series."""
        ...

    def read(self, block: int) -> Generator[Rows, None, None]:
        """The rows of a block, in order, in pieces of about ``PIECE_BYTES`` at most; no more and no fewer.

        Raises
        ------
        ValueError
            The file is damaged, or not the one that was opened. The message names it.
        """
        ...

    def digest(self) -> str:
        """What stands for the content: the file, and what is read of it."""
        ...


@dataclass(frozen=True)
class _Pool:
    """Rows in memory, and the order in which they are served; None: as they stand."""

    x: Tensor
    rows: Tensor
    order: Tensor | None

    def __len__(self) -> int:
        return len(self.rows if self.order is None else self.order)

    def take(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        where = slice(first, last) if self.order is None else self.order[first:last]
        return take(self.x, where), self.rows[where]


@dataclass(frozen=True)
class _Share:
    """What a pool holds of a block: all of my rows in it, or the ``part``-th of ``parts`` random shares of them."""

    block: int
    count: int
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class _Split:
    """One cut of the rows in two: how many of each block are held out, and which side this is."""

    seed: int
    held: tuple[int, ...]
    is_held: bool


class BlockSource:
    """A source over a file in blocks, which may be larger than memory.

    **The shuffle and its limit.** Every epoch takes the blocks in a random order, fills a pool of ``shuffle_bytes``
    with them, and shuffles the pool's rows exactly; then the next pool. So a row shares batches only with rows of
    its own pool, ``shuffle_window`` rows at most. A block larger than a pool is dealt out at random to several,
    for which it is read several times. A table that fits into one pool is shuffled whole, read once, and kept: it
    gives the batches that the same array would give.

    **Memory.** The pool in use and the one being read: about twice ``shuffle_bytes``, however large the file. The
    next pool is read by one background thread, which ends with the iterator; no number depends on it.

    Batches in natural order may be views of what is kept: do not write into them. NaN is allowed.

    Parameters
    ----------
    reader
        The file, as a :class:`BlockReader`.
    name
        A short label for people.
    layout
        How a person sees a row; by default a table without names.
    suggested_preprocess
        What suits these data; used when the configuration says nothing.
    shuffle_bytes
        Memory of a pool.

    Raises
    ------
    ValueError
        There are no rows, or the layout does not fit them. From the iterator: the file is damaged, or was changed
        after it was opened.
    """

    n_rows: int | None
    labels = None

    def __init__(
        self,
        reader: BlockReader,
        *,
        name: str = "blocks",
        layout: Layout | Mapping[str, Any] | None = None,
        suggested_preprocess: Spec = None,
        shuffle_bytes: int = SHUFFLE_BYTES,
    ) -> None:
        if not isinstance(shuffle_bytes, int) or shuffle_bytes < 1:
            raise ValueError(f"expected shuffle_bytes of at least 1, got {shuffle_bytes!r}; 268435456 is usual")
        self.reader = reader
        self.row_shape = self.target_shape = tuple(reader.row_shape)
        self.name = name
        self.suggested_preprocess = suggested_preprocess
        self.layout = Layout.from_dict(layout) if isinstance(layout, Mapping) else layout or Layout()
        self.layout.check(self.row_shape)
        self.shuffle_bytes = shuffle_bytes
        self._first = [reader.first_row, *accumulate(reader.block_rows, initial=reader.first_row)][1:-1]
        self._splits: tuple[_Split, ...] = ()
        self._set_counts(reader.block_rows)
        if not self.n_rows:
            raise ValueError(f"expected at least one row; {name} has none")

    def _set_counts(self, counts: Sequence[int]) -> None:
        self._counts = tuple(counts)  # my rows of each block
        self.n_rows = sum(self._counts)
        self._kept: _Pool | None = None

    def __len__(self) -> int:
        return sum(self._counts)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {len(self)} rows of {self.row_shape}>"

    @property
    def shuffle_window(self) -> int:
        """Rows of a pool at most; ``n_rows`` when the whole is shuffled exactly."""
        number_bytes = 16  # a row's number, and its place in the order
        row_bytes = math.prod(self.row_shape) * self.reader.dtype.itemsize + number_bytes
        return min(len(self), max(self.shuffle_bytes // row_bytes, 1))

    @property
    def is_whole(self) -> bool:
        """Whether these are all rows of the file, not one part of a split."""
        return not self._splits

    @property
    def fits(self) -> bool:
        """Whether one pool holds everything."""
        return self.shuffle_window == len(self)

    # ---------------------------------------------------------------------------------------------- batches

    def batches(
        self, batch_size: int, *, seed: int = 0, epoch: int = 0, start: int = 0, shuffle: bool = True
    ) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, ... of an epoch; pools before them are not read.

        The order is a function of (seed, epoch) alone; ``shuffle=False`` is the order of the file. Every row comes
        once; the last batch may be smaller.

        Raises
        ------
        ValueError
            ``batch_size`` below 1 or ``start`` below 0. From the iterator: as the class.
        """
        if batch_size < 1 or start < 0:
            raise ValueError(f"expected batch_size >= 1 and start >= 0, got {batch_size} and {start}")
        return self._batches(batch_size, seed, epoch, start * batch_size, shuffle)

    def _batches(self, size: int, seed: int, epoch: int, skip: int, shuffle: bool) -> Iterator[Batch]:
        if skip >= len(self):
            return
        if self.fits:
            yield from _rebatched(iter([self._whole(seed, epoch, shuffle)]), size, skip)
            return
        stop = Event()
        pools = self._pools(seed, epoch, skip, stop) if shuffle else self._in_order(skip, stop)
        with closing(ahead(pools, stop)) as read:
            yield from _rebatched(read, size)

    def _whole(self, seed: int, epoch: int, shuffle: bool) -> _Pool:
        if self._kept is None:
            everything = [_Share(block, count) for block, count in enumerate(self._counts) if count]
            self._kept = self._load(everything, seed, epoch, Event())
            _ = self.fingerprint  # of the file that was read, whatever becomes of it now
        kept = self._kept
        return _Pool(kept.x, kept.rows, rng.permutation(len(self), seed, epoch) if shuffle else None)

    def _pools(self, seed: int, epoch: int, skip: int, stop: Event) -> Generator[_Pool, None, None]:
        # Two pools' memory in turn: one in use, one being filled. Fresh memory for each costs more than reading it.
        rooms = [self._room(self.shuffle_window) for _ in range(2)]
        for number, shares in enumerate(self._deal(seed, epoch)):
            count = sum(share.count for share in shares)
            if skip < count:
                pool = self._load(shares, seed, epoch, stop, rooms[number % 2])
                if stop.is_set():
                    return
                order = rng.permutation(count, seed, epoch, "pool", number)
                yield _Pool(pool.x, pool.rows, order[skip:])
                del pool
            skip = max(skip - count, 0)

    def _deal(self, seed: int, epoch: int) -> Iterator[list[_Share]]:
        """What each pool holds, the blocks in random order."""
        most = self.shuffle_window
        shares: list[_Share] = []
        room = most
        for block in rng.permutation(len(self._counts), seed, epoch, "blocks").tolist():
            count = self._counts[block]
            if count > room and shares:
                yield shares
                shares, room = [], most
            if count > most:
                parts = -(-count // most)
                ends = [count * part // parts for part in range(parts + 1)]
                yield from ([_Share(block, ends[i + 1] - ends[i], i, parts)] for i in range(parts))
            elif count:
                shares.append(_Share(block, count))
                room -= count
        if shares:
            yield shares

    def _room(self, count: int) -> Rows:
        return np.empty((count, *self.row_shape), self.reader.dtype)

    def _load(self, shares: Sequence[_Share], seed: int, epoch: int, stop: Event, room: Rows | None = None) -> _Pool:
        """The rows of these shares. Given up half-way when told to stop: nobody will see it then."""
        count = sum(share.count for share in shares)
        x = self._room(count) if room is None else room[:count]
        rows = np.empty(count, np.int64)
        at = 0
        for share in shares:
            for numbers, piece in self._read(share.block, self._dealt(share, seed, epoch)):
                x[at : at + len(piece)] = piece
                rows[at : at + len(piece)] = numbers
                at += len(piece)
                if stop.is_set():
                    break
        return _Pool(torch.from_numpy(x), torch.from_numpy(rows), None)

    def _in_order(self, skip: int, stop: Event) -> Generator[_Pool, None, None]:
        """The rows as they stand, some pieces at a time."""
        waiting: list[tuple[Positions, Rows]] = []
        for block, count in enumerate(self._counts):
            if skip < count:
                for numbers, piece in self._read(block, self._positions(block)[skip:]):
                    if stop.is_set():
                        return
                    waiting.append((numbers, piece))
                    if sum(piece.nbytes for _, piece in waiting) >= PIECE_BYTES:
                        yield _joined(waiting)
                        waiting = []
            skip = max(skip - count, 0)
        if waiting:
            yield _joined(waiting)

    def _read(self, block: int, positions: Positions) -> Iterator[tuple[Positions, Rows]]:
        """(row numbers, rows) of a block at rising positions, a piece at a time; no further than the last."""
        at, done = 0, 0
        with closing(self.reader.read(block)) as pieces:
            for piece in pieces:
                upto = int(np.searchsorted(positions, at + len(piece)))
                mine = positions[done:upto]
                if len(mine):
                    yield self._first[block] + mine, piece if len(mine) == len(piece) else piece[mine - at]
                at, done = at + len(piece), upto
                if done == len(positions):
                    return
        raise ValueError(f"{self.name}: block {block} ended after {at} rows, expected {self.reader.block_rows[block]}")

    def _positions(self, block: int) -> Positions:
        """Which rows of a block are mine, rising: all of them, but for splits."""
        positions: Positions = np.arange(self.reader.block_rows[block])
        for split in self._splits:
            order = rng.permutation(len(positions), split.seed, "split", block).numpy()
            held = split.held[block]
            positions = positions[np.sort(order[:held] if split.is_held else order[held:])]
        return positions

    def _dealt(self, share: _Share, seed: int, epoch: int) -> Positions:
        positions = self._positions(share.block)
        if share.parts == 1:
            return positions
        order: Positions = rng.permutation(len(positions), seed, epoch, "block", share.block).numpy()
        first = len(positions) * share.part // share.parts
        return np.asarray(positions[np.sort(order[first : first + share.count])])

    # ---------------------------------------------------------------------------------------------- subsets

    def split(self, fraction: float, seed: int = 0) -> tuple[Self, Self]:
        """(the rest, a random ``fraction`` of the rows), disjoint, each with at least one row.

        Every block gives its share, so both parts come from the whole file, and both stream. They keep the row
        numbers of the original in ``Batch.rows``.

        Raises
        ------
        ValueError
            ``fraction`` is not between 0 and 1, or there is only one row.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be above 0 and below 1, got {fraction}; 0.1 is usual")
        n = len(self)
        if n < 2:
            raise ValueError(f"a split needs at least 2 rows, {self.name} has {n}")
        count = min(max(round(n * fraction), 1), n - 1)
        upto = [before * count // n for before in accumulate(self._counts, initial=0)]
        held = tuple(last - first for first, last in pairwise(upto))
        return self._part(_Split(seed, held, is_held=False)), self._part(_Split(seed, held, is_held=True))

    def _part(self, split: _Split) -> Self:
        part = copy.copy(self)
        part.__dict__.pop("fingerprint", None)
        part._splits = (*self._splits, split)
        sizes = zip(self._counts, split.held, strict=True)
        part._set_counts([held if split.is_held else count - held for count, held in sizes])
        return part

    # ------------------------------------------------------------------------------------------ fingerprint

    def _fingerprint(self) -> str:
        """sha256 of the file, of what is read of it, and of what the order depends on."""
        digest = hashlib.sha256(self.reader.digest().encode())
        digest.update(f"{self.shuffle_window} {list(self.reader.block_rows)}".encode())
        for split in self._splits:
            digest.update(f"{split.seed} {split.held} {split.is_held}".encode())
        return digest.hexdigest()

    # On first use, because gigabytes take seconds; the protocol asks for an attribute, and it reads like one.
    fingerprint: str = cached_property(_fingerprint)  # type: ignore[assignment]


def _joined(pieces: Sequence[tuple[Positions, Rows]]) -> _Pool:
    numbers, rows = (np.concatenate(part) for part in zip(*pieces, strict=True))
    return _Pool(torch.from_numpy(rows), torch.from_numpy(numbers), None)


def _rebatched(pools: Iterator[_Pool], size: int, skip: int = 0) -> Iterator[Batch]:
    """Batches of one size from pools of any; a batch may straddle two or more. ``skip``: rows of the first pool."""
    held: list[tuple[Tensor, Tensor]] = []
    missing = size
    for pool in pools:
        at = skip
        skip = 0
        while at < len(pool):
            taken = pool.take(at, at + missing)
            held.append(taken)
            at += len(taken[1])
            missing -= len(taken[1])
            if not missing:
                yield _batch(held)
                held, missing = [], size
    if held:
        yield _batch(held)


def _batch(parts: Sequence[tuple[Tensor, Tensor]]) -> Batch:
    x, rows = parts[0] if len(parts) == 1 else (torch.cat(part) for part in zip(*parts, strict=True))
    return Batch(x, x, rows)
