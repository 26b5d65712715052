"""The tables of a store: where each row comes from, and the documents."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fewfire.disk import one_line
from fewfire.store.manifest import StoredFile, StoreError

__all__ = ["DOCUMENTS", "ROWS", "Table", "write_parquet"]

ROWS = pa.schema(
    {
        "document": pa.int64(),
        "position": pa.int32(),
        "token_id": pa.int32(),
        "token": pa.string(),
        "start": pa.int32(),
        "end": pa.int32(),
        "label": pa.string(),
    }
)
DOCUMENTS = pa.schema({"document": pa.int64(), "text": pa.string(), "label": pa.string()})

MAX_GROUP_BYTES = 1 << 30
"""that a row group may say it takes when unpacked"""
HASH_BYTES = 1 << 20


def write_parquet(file: Any, groups: Sequence[Path] | pa.Table, schema: pa.Schema) -> None:
    """A table as one row group, or the tables in these files as one each. The same input gives the same bytes."""
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in [groups] if isinstance(groups, pa.Table) else groups:
            table = group if isinstance(group, pa.Table) else pq.read_table(group, schema=schema, use_threads=False)
            writer.write_table(table.cast(schema), row_group_size=max(len(table), 1))


class Table:
    """A Parquet file with one row group a shard, whose lines are asked for by number.

    Nothing is read before it is asked for; the first time, the whole file is held against its checksum. Text stays
    in the dictionaries in which it was written, so that no file becomes larger in memory than it is.
    """

    def __init__(self, path: Path, schema: pa.Schema, counts: Sequence[int], stored: StoredFile) -> None:
        self._path, self._schema, self._stored = path, schema, stored
        self._begins = [0, *accumulate(counts)]
        self._group = lru_cache(maxsize=4)(self._read)
        self._is_verified = False
        if not path.is_file():
            raise StoreError(f"{path} is missing; copy the whole folder")
        if path.stat().st_size != stored.bytes:
            raise StoreError(f"{path} has {path.stat().st_size:,} bytes, expected {stored.bytes:,}; copy it again")

    def __len__(self) -> int:
        return self._begins[-1]

    def take(self, numbers: npt.NDArray[np.int64]) -> pa.Table:
        """These lines, in the order asked.

        Raises
        ------
        IndexError
            There is no line of that number.
        StoreError
            The file is damaged.
        """
        check_range(numbers, len(self), self._path.stem)
        if not len(numbers):
            return self._schema.empty_table()
        order = np.argsort(numbers, kind="stable")
        wanted, parts, at = numbers[order], [], 0
        while at < len(wanted):
            group = bisect_right(self._begins, int(wanted[at])) - 1
            upto = int(np.searchsorted(wanted, self._begins[group + 1]))
            parts.append(self._group(group).take(pa.array(wanted[at:upto] - self._begins[group])).cast(self._schema))
            at = upto
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.concat_tables(parts).take(pa.array(back)).combine_chunks()

    def verify(self) -> None:
        """Hold the file against its checksum, and its groups against the shards.

        Raises
        ------
        StoreError
            They differ.
        """
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            while data := file.read(HASH_BYTES):
                digest.update(data)
        if digest.hexdigest() != self._stored.sha256:
            raise StoreError(f"{self._path} does not match its checksum; copy it again")
        with self._complaining(), pq.ParquetFile(self._path) as file:
            self._check(file)
        self._is_verified = True

    def _opened(self) -> pq.ParquetFile:
        text = [field.name for field in self._schema if pa.types.is_string(field.type)]
        return pq.ParquetFile(self._path, read_dictionary=text)

    def _check(self, file: pq.ParquetFile) -> None:
        metadata = file.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        counts = np.diff(self._begins).tolist()
        if [group.num_rows for group in groups] != counts:
            raise StoreError(f"{self._path} has not one row group for each shard, with as many rows")
        if not file.schema_arrow.equals(self._schema):
            found = one_line(", ".join(f"{field.name} {field.type}" for field in file.schema_arrow), 120)
            raise StoreError(f"{self._path}: expected the columns {', '.join(self._schema.names)}; got {found}")
        if any(group.total_byte_size > MAX_GROUP_BYTES for group in groups):
            raise StoreError(f"{self._path} would unpack to more than {MAX_GROUP_BYTES >> 30} GiB at once")

    def _read(self, group: int) -> pa.Table:
        if not self._is_verified:
            self.verify()
        with self._complaining(), self._opened() as file:
            table = file.read_row_group(group, use_threads=False)
            if len(table) != self._begins[group + 1] - self._begins[group]:
                raise StoreError(f"{self._path}: row group {group} has other than the rows that it states")
            return table

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        """Whatever Arrow says of a damaged file, which may be any error, becomes one line that names it."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"{self._path} is damaged: {one_line(error)}") from None


def check_range(numbers: npt.NDArray[np.int64], n: int, what: str) -> None:
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < n):
        wrong = int(numbers[(numbers < 0) | (numbers >= n)][0])
        raise IndexError(f"expected numbers of {what} from 0 to {n - 1:,}, got {wrong:,}")
