"""Reading an activation store."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from fewfire.disk import one_line, parse_json
from fewfire.store.manifest import DTYPES, MANIFEST, TABLES, Manifest, Shard, StoreError
from fewfire.store.tables import DOCUMENTS, ROWS, Table, check_range

__all__ = ["ActivationStore", "stores_in"]

TENSOR = "activations"
MAX_HEADER_BYTES = 1 << 16
HASH_BYTES = 1 << 20


class ActivationStore:
    """What a layer put out, row by row, with where each row comes from.

    Opening checks that the manifest agrees with itself and with the sizes and headers of all files. The content is
    held against its checksums when it is read: rows a block at a time, a table when it is first asked for.

    >>> store = ActivationStore.open("store")
    >>> store.rows([0, 1])["token"].to_pylist()
    ['hello', 'world']
    """

    def __init__(self, path: Path, manifest: Manifest, sha256: str) -> None:
        self.path, self.sha256 = path, sha256
        self.described = manifest
        self.n_rows, self.n_documents, self.d = manifest.n_rows, manifest.n_documents, manifest.d
        self.dtype, self.layer, self.per = manifest.dtype, manifest.layer, manifest.per
        self._data = [_check_shard(path / shard.file, shard, manifest) for shard in manifest.shards]
        per_shard = ([shard.rows for shard in manifest.shards], [shard.documents for shard in manifest.shards])
        tables = zip(TABLES, (ROWS, DOCUMENTS), per_shard, strict=True)
        self._rows, self._documents = (Table(path / n, schema, k, manifest.files[n]) for n, schema, k in tables)
        counts = [len(shard.blocks) for shard in manifest.shards]
        self._blocks = [(i, block) for i, count in enumerate(counts) for block in range(count)]
        self._block_begins = [manifest.shards[i].offset + block * manifest.block_rows for i, block in self._blocks]

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a store.

        Raises
        ------
        FileNotFoundError
            There is no such folder, or it is no store, or not a finished one.
        StoreError
            What it holds is not what its manifest says.
        ValueError
            It holds a store for each of several layers; the message names them.
        """
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(f"no such folder: {path}; expected an activation store, as `fewfire harvest` makes")
        if not (path / MANIFEST).is_file() and (inner := stores_in(path)):
            names = one_line(", ".join(store.name for store in inner), 200)
            raise ValueError(f"{path} holds a store for each of several layers: {names}; name one, {inner[0]}")
        return cls(path, *Manifest.read(path))

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        return f"<ActivationStore {str(self.path)!r}: {self.n_rows} rows of {self.d}, {self.layer}>"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """``manifest.json``, checked."""
        return self.described.model_dump(mode="json")

    # ---------------------------------------------------------------------------------------------- reading

    def rows(self, indices: npt.ArrayLike) -> pa.Table:
        """Where these rows come from, in the order asked: document, position, token_id, token, start, end, label.

        Raises
        ------
        IndexError
            There is no row of that number.
        StoreError
            The table is damaged.
        """
        return self._rows.take(_numbers(indices))

    def documents(self, ids: npt.ArrayLike) -> pa.Table:
        """These documents, in the order asked: document, text, label. Raises as :meth:`rows`."""
        return self._documents.take(_numbers(ids))

    def vectors(self, indices: npt.ArrayLike) -> Tensor:
        """(n, d) float32, these rows in the order asked. Each comes with the block that it stands in.

        Raises
        ------
        IndexError
            There is no row of that number.
        StoreError
            A block is damaged.
        """
        numbers = _numbers(indices)
        check_range(numbers, self.n_rows, "rows")
        found = torch.empty(len(numbers), self.d)
        order = np.argsort(numbers, kind="stable")
        wanted, at = numbers[order], 0
        while at < len(wanted):
            block = bisect_right(self._block_begins, int(wanted[at])) - 1
            rows, first = self.block(block), self._block_begins[block]
            upto = int(np.searchsorted(wanted, first + len(rows)))
            found[torch.from_numpy(order[at:upto])] = rows[torch.from_numpy(wanted[at:upto] - first)].float()
            at = upto
        return found

    @property
    def block_rows(self) -> list[int]:
        """Rows of each block, which is what :meth:`block` reads."""
        shards, most = self.described.shards, self.described.block_rows
        return [min(most, shards[i].rows - block * most) for i, block in self._blocks]

    def block(self, number: int) -> Tensor:
        """(rows, d) of a block, in the dtype of the store; held against its checksum.

        Raises
        ------
        StoreError
            It is not what was written, or cannot be read.
        """
        i, within = self._blocks[number]
        shard, most = self.described.shards[i], self.described.block_rows
        rows = torch.empty(min(most, shard.rows - within * most), self.d, dtype=DTYPES[self.dtype][1])
        data = raw(rows)
        path = self.path / shard.file
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(self._data[i] + within * most * self.described.row_bytes)
                whole = file.readinto(data) == len(data)
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {one_line(error)}") from None
        if not whole or hashlib.sha256(data).hexdigest() != shard.blocks[within]:
            raise StoreError(f"{path}, block {within}, does not match its checksum; copy the file again")
        return rows

    def verify(self) -> None:
        """Hold every byte of the store against its checksum.

        Raises
        ------
        StoreError
            One of them differs.
        """
        for table in (self._rows, self._documents):
            table.verify()
        for shard in self.described.shards:
            digest = hashlib.sha256()
            for data in _chunks(self.path / shard.file):
                digest.update(data)
            if digest.hexdigest() != shard.sha256:
                raise StoreError(f"{self.path / shard.file} does not match its checksum; copy the file again")
        for number in range(len(self._blocks)):
            self.block(number)


def raw(rows: Tensor) -> memoryview:
    """The bytes of contiguous rows; not a copy."""
    array: Any = rows.view(torch.uint8).numpy()
    return memoryview(array).cast("B")


def stores_in(path: Path) -> list[Path]:
    """The stores in the folders of a folder, one for each layer."""
    return sorted(inner for inner in path.iterdir() if (inner / MANIFEST).is_file()) if path.is_dir() else []


def _numbers(asked: npt.ArrayLike) -> npt.NDArray[np.int64]:
    numbers = np.asarray(asked)
    if numbers.ndim != 1 or (numbers.size and not np.issubdtype(numbers.dtype, np.integer)):
        raise TypeError(f"expected a list of whole numbers, got {numbers.dtype} of shape {numbers.shape}")
    return numbers.astype(np.int64)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(HASH_BYTES):
            yield data


def _check_shard(path: Path, shard: Shard, manifest: Manifest) -> int:
    """Where the rows of a shard begin, in bytes. It holds exactly the tensor that the manifest describes."""
    shape = [shard.rows, manifest.d]
    n_bytes = shard.rows * manifest.row_bytes
    expected = {TENSOR: {"dtype": DTYPES[manifest.dtype][0], "shape": shape, "data_offsets": [0, n_bytes]}}
    if not path.is_file():
        raise StoreError(f"{path} is missing; copy the whole folder")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length) if length <= MAX_HEADER_BYTES else b""
        size = file.seek(0, 2)
    try:
        header = parse_json(raw)
    except ValueError:
        header = None
    if isinstance(header, dict):
        header.pop("__metadata__", None)
    if header != expected:
        raise StoreError(f"{path}: expected one tensor {TENSOR!r}, {manifest.dtype} of shape {tuple(shape)}")
    if size != 8 + length + n_bytes:
        raise StoreError(f"{path} has {size:,} bytes, expected {8 + length + n_bytes:,}; copy it again")
    return 8 + length
