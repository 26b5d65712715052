"""What a CSV file looks like, told from its first lines: delimiter, names, and what counts as a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from fewfire.sources.columns import on_the_command_line
from fewfire.sources.lines import MAX_ROW_BYTES, cells_of, check_text, count_cells, is_blank, line_blocks, rows_of

__all__ = ["DELIMITERS", "FALSE", "MISSING", "TRUE", "Dialect"]

DELIMITERS = "\t;|,"
"""tried in this order: a comma may also be a decimal sign"""
SAMPLED_ROWS = 20
MAX_COLUMNS = 100_000
"""each takes some 10 KB to read, so that a line of nothing but commas would fill the memory"""
MISSING = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
"""what pandas takes for a missing value"""
TRUE, FALSE = ("true", "True", "TRUE", "1"), ("false", "False", "FALSE", "0")
NUMBER = r"[+-]?(?:(?:\d+(?:{0}\d*)?|{0}\d+)(?:e[+-]?\d+)?|inf|infinity|nan)"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Dialect:
    """How a file writes its table."""

    delimiter: bytes
    decimal: str
    names: tuple[str, ...]
    """of the columns; x0, x1, ... where the file has none"""
    is_named: bool
    """whether the first column has a name"""
    offset: int
    """where the first row of numbers begins"""
    line: int
    """its line, from 1"""

    @classmethod
    def of(cls, path: Path, delimiter: str | None, header: bool | None, decimal: str) -> Self:
        """From the first lines of a file; what is not None is given.

        Raises
        ------
        ValueError
            The first line cannot be read as a row, or what is given makes no sense.
        """
        if decimal not in (".", ","):
            raise ValueError(f"expected decimal '.' or ',', got {decimal!r}")
        if delimiter is not None and not _may_delimit(delimiter, decimal):
            tab = on_the_command_line("delimiter", r'"\t"')
            raise ValueError(
                f"expected a delimiter of one character that is no quote, line end or decimal sign, got {delimiter!r}"
                + (f"; a tab is {tab}" if delimiter == r"\t" else "")
            )
        with path.open("rb") as file:
            start = file.read(MAX_ROW_BYTES)
        offset, line = _first_row(start, path)
        found = _delimiter(start[offset:], path, decimal) if delimiter is None else delimiter.encode()
        row = next(rows_of(start[offset:], found), None)
        if row is None or offset + row.end() == MAX_ROW_BYTES:
            with path.open("rb") as file:  # what stands in the way of a row is said in one place
                list(line_blocks(file, offset, line, found, str(path)))
            raise ValueError(f"{path} line {line}: no line is longer than {MAX_ROW_BYTES >> 20} MiB in a table")
        check_text(row[0], line, str(path))
        if count_cells(row[0], found, MAX_COLUMNS + 1) > MAX_COLUMNS:
            raise ValueError(f"{path} line {line}: a table has at most {MAX_COLUMNS:,} columns; this line has more")
        cells = [cell.decode().strip() for cell in cells_of(row[0], found)]
        if header is None:
            header = not _is_data(cells, decimal)
        if not header:
            names = tuple(f"x{i}" for i in range(len(cells)))
            return cls(found, decimal, names, True, offset, line)
        names = tuple(cell or f"x{i}" for i, cell in enumerate(cells))
        end = row.end()
        return cls(found, decimal, names, bool(cells[0]), offset + end, line + row[0].count(b"\n"))

    def is_a(self, kind: Any, cell: str) -> bool:
        """Whether a cell is of an Arrow type, boolean or a number, or missing."""
        if str(kind) == "bool":
            return cell.strip() in (*MISSING, *TRUE, *FALSE)
        return _is_number(cell, self.decimal)


def _may_delimit(delimiter: object, decimal: str) -> bool:
    one = isinstance(delimiter, str) and len(delimiter) == 1 and delimiter.isascii()
    return one and delimiter not in ("\0", '"', "\r", "\n", decimal)


def _first_row(start: bytes, path: Path) -> tuple[int, int]:
    """Where the first line begins that is not blank, and its number."""
    if start.startswith(UTF_16):
        raise ValueError(f"{path} is UTF-16; save it as UTF-8, for example with iconv -f utf-16 -t utf-8")
    offset, line = len(BYTE_ORDER_MARK) if start.startswith(BYTE_ORDER_MARK) else 0, 1
    while start.startswith((b"\n", b"\r\n"), offset):
        offset = start.index(b"\n", offset) + 1
        line += 1
    if offset == len(start):
        raise ValueError(f"{path} is empty; expected a table of numbers")
    return offset, line


def _delimiter(start: bytes, path: Path, decimal: str) -> bytes:
    """The first of the usual ones that cuts the first rows into as many cells, at least two; else a comma."""
    for candidate in DELIMITERS:
        if candidate == decimal or (path.suffix.lower() == ".tsv" and candidate != "\t"):
            continue
        rows = [row[0] for row in islice(rows_of(start, candidate.encode()), SAMPLED_ROWS) if not is_blank(row[0])]
        counts = {count_cells(row, candidate.encode(), MAX_COLUMNS) for row in rows}
        if len(counts) == 1 and counts != {1}:
            return candidate.encode()
    return b"\t" if path.suffix.lower() == ".tsv" else b","


def _is_data(cells: Sequence[str], decimal: str) -> bool:
    """Whether a first line is no header: all of it is numbers, and not the names 0, 1, 2, ... that pandas gives."""
    counted = [str(i) for i in range(len(cells))]
    if len(cells) >= 3 and list(cells) in (counted, ["", *counted[:-1]]):
        return False
    return all(_is_number(cell, decimal) for cell in cells)


def _is_number(cell: str, decimal: str) -> bool:
    cell = cell.strip()
    return cell in MISSING or re.fullmatch(NUMBER.format(re.escape(decimal)), cell, re.IGNORECASE) is not None
