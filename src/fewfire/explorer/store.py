"""The bundle: one SQLite file with everything the page asks for, as JSON that was written when it was built.

Tables
------
meta        key, JSON: what the page reads once ("meta", "run", "map", "comparison")
features    a line a feature, narrow, with what it can be sorted by
looks       a small picture of a feature, JSON, where it has one
pages       a feature's page, JSON, and the rows that it shows
documents   what several rows are parts of, JSON
rows        a row of the data, JSON: how it looks, which features fire on it, how unusual it is
search      FTS5 over labels and the words of examples
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from fewfire.explorer.packing import to_json

__all__ = ["FILE", "FORMAT", "MOST_ROWS_A_PAGE", "ROW_SORTS", "SORTS", "Store", "TooSlowError", "create"]

FILE = "explorer.sqlite"
FORMAT = 1
"""raised whenever a bundle of before would not do"""
SORTS = ("id", "density", "max", "mean", "norm", "label", "match")
ROW_SORTS = ("id", "score", "n_active", "label")
MOST_A_PAGE = 500
"""features in one answer"""
MOST_ROWS_A_PAGE = 60
MOST_WORDS, LONGEST_WORD = 8, 40
"""of a search"""
SECONDS = 5.0
"""for one question"""
CONDITIONS = {"all": "", "alive": "NOT dead", "dead": "dead", "dense": "dense", "labelled": "label != ''"}
"""what ``show`` may be"""
LABEL_WEIGHT = 20
"""of a word in a label, beside one in the examples"""
KEPT = 256
"""answers about the table that are remembered: many people look at the same pages"""
CHECKED = 20_000
"""steps of SQLite, after which the clock is looked at"""
ANSWER = (
    "id, density, max, mean, norm, dead, dense, label, spark, (SELECT look FROM looks WHERE looks.id = features.id)"
)

SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE features(
    id INTEGER PRIMARY KEY, density REAL, max REAL, mean REAL, norm REAL, dead INTEGER, dense INTEGER,
    label TEXT, spark TEXT);
CREATE TABLE pages(id INTEGER PRIMARY KEY, page TEXT NOT NULL, rows TEXT NOT NULL, near TEXT NOT NULL);
CREATE TABLE rows(
    id INTEGER PRIMARY KEY, score REAL, n_active INTEGER, anomaly INTEGER, label TEXT, page TEXT NOT NULL,
    document INTEGER, features TEXT NOT NULL);
CREATE TABLE looks(id INTEGER PRIMARY KEY, look TEXT NOT NULL);
CREATE TABLE documents(id INTEGER PRIMARY KEY, page TEXT NOT NULL);
CREATE VIRTUAL TABLE search USING fts5(label, words, content='', prefix='2 3');
"""
INDEXES = """
CREATE INDEX features_density ON features(density DESC, id);
CREATE INDEX features_max ON features(max DESC, id);
CREATE INDEX features_mean ON features(mean DESC, id);
CREATE INDEX features_norm ON features(norm DESC, id);
CREATE INDEX features_label ON features(label DESC, id);
CREATE INDEX rows_score ON rows(score, id);
CREATE INDEX rows_n_active ON rows(n_active, id);
CREATE INDEX rows_label ON rows(label, id);
ANALYZE;
"""


class TooSlowError(Exception):
    """A question took longer than ``SECONDS`` and was stopped."""


@contextmanager
def create(path: Path) -> Iterator[sqlite3.Connection]:
    """A new file with the tables, to fill in; the indexes are made at the end. It is closed when the block ends."""
    connection = sqlite3.connect(path)
    try:
        # written under a temporary name and renamed when whole: no journal has to survive a crash
        connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA page_size=8192;" + SCHEMA)
        yield connection
        connection.executescript(INDEXES)
        connection.execute("INSERT INTO search(search) VALUES ('optimize')")
        connection.commit()
    finally:
        connection.close()


class Store:
    """Questions to a bundle. Any number of threads may ask; nothing is ever written.

    Raises
    ------
    FileNotFoundError
        There is no bundle in the folder.
    ValueError
        The file is not a bundle, or one of another format.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        if not self.path.is_file():
            raise FileNotFoundError(f"no bundle in {folder}; fewfire explore RUN builds one")
        self._of_thread = threading.local()
        self._kept = lru_cache(KEPT)(self._features)  # a bundle never changes
        try:
            found = json.loads(self.text("format") or "null")
        except (sqlite3.Error, ValueError):
            found = None
        if found != FORMAT:
            raise ValueError(f"{self.path} is not a bundle of this version; remove it, and explore the run again")

    def text(self, key: str) -> str | None:
        """What ``meta`` holds under a name: JSON."""
        return self._one("SELECT value FROM meta WHERE key = ?", (key,))

    def features(
        self,
        *,
        sort: str = "density",
        descending: bool = True,
        offset: int = 0,
        limit: int = 100,
        query: str = "",
        show: str = "all",
    ) -> str:
        """``{"total", "offset", "features": [...]}`` of those that a search and a filter leave, in order.

        ``show``: all, alive, dead, dense or labelled. ``sort`` "match": as well as a search fits, labels before
        examples; without a search, by density.
        """
        return self._kept(sort, descending, offset, min(limit, MOST_A_PAGE), query, show)

    def _features(self, sort: str, descending: bool, offset: int, limit: int, query: str, show: str) -> str:
        where, values = self._filter(query, show)
        matching = sort == "match" and bool(values)
        sort = "density" if sort == "match" else sort
        direction = "DESC" if descending else "ASC"
        # Ties by number, in the order of the index, which is read backwards for the other one: nothing is sorted.
        ties = "" if sort == "id" else ", id ASC" if descending else ", id DESC"
        order = f"{SORTS[SORTS.index(sort)]} {direction}{ties}"
        with self._asking() as connection:
            (total,) = connection.execute(f"SELECT COUNT(*) FROM features {where}", values).fetchone()
            page = f"SELECT * FROM features {where} ORDER BY {order} LIMIT ? OFFSET ?"
            if matching:
                found = f"SELECT rowid, bm25(search, {LABEL_WEIGHT}, 1) AS fit FROM search WHERE search MATCH ?"
                some = f"SELECT features.* FROM ({found}) JOIN features ON id = rowid WHERE {CONDITIONS[show] or 1}"
                page = f"{some} ORDER BY fit, id LIMIT ? OFFSET ?"
            page = f"SELECT {ANSWER} FROM ({page}) AS features"  # pictures of these alone are looked up
            lines = connection.execute(page, (*values, limit, offset)).fetchall()
        return f'{{"total":{total},"offset":{offset},"features":[{",".join(map(_feature_json, lines))}]}}'

    def every_feature(self) -> Iterator[str]:
        """All lines of the table as JSON, the most used first."""
        with self._asking(limited=False) as connection:
            yield from map(
                _feature_json, connection.execute(f"SELECT {ANSWER} FROM features ORDER BY density DESC, id")
            )

    def feature(self, number: int) -> str | None:
        """A feature's page, with the rows, documents and neighbours that it shows; None: there is no such feature."""
        with self._asking() as connection:
            found = connection.execute("SELECT page, rows, near FROM pages WHERE id = ?", (number,)).fetchone()
            if found is None:
                return None
            page, rows, near = found
            shown = connection.execute(f"SELECT id, page FROM rows WHERE id IN ({rows})").fetchall()
            parts = {"rows": shown, "named": _named(connection, near)}
        return _spliced(page, parts)

    def row(self, number: int) -> str | None:
        """A row's page, with what it is a part of and the features that fire on it."""
        with self._asking() as connection:
            found = connection.execute("SELECT page, document, features FROM rows WHERE id = ?", (number,)).fetchone()
            if found is None:
                return None
            page, document, features = found
            whole = connection.execute("SELECT id, page FROM documents WHERE id = ?", (document,)).fetchall()
            return _spliced(page, {"documents": whole, "named": _named(connection, features)})

    def rows(
        self,
        *,
        sort: str = "id",
        descending: bool = False,
        offset: int = 0,
        limit: int = 24,
        anomalies: bool = False,
    ) -> str:
        """``{"total", "offset", "rows": [...]}``, without the codes of each."""
        column, direction = ROW_SORTS[ROW_SORTS.index(sort)], "DESC" if descending else "ASC"
        where = "WHERE anomaly" if anomalies else ""
        order = f"id {direction}" if column == "id" else f"{column} {direction}, id"
        with self._asking() as connection:
            (total,) = connection.execute(f"SELECT COUNT(*) FROM rows {where}").fetchone()
            page = f"SELECT page FROM rows {where} ORDER BY {order} LIMIT ? OFFSET ?"
            found = connection.execute(page, (min(limit, MOST_ROWS_A_PAGE), offset)).fetchall()
        return f'{{"total":{total},"offset":{offset},"rows":[{",".join(text for (text,) in found)}]}}'

    def some_rows(self, limit: int) -> list[str]:
        """Rows as JSON, spread evenly over those there are."""
        with self._asking(limited=False) as connection:
            (total,) = connection.execute("SELECT COUNT(*) FROM rows").fetchone()
            sql = "SELECT page FROM (SELECT page, ROW_NUMBER() OVER (ORDER BY id) - 1 AS n FROM rows) WHERE n % ? = 0"
            return [text for (text,) in connection.execute(sql, (-(-total // limit) or 1,))]

    def numbers(self, table: str) -> list[int]:
        """The ids in "features" or "rows"."""
        name = {"features": "features", "rows": "rows"}[table]
        with self._asking(limited=False) as connection:
            return [number for (number,) in connection.execute(f"SELECT id FROM {name} ORDER BY id")]

    def _filter(self, query: str, show: str) -> tuple[str, tuple[Any, ...]]:
        parts = [CONDITIONS[show]] if CONDITIONS[show] else []
        values: tuple[Any, ...] = ()
        if wanted := _as_query(query):
            parts.append("id IN (SELECT rowid FROM search WHERE search MATCH ?)")
            values = (wanted,)
        elif query.strip():
            parts.append("0")  # nothing but signs: no word is found
        return ("WHERE " + " AND ".join(parts) if parts else ""), values

    def _one(self, sql: str, values: tuple[Any, ...]) -> str | None:
        with self._asking() as connection:
            found = connection.execute(sql, values).fetchone()
        return None if found is None else str(found[0])

    @contextmanager
    def _asking(self, limited: bool = True) -> Iterator[sqlite3.Connection]:
        """This thread's connection, which gives up after ``SECONDS``."""
        connection: sqlite3.Connection | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            address = f"{self.path.resolve().as_uri()}?mode=ro&immutable=1"
            connection = sqlite3.connect(address, uri=True, check_same_thread=False)
            connection.execute("PRAGMA query_only=ON")
            connection.execute("PRAGMA mmap_size=1073741824")
            self._of_thread.connection = connection
        end = time.monotonic() + SECONDS
        connection.set_progress_handler((lambda: time.monotonic() > end) if limited else None, CHECKED)
        try:
            yield connection
        except sqlite3.OperationalError as error:
            if "interrupted" in str(error):
                raise TooSlowError(f"this took longer than {SECONDS:g} seconds") from None
            raise


def _named(connection: sqlite3.Connection, numbers: str) -> list[tuple[int, str]]:
    """Features as lines of the table, by number."""
    found = connection.execute(f"SELECT {ANSWER} FROM features WHERE id IN ({numbers})").fetchall()
    return [(line[0], _feature_json(line)) for line in found]


def _spliced(page: str, parts: Mapping[str, list[tuple[int, str]]]) -> str:
    """A JSON object with more keys, whose values are objects by number; all of it is JSON already."""
    more = (f'"{key}":{{{",".join(f"{_quoted(i)}:{text}" for i, text in found)}}}' for key, found in parts.items())
    return f"{page[:-1]},{','.join(more)}}}"


def _quoted(number: int) -> str:
    return f'"{number}"'


def _as_query(text: str) -> str:
    """What a person typed -> FTS5: every word must be there, the last may go on. Its signs have no meaning."""
    words = [word[:LONGEST_WORD] for word in re.findall(r"\w+", text[:400])][:MOST_WORDS]
    return " ".join(f'"{word}"' for word in words) + ("*" if words else "")


def _feature_json(line: tuple[Any, ...]) -> str:
    """A line of ``features`` as JSON: label and spark were written as JSON when the bundle was built."""
    number, density, high, mean, norm, dead, dense, label, spark, look = line
    return (
        f'{{"id":{number},"density":{density!r},"max":{high!r},"mean":{mean!r},"norm":{norm!r},'
        f'"dead":{dead},"dense":{dense},"label":{to_json(label)},"spark":"{spark}"'
        + (f',"look":{look}}}' if look else "}")
    )
