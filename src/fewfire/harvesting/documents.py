"""Texts as people have them: .txt, .jsonl, .csv, .parquet, and prose that comes along."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from fewfire.contracts import did_you_mean
from fewfire.disk import one_line, parse_json, short
from fewfire.harvesting.docstrings import docstrings

__all__ = ["TEXTS", "Document", "read_documents"]

MAX_LINE = 64 << 20
"""characters: a file without line ends must not fill the memory"""
TEXTS: dict[str, Callable[[], Iterator[Any]]] = {"docstrings": docstrings}
"""texts that every installation has, by name"""


class Document(NamedTuple):
    """A text, and what it is called, if anything."""

    text: str
    label: str | None = None


def read_documents(texts: str | Path, *, column: str | None = None, label: str | None = None) -> Iterator[Document]:
    """The documents of a file, in order, as they are read.

    ``.txt`` a document a line · ``.jsonl`` an object, or a string, a line · ``.csv``, ``.tsv`` with a header; each
    also with ``.gz`` behind it · ``.parquet``. "docstrings": sentences of the documentation of installed packages,
    labelled with the part of the package.

    Parameters
    ----------
    texts
        The file, in UTF-8, or the name of texts that come along.
    column
        Which column, or key, holds the texts; by default "text", or the only one.
    label
        Which holds labels; by default none.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is not one of these, or is damaged; a column is not there; or a document has no text. The message names the
        line.
    """
    if isinstance(texts, str) and texts in TEXTS:
        return (Document(*found) for found in TEXTS[texts]())
    path = Path(texts)
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}; expected texts, {_expected()}")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    ending = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else suffixes[-1] if suffixes else ""
    if not path.is_file() or ending not in READERS or (ending == ".parquet" and suffixes[-1] == ".gz"):
        raise ValueError(f"cannot tell how to read texts from {path}; expected {_expected()}")
    return _complaining(path, READERS[ending](path, column, label))


def _expected() -> str:
    return f"{', '.join(READERS)}, or one of: {', '.join(TEXTS)}"


def _complaining(path: Path, documents: Iterator[Document]) -> Iterator[Document]:
    """Whatever a library says of a damaged file becomes one line that names it."""
    try:
        yield from documents
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error, 250)}") from None
    except (OSError, EOFError, csv.Error) as error:
        if "field larger" in str(error):  # of Python's reader; the limit is the whole process's
            raise ValueError(f"{path}: {one_line(error)}; a .jsonl or .parquet has no such limit") from None
        raise ValueError(f"{path} is damaged: {one_line(error)}") from None


def _text(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return path.open(encoding="utf-8-sig", newline="\n")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with _text(path) as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise ValueError(f"line {number} has more than {MAX_LINE >> 20} million characters")
            yield number, line.rstrip("\r\n")


def _from_txt(path: Path, column: str | None, label: str | None) -> Iterator[Document]:
    if column is not None or label is not None:
        raise ValueError("a .txt file has a document a line, and no columns or labels; a .csv or .jsonl has")
    for _, line in _lines(path):
        yield Document(line)


def _from_jsonl(path: Path, column: str | None, label: str | None) -> Iterator[Document]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            found = parse_json(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {one_line(error, 150)}") from None
        if isinstance(found, str):
            found = {"text": found}
        if not isinstance(found, Mapping):
            raise ValueError(f'line {number}: expected an object such as {{"text": ...}}, got {short(found)}')
        yield _document(found, *_columns(list(found), column, label, found), f"line {number}")


def _from_csv(path: Path, column: str | None, label: str | None) -> Iterator[Document]:
    with _text(path) as file:
        tab = ".tsv" in (suffix.lower() for suffix in path.suffixes)
        rows = csv.reader(_bounded(file), delimiter="\t" if tab else ",", strict=True)
        names = next(rows, None)
        if names is None:
            raise ValueError("it is empty; expected a header and a document a line")
        text, tag = _columns(names, column, label)
        for cells in rows:
            if not cells:
                continue
            if len(cells) != len(names):
                raise ValueError(f"line {rows.line_num}: expected {len(names)} cells, got {len(cells)}")
            yield _document(dict(zip(names, cells, strict=True)), text, tag, f"line {rows.line_num}")


def _bounded(file: IO[str]) -> Iterator[str]:
    while line := file.readline(MAX_LINE):
        yield line


def _from_parquet(path: Path, column: str | None, label: str | None) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            strings = {f.name: "" for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)}
            text, tag = _columns(schema.names, column, label, strings)
            wanted = [text] if tag is None else [text, tag]
            number = 0
            for batch in file.iter_batches(1024, columns=wanted, use_threads=False):
                for found in batch.to_pylist():
                    yield _document(found, text, tag, f"row {number}")
                    number += 1
    except pa.ArrowException as error:
        raise ValueError(f"it is damaged: {one_line(error)}") from None


READERS: dict[str, Callable[[Path, str | None, str | None], Iterator[Document]]] = {
    ".txt": _from_txt,
    ".jsonl": _from_jsonl,
    ".csv": _from_csv,
    ".tsv": _from_csv,
    ".parquet": _from_parquet,
}


def _columns(
    names: Sequence[str], column: str | None, label: str | None, values: Mapping[str, Any] | None = None
) -> tuple[str, str | None]:
    """(the column of texts, that of labels); ``values`` tells which hold text, where that is known."""
    for wanted, option in ((column, "--column"), (label, "--label")):
        if wanted is not None and wanted not in names:
            near = did_you_mean(wanted, names)
            raise ValueError(f"no column {wanted!r:.60} ({option}); it has {', '.join(map(repr, names)):.120}{near}")
    if column is not None:
        return column, label
    if "text" in names:
        return "text", label
    known = [n for n in names if n != label and (values is None or isinstance(values.get(n), str))]
    if len(known) != 1:
        listed = ", ".join(map(repr, names))
        raise ValueError(f"which column holds the texts? say it with --column; it has {listed:.150}")
    return known[0], label


def _document(found: Mapping[str, Any], column: str, label: str | None, where: str) -> Document:
    text = found.get(column)
    if not isinstance(text, str):
        raise ValueError(f"{where}: expected text in {column!r:.60}, got {short(text)}; leave such documents out")
    tag = None if label is None else found.get(label)
    return Document(text, None if tag is None else str(tag))
