"""Where the rows of a CSV file begin, without reading what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, takewhile
from typing import BinaryIO

import numpy as np

__all__ = [
    "BLOCK_BYTES",
    "MAX_ROW_BYTES",
    "LineBlock",
    "cells_of",
    "check_text",
    "count_cells",
    "is_blank",
    "line_blocks",
    "rows_of",
]

BLOCK_BYTES = 4 << 20
MAX_ROW_BYTES = 16 << 20
"""a quote that is never closed would make one row of the rest of the file"""


@dataclass(frozen=True)
class LineBlock:
    """Whole rows that stand together in a file."""

    offset: int
    size: int
    """bytes"""
    rows: int
    """blank lines not counted"""
    line: int
    """number of the first line, from 1"""
    longest: int
    """bytes of the longest row"""


@lru_cache
def _patterns(delimiter: bytes) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """A row with the end of its line; a cell with what ends it.

    A quote opens at the beginning of a cell only, two of them inside stand for one, and what follows the closing one
    belongs to the cell: as Python's ``csv`` and pyarrow read it. Nothing is tried twice: everything is possessive.
    """
    d = re.escape(delimiter)
    cell = rb'(?:"(?:[^"]++|"")*+"[^%b\r\n]*+|[^"%b\r\n][^%b\r\n]*+)?+' % (d, d, d)
    end = rb"\r?\n|\Z"
    return re.compile(rb"(?:%b%b)*+%b(?:%b)" % (cell, d, cell, end)), re.compile(rb"(%b)(%b|%b)" % (cell, d, end))


def rows_of(chunk: bytes, delimiter: bytes) -> Iterator[re.Match[bytes]]:
    """The rows from the beginning of a chunk on, as matches with the ends of their lines, as far as there are any."""
    match_row = _patterns(delimiter)[0].match
    at = 0
    while at < len(chunk) and (row := match_row(chunk, at)):
        yield row
        at = row.end()


def cells_of(row: bytes, delimiter: bytes) -> list[bytes]:
    """The cells of a row, without their quotes."""
    cells = []
    for cell in _patterns(delimiter)[1].finditer(row):
        cells.append(_unquoted(cell[1]))
        if cell[2] != delimiter:
            break
    return cells


def count_cells(row: bytes, delimiter: bytes, most: int) -> int:
    """How many cells a row has; ``most`` when it has more."""
    if b'"' not in row:
        return min(row.count(delimiter) + 1, most)
    ends = (cell[2] for cell in _patterns(delimiter)[1].finditer(row))
    return 1 + sum(1 for _ in islice(takewhile(delimiter.__eq__, ends), most - 1))


def is_blank(row: bytes) -> bool:
    return row in (b"\n", b"\r\n")


def _unquoted(cell: bytes) -> bytes:
    if not cell.startswith(b'"'):
        return cell
    quoted = re.match(rb'"((?:[^"]++|"")*+)"', cell)
    return cell if quoted is None else quoted[1].replace(b'""', b'"') + cell[quoted.end() :]


def line_blocks(file: BinaryIO, offset: int, line: int, delimiter: bytes, name: str) -> Iterator[LineBlock]:
    """The rows of a file from ``offset``, where line number ``line`` begins, in blocks of about 4 MiB.

    Raises
    ------
    ValueError
        Zero bytes, something else than UTF-8, a bare carriage return, a quote that is never closed, or a row beyond
        16 MiB; with ``name`` and the line.
    """
    file.seek(offset)
    waiting = b""
    while True:
        read = file.read(BLOCK_BYTES)
        last = len(read) < BLOCK_BYTES
        chunk = waiting + read
        size, rows, longest = _whole_rows(chunk, delimiter, last)
        check_text(chunk[:size], line, name)
        if rows:
            yield LineBlock(offset, size, rows, line, longest)
        offset, line, waiting = offset + size, line + chunk.count(b"\n", 0, size), chunk[size:]
        if waiting and (last or len(waiting) >= MAX_ROW_BYTES):
            check_text(waiting, line, name)
            raise ValueError(f"{name} line {line}: {_why_endless(waiting, delimiter)}")
        if last:
            return


def _whole_rows(chunk: bytes, delimiter: bytes, last: bool) -> tuple[int, int, int]:
    """(bytes, rows, bytes of the longest) of the whole rows at the beginning of a chunk.

    ``last``: the end of the chunk ends a row as well.
    """
    if b'"' in chunk or (b"\r" in chunk and chunk.count(b"\r") != chunk.count(b"\r\n")):
        return _whole_quoted_rows(chunk, delimiter, last)
    characters = np.frombuffer(chunk, np.uint8)
    ends = np.flatnonzero(characters == ord("\n")) + 1
    if last and chunk and not chunk.endswith(b"\n"):
        ends = np.append(ends, len(chunk))
    if not len(ends):
        return 0, 0, 0
    lengths = np.diff(ends, prepend=0)
    blank = (characters[ends - 1] == ord("\n")) & (lengths == 1)
    if b"\r" in chunk:
        blank |= (characters[ends - 2] == ord("\r")) & (lengths == 2)
    return int(ends[-1]), len(ends) - int(blank.sum()), int(lengths.max())


def _whole_quoted_rows(chunk: bytes, delimiter: bytes, last: bool) -> tuple[int, int, int]:
    size, rows, longest = 0, 0, 0
    for row in rows_of(chunk, delimiter):
        if row.end() == len(chunk) and not last and not chunk.endswith(b"\n"):
            break  # it may go on
        longest = max(longest, row.end() - size)
        size = row.end()
        rows += not is_blank(row[0])
    return size, rows, longest


def check_text(chunk: bytes, line: int, name: str) -> None:
    """Refuse what is no text in UTF-8. ``line``: number of the first line."""
    if (zero := chunk.find(b"\0")) >= 0:
        at = line + chunk.count(b"\n", 0, zero)
        raise ValueError(f"{name} line {at}: expected text, got a zero byte; the file is damaged or not a CSV file")
    if chunk.isascii():
        return
    try:
        chunk.decode()
    except UnicodeDecodeError as error:
        at = line + chunk.count(b"\n", 0, error.start)
        raise ValueError(
            f"{name} line {at}: expected UTF-8, got the byte 0x{chunk[error.start]:02x}; "
            "save the file as UTF-8, for example with iconv -f latin1 -t utf-8"
        ) from None


def _why_endless(rest: bytes, delimiter: bytes) -> str:
    """Why no row ends in ``rest``, at whose beginning one starts."""
    unquoted = re.sub(rb'(?:(?<=[%b\n])|\A)"(?:[^"]++|"")*+"' % re.escape(delimiter), b"", rest)
    if re.match(rb"[^\r\n]*\r(?!\n)", unquoted):
        return "a carriage return in the middle of the line; save the file with line ends LF or CRLF"
    if len(rest) >= MAX_ROW_BYTES and b'"' not in rest:
        return f"no line is longer than {MAX_ROW_BYTES >> 20} MiB in a table; this one is"
    or_long = f", or the line is longer than {MAX_ROW_BYTES >> 20} MiB" if len(rest) >= MAX_ROW_BYTES else ""
    return f"a quote is opened and never closed{or_long}"
