"""Parquet files: a block is a row group."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fewfire.contracts import Layout
from fewfire.preprocess import Spec
from fewfire.sources.blocks import PIECE_BYTES, SHUFFLE_BYTES, BlockSource, Rows
from fewfire.sources.columns import NEEDED, Names, also_without, as_matrix, choose, refuse_text
from fewfire.sources.fingerprint import FileState, file_digest
from fewfire.sources.footer import value_counts
from fewfire.sources.registry import suffixes

__all__ = ["ParquetSource"]

SMALL_BYTES = 64 << 20
"""rows that take no more than this are read, whatever their file's size"""
MAX_EXPANSION = 200
"""times its file's size that a table may take in memory"""
BUFFER_BYTES = 16 << 20
"""of compressed data at once, over all columns; whole column chunks of a large row group would not fit memory"""
MAX_PIECE_ROWS = 1 << 16
PANDAS_INDEX = re.compile(r"__index_level_\d+__")
CODES = ["indices", "values"]


@suffixes(".parquet")
class ParquetSource(BlockSource):
    """A ``.parquet`` file: a table of numbers, or one column whose every cell is a list of as many numbers.

    Numbers, booleans and decimals are read; what is missing becomes NaN. Rows come as float32 if all columns fit
    (float16, float32, booleans, integers of 8 and 16 bits), else as float64, to which wider integers and decimals
    are rounded. A column that pandas wrote for its index is left out, with a warning.

    How rows are shuffled and what memory is needed: :class:`BlockSource`, with a row group as a block. pandas and
    pyarrow write a million rows in one unless told otherwise; smaller ones are shuffled with less reading.

    Parameters
    ----------
    path
        The file.
    columns
        Names of the columns to read, in the order wanted; None: all, in the file's order. A column of lists must
        be the only one.
    drop
        Names of columns to leave out.
    layout, suggested_preprocess, shuffle_bytes
        As in :class:`BlockSource`; by default a table with the columns' names.
    allow_expansion
        Read a file whose rows take more than 64 MiB and 200 times its own size. Some honest ones do, such as a
        column that is always 0; a file made to fill the memory of whoever opens it does.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is not a Parquet file, is damaged, holds columns that are not numbers (the message names them), or
        expands too far.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        columns: Names = None,
        drop: Names = None,
        layout: Layout | Mapping[str, Any] | None = None,
        suggested_preprocess: Spec = None,
        shuffle_bytes: int = SHUFFLE_BYTES,
        allow_expansion: bool = False,
    ) -> None:
        reader = _RowGroups(Path(path), columns, drop, allow_expansion)
        super().__init__(
            reader,
            name=Path(path).stem,
            layout=Layout(columns=reader.names) if layout is None else layout,
            suggested_preprocess=suggested_preprocess,
            shuffle_bytes=shuffle_bytes,
        )


class _RowGroups:
    """The row groups of a file, as a BlockReader."""

    first_row = 0

    def __init__(self, path: Path, columns: Names, drop: Names, allow_expansion: bool) -> None:
        self._state = FileState.of(path)
        self._path = path
        self._metadata: Any = None
        self._buffer = BUFFER_BYTES
        with self._opened() as file, self._complaining():
            self._metadata, schema = file.metadata, file.schema_arrow
            self.block_rows = _row_counts(self._metadata)
            names: list[str] = schema.names  # a new list each time it is asked for, as types are
        index = [name for name in names if PANDAS_INDEX.fullmatch(name)]
        if columns is None and index:
            drop = also_without(index, drop, "is the index that pandas wrote", str(path))
        chosen = choose(names, columns, drop, str(path))
        kinds = [schema.field(i).type for i in chosen]
        self._list_of = _element(kinds[0]) if len(kinds) == 1 else None
        numbers = [self._list_of] if self._list_of is not None else kinds
        _refuse_others([names[i] for i in chosen], numbers, path, asked=columns is not None)
        self.dtype = np.dtype(np.float32 if all(map(_is_narrow, numbers)) else np.float64)
        self.names = tuple(names[i] for i in chosen) if self._list_of is None else ()
        with self._complaining():
            self.row_shape = (len(chosen) if self._list_of is None else self._list_length(names[chosen[0]]),)
        if not allow_expansion:
            self._refuse_expansion()
        # By name, unless names repeat and would not tell which: then everything is decoded, and these are taken.
        self._asked = [names[i] for i in chosen] if len(set(names)) == len(names) else None
        self._chosen: list[str] | list[int] = self._asked or chosen
        self._buffer = max(BUFFER_BYTES // len(names), 1 << 14)

    def read(self, block: int) -> Generator[Rows, None, None]:
        expected, seen = self.block_rows[block], 0
        with self._opened() as file:
            rows = max(PIECE_BYTES // (self.row_shape[0] * self.dtype.itemsize), 1)
            with self._complaining():
                batches = iter(file.iter_batches(min(rows, MAX_PIECE_ROWS), [block], self._asked, use_threads=False))
            try:
                while (piece := self._next(batches, block, seen)) is not None:
                    seen += len(piece)
                    if seen > expected:
                        break
                    yield piece
            finally:
                _release()
        if seen != expected:
            raise ValueError(
                f"{self._path} is damaged: row group {block} has other than the {expected:,} rows it states"
            )

    def digest(self) -> str:
        read = f"{self._chosen} {self.row_shape} {self.dtype}"
        return f"parquet {read} {file_digest(self._state)}"

    def _next(self, batches: Iterator[Any], block: int, seen: int) -> Rows | None:
        """The next rows, None after the last; whatever is wrong with them is said of this file."""
        with self._complaining():
            batch = next(batches, None)
            self._state.check()
            if batch is None:
                return None
            if self._list_of is not None:
                first = sum(self.block_rows[:block]) + seen
                return self._vectors(batch.column(self._chosen[0]), first)
            return as_matrix([batch.column(i) for i in self._chosen], self.dtype)

    def _vectors(self, lists: Any, first: int) -> Rows:
        """Lists of equal length as rows. ``first``: the number of the first row."""
        import pyarrow.compute as pc

        lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
        if (other := np.flatnonzero(lengths != self.row_shape[0])).size:
            found = lengths[other[0]]
            what = "no list" if found < 0 else f"a list of {found}"
            raise _NotRows(
                f"{self._path}: expected a list of {self.row_shape[0]} numbers in each row, row {first + other[0]} "
                f"holds {what}; drop such rows"
            )
        return as_matrix([lists.flatten()], self.dtype).reshape(-1, *self.row_shape)

    def _list_length(self, name: str) -> int:
        """How many values each list has, if all have as many: from the metadata, which reading then checks."""
        stored = [self._metadata.schema.column(i) for i in range(self._metadata.num_columns)]
        counts = value_counts(self._path)
        values = sum(
            count
            for column, count in zip(stored, counts, strict=True)
            if column.max_repetition_level == 1 and f"{column.path}.".startswith(f"{name}.")
        )
        n_rows = sum(self.block_rows)
        if values <= 0 or values % n_rows:
            raise _NotRows(
                f"{self._path}: column {name!r:.60} holds lists of different lengths, or none in some rows ({values:,} "
                f"values in {n_rows:,} rows); expected as many numbers in each"
            )
        return int(values // n_rows)

    def _refuse_expansion(self) -> None:
        """From the number of rows alone, before any is decoded: the sizes that the metadata state may lie."""
        needed, size = sum(self.block_rows) * self.row_shape[0] * self.dtype.itemsize, self._state.size
        if needed > SMALL_BYTES and needed > MAX_EXPANSION * size:
            raise ValueError(
                f"{self._path} has {size:,} bytes and would take {needed:,} as rows, {needed // size:,} times as many: "
                "a file made to fill memory looks like that; if you trust it, allow_expansion=True reads it"
            )

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self._complaining():
            raw = pa.OSFile(str(self._path), "rb")
        with raw:
            with self._complaining():
                file = pq.ParquetFile(
                    raw,
                    metadata=self._metadata,
                    pre_buffer=False,
                    buffer_size=self._buffer,
                    page_checksum_verification=True,
                    thrift_string_size_limit=16 << 20,
                    thrift_container_size_limit=1 << 20,
                )
            yield file

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        """Whatever is wrong is said in one line, of this file: pyarrow raises nearly anything on a damaged one."""
        try:
            yield
        except _NotRows:
            raise
        except Exception as error:
            self._state.check()  # a file written anew while it was read: that is then the reason
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{self._path} is not a readable Parquet file: {reason:.200}") from None


class _NotRows(ValueError):
    """Said already in a sentence of ours."""


def _release() -> None:
    """Give back what pyarrow's allocator keeps for later: after a large row group that is as much as a pool."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()


# ------------------------------------------------------------------------------------------------------------- columns


def _row_counts(metadata: Any) -> list[int]:
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
        raise ValueError("its row groups do not add up to the rows it states")
    if not sum(counts):
        raise ValueError("it has no rows")
    return counts


def _refuse_others(names: Sequence[str], kinds: Sequence[Any], path: Path, *, asked: bool) -> None:
    """One error for all columns that are not numbers."""
    if sorted(names) == CODES and all(_element(kind) is not None for kind in kinds):
        raise ValueError(
            f"{path} holds the codes that `fewfire encode` wrote, indices and values, not rows; "
            "expected the data that were encoded"
        )
    others = {name: _in_words(kind) for name, kind in zip(names, kinds, strict=True) if not _is_number(kind)}
    lists = [name for name, kind in zip(names, kinds, strict=True) if _element(kind) is not None]
    advice = NEEDED if asked else None
    if len(lists) == 1 and not asked:
        advice = f"for the vectors in {lists[0]!r:.60} alone give columns=[{lists[0]:.60}]"
    refuse_text(others, str(path), advice)


def _element(kind: Any) -> Any:
    """What a list of numbers is made of; None: it is something else."""
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return kind.value_type if is_list and _is_number(kind.value_type) else None


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind))


def _is_narrow(kind: Any) -> bool:
    """Whether float32 holds every value."""
    from pyarrow import types

    return bool(types.is_boolean(kind) or types.is_float32(kind) or kind.bit_width <= 16)


def _in_words(kind: Any) -> str:
    from pyarrow import types

    if types.is_dictionary(kind):
        return "categories"
    return {"string": "text", "large_string": "text", "null": "no value at all"}.get(str(kind), str(kind))
