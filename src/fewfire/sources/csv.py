"""CSV files: a block is some megabytes of whole lines."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewfire.contracts import Layout
from fewfire.preprocess import Spec
from fewfire.sources.blocks import SHUFFLE_BYTES, BlockSource, Rows
from fewfire.sources.columns import (
    NEEDED,
    Names,
    also_without,
    as_matrix,
    choose,
    on_the_command_line,
    refuse_text,
)
from fewfire.sources.dialect import FALSE, MISSING, TRUE, Dialect
from fewfire.sources.fingerprint import FileState, file_digest
from fewfire.sources.lines import LineBlock, cells_of, count_cells, is_blank, line_blocks, rows_of
from fewfire.sources.registry import suffixes

__all__ = ["CsvSource"]

PARSE_BYTES = 1 << 20
"""that Arrow parses at a time, unless a line is longer"""


@suffixes(".csv", ".tsv")
class CsvSource(BlockSource):
    """A ``.csv`` or ``.tsv`` file: a table of numbers as text, in UTF-8, a line per row.

    Opening it looks once at every line end, at a gigabyte per second or so, and at the first 4 MiB for what the
    columns hold; a later cell that is something else is an error that names its line and column. Numbers are
    float64, rounded to nearest: an integer beyond 2^53 is not exact. true and false are 1 and 0; an empty cell, and
    what pandas takes for missing (NA, NaN, null and so on), is NaN. Blank lines are passed over. A first column
    without a name that counts the rows, as pandas and R write it, is left out, with a warning.

    How rows are shuffled and what memory is needed: :class:`BlockSource`, with about 4 MiB of lines as a block.

    Parameters
    ----------
    path
        The file.
    columns
        Names of the columns to read, in the order wanted; None: all. Without a header they are x0, x1, ...
    drop
        Names of columns to leave out.
    delimiter
        None: tab, semicolon, bar or comma, whichever the first lines have in common.
    header
        Whether the first line has names; None: unless all of it is numbers. 0, 1, 2, ... are the names that pandas
        gives.
    decimal
        The decimal sign, "." or ",".
    layout, suggested_preprocess, shuffle_bytes
        As in :class:`BlockSource`; by default a table with the columns' names.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It has no rows, is no text in UTF-8, or holds columns that are not numbers (the message names them). From
        the iterator also: a line has more or fewer cells than the first, or one that is no number.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        columns: Names = None,
        drop: Names = None,
        delimiter: str | None = None,
        header: bool | None = None,
        decimal: str = ".",
        layout: Layout | Mapping[str, Any] | None = None,
        suggested_preprocess: Spec = None,
        shuffle_bytes: int = SHUFFLE_BYTES,
    ) -> None:
        state = FileState.of(Path(path))
        reader = _Lines(state, Dialect.of(state.path, delimiter, header, decimal), columns, drop)
        super().__init__(
            reader,
            name=state.path.stem,
            layout=Layout(columns=reader.names) if layout is None else layout,
            suggested_preprocess=suggested_preprocess,
            shuffle_bytes=shuffle_bytes,
        )


class _Lines:
    """The lines of a file, as a BlockReader."""

    first_row = 0
    dtype = np.dtype(np.float64)

    def __init__(self, state: FileState, dialect: Dialect, columns: Names, drop: Names) -> None:
        self._state, self._path, self._dialect = state, state.path, dialect
        with self._path.open("rb") as file:
            found = line_blocks(file, dialect.offset, dialect.line, dialect.delimiter, str(self._path))
            self._blocks = list(found)
        if not self._blocks:
            raise ValueError(f"{self._path} has a header and no rows")
        sample = self._parse(self._blocks[0], range(len(dialect.names)), {})
        if columns is None and not dialect.is_named and _counts_up(sample.column(0)):
            drop = also_without(dialect.names[:1], drop, "counts the rows and has no name", str(self._path))
        self._asked = columns is not None
        self._chosen = choose(dialect.names, columns, drop, str(self._path))
        self._kinds = self._kinds_in(sample)
        self.names = tuple(dialect.names[i] for i in self._chosen)
        self.row_shape = (len(self._chosen),)
        self.block_rows = [block.rows for block in self._blocks]

    def read(self, block: int) -> Generator[Rows, None, None]:
        table = self._parse(self._blocks[block], self._chosen, self._kinds)
        yield as_matrix(table.combine_chunks().to_batches()[0].columns, self.dtype)

    def digest(self) -> str:
        kinds = {self._dialect.names[i]: str(kind) for i, kind in self._kinds.items()}
        return f"csv {self._dialect} {self._chosen} {kinds} {file_digest(self._state)}"

    def _kinds_in(self, sample: Any) -> dict[int, Any]:
        """From the first rows, how each chosen column is to be read."""
        from pyarrow import float64, types

        seen = sample.schema.types
        found = {i: seen[i] for i in self._chosen}
        others = {
            self._dialect.names[i]: _in_words(kind, sample.column(i))
            for i, kind in found.items()
            if not (types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind) or types.is_boolean(kind))
        }
        refuse_text(others, str(self._path), self._advice(others.values()))
        return {i: kind if types.is_boolean(kind) else float64() for i, kind in found.items()}

    def _advice(self, others: Iterable[str]) -> str | None:
        if self._dialect.decimal == "," or not all(re.search(r"'[+-]?\d+,\d+'$", what) for what in others):
            return NEEDED if self._asked else None
        setting = on_the_command_line("decimal", "','")
        return f"if that is a decimal comma, decimal=',' reads it, on the command line {setting}"

    def _parse(self, block: LineBlock, columns: Sequence[int], kinds: Mapping[int, Any]) -> Any:
        """These columns of a block as an Arrow table, of these kinds; of what they seem to be where none is given."""
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        lines = self._bytes(block)
        names = [str(i) for i in range(len(self._dialect.names))]  # real ones may repeat
        try:
            table = arrow_csv.read_csv(
                pa.BufferReader(lines),
                # Without threads: Arrow may abort the process at its very end if its own were at work shortly before
                # (apache/arrow issue 34314), and this thread reads ahead of training anyway.
                arrow_csv.ReadOptions(
                    column_names=names, block_size=max(PARSE_BYTES, block.longest), use_threads=False
                ),
                arrow_csv.ParseOptions(delimiter=self._dialect.delimiter.decode(), newlines_in_values=b'"' in lines),
                arrow_csv.ConvertOptions(
                    column_types={names[i]: kind for i, kind in kinds.items()},
                    include_columns=[names[i] for i in columns],
                    null_values=MISSING,
                    true_values=TRUE,
                    false_values=FALSE,
                    decimal_point=self._dialect.decimal,
                ),
            )
        except (pa.ArrowException, ValueError, MemoryError) as error:
            raise ValueError(self._complaint(lines, block, kinds) or self._somewhere(block, error)) from None
        if table.num_rows != block.rows:
            raise ValueError(self._somewhere(block, f"expected {block.rows:,} rows, found {table.num_rows:,}"))
        return table

    def _bytes(self, block: LineBlock) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(block.offset)
                lines = file.read(block.size)
        except OSError as error:
            self._state.check()
            raise ValueError(f"{self._path} cannot be read: {error}") from None
        self._state.check()
        return lines

    def _complaint(self, lines: bytes, block: LineBlock, kinds: Mapping[int, Any]) -> str | None:
        """What is wrong in these lines, by line and column; None when nothing is found."""
        line, names = block.line, self._dialect.names
        for row in rows_of(lines, self._dialect.delimiter):
            if is_blank(row[0]):
                line += 1
                continue
            n_cells = count_cells(row[0], self._dialect.delimiter, most=10 * len(names))
            if n_cells != len(names):
                came = f"{n_cells}{' or more' if n_cells == 10 * len(names) else ''}"
                return f"{self._path} line {line}: expected {len(names)} cells as in the first line, got {came}"
            cells = cells_of(row[0], self._dialect.delimiter)
            for i, kind in kinds.items():
                text = cells[i].decode()
                if not self._dialect.is_a(kind, text):
                    wanted = "true or false, as in the first rows" if str(kind) == "bool" else "a number"
                    instead = "or leave the cell empty"
                    if not self._asked:
                        instead = "leave the cell empty, or leave the column out with drop=[...]"
                    return (
                        f"{self._path} line {line}, column {names[i]!r:.60}: expected {wanted}, got {text!r:.60}; "
                        f"correct it, {instead}"
                    )
            line += row[0].count(b"\n")
        return None

    def _somewhere(self, block: LineBlock, what: object) -> str:
        return f"{self._path} line {block.line} and following cannot be read: {' '.join(str(what).split()):.200}"


def _counts_up(column: Any) -> bool:
    """Whether whole numbers rise by one from row to row, from 0 or 1."""
    from pyarrow import types

    if not types.is_integer(column.type) or column.null_count:
        return False
    numbers = column.to_numpy()
    return bool(numbers[0] in (0, 1) and (np.diff(numbers) == 1).all())


def _in_words(kind: Any, column: Any) -> str:
    """What a column holds that is not numbers, with the first of it."""
    from pyarrow import types

    what = "text" if types.is_string(kind) or types.is_binary(kind) else "dates or times"
    first = next((value for value in column.slice(0, 1000).to_pylist() if value not in (None, "")), "")
    return f"{what} such as {str(first)[:20]!r}"
