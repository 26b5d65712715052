"""Making an activation store, a part at a time; killed at any moment, it goes on to the same bytes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from fewfire.disk import (
    atomic_write,
    atomic_writer,
    canonical_json,
    fsync_folder,
    one_line,
    parse_json,
    sha256_json,
    short,
    sweep,
)
from fewfire.metrics import Moments
from fewfire.store.manifest import (
    BLOCK_BYTES,
    DTYPES,
    MANIFEST,
    SHARD_BYTES,
    TABLES,
    VERSION,
    Manifest,
    StoreError,
    shard_name,
)
from fewfire.store.reading import HASH_BYTES, TENSOR, raw, stores_in
from fewfire.store.tables import DOCUMENTS, ROWS, write_parquet

__all__ = ["Done", "Part", "StoreWriter", "rows_per_shard"]

UNFINISHED = "unfinished"
"""the folder of what is not in its place yet; gone when the store is finished"""
PRODUCER = "producer.json"
SCHEMAS = dict(zip(TABLES, (ROWS, DOCUMENTS), strict=True))


def rows_per_shard(widest: int, dtype: str, shard_bytes: int = SHARD_BYTES) -> int:
    """Rows that fill a shard of the widest layer."""
    return max(shard_bytes // (widest * DTYPES[dtype][1].itemsize), 1)


@dataclass(frozen=True)
class Part:
    """What becomes one shard of every layer."""

    vectors: Mapping[str, Tensor]
    """layer -> (rows, d), in the store's dtype"""
    rows: pa.Table
    documents: pa.Table
    digest: str
    """of what was harvested, by which a harvest that goes on knows it again"""
    units: int
    """how many inputs that were"""


@dataclass(frozen=True)
class Done:
    """A part that is on the disk, as its record says."""

    units: int
    digest: str
    documents: int


class StoreWriter:
    """Writes the stores of one harvest: ``folder`` itself for one layer, ``folder/LAYER`` for each of several.

    A part is written file by file, and counts once its record stands in ``unfinished/``. The tables are put together
    at the end, and the manifests come last of all. Several stores share the files of their tables where the disk can.

    Parameters
    ----------
    folder
        Exists, and is locked by the caller.
    layers
        Their names.
    dtype, per
        As in the manifest.
    producer
        The settings of the harvest: a harvest that goes on must have the same.

    Raises
    ------
    StoreError
        What is in the folder is damaged.
    ValueError
        It was begun with other settings; or the name of a layer can be no folder's.
    """

    def __init__(self, folder: Path, layers: Sequence[str], dtype: str, per: str, producer: Mapping[str, Any]) -> None:
        self.folder, self.dtype, self.per = folder, dtype, per
        self.producer = dict(producer)
        self.folders = {name: folder if len(layers) == 1 else folder / _folder_name(name) for name in layers}
        self._unfinished = folder / UNFINISHED
        self._n = 0
        self._begin()

    def _begin(self) -> None:
        path = self._unfinished / PRODUCER
        if self.is_finished:
            known = Manifest.read(next(iter(self.folders.values())))[0].producer
        elif path.is_file():
            known = _read_json(path)
        else:
            for place in (self._unfinished, *self.folders.values()):
                place.mkdir(exist_ok=True)
            atomic_write(path, canonical_json(self.producer))
            known = self.producer
        if known != self.producer:
            raise ValueError(f"{self.folder} was begun with {_difference(known, self.producer)}; ask for the same")
        for place in (self._unfinished, *self.folders.values()):
            sweep(place)

    @staticmethod
    def is_begun(folder: Path) -> bool:
        """Whether a harvest was begun, or finished, in this folder."""
        return (folder / UNFINISHED / PRODUCER).is_file() or (folder / MANIFEST).is_file() or bool(stores_in(folder))

    @property
    def n_rows(self) -> int:
        """Rows of the parts that are on the disk."""
        records = (_read_json(self._unfinished / f"part-{i:05d}.json") for i in range(self._n))
        return sum(next(iter(record["layers"].values()))["rows"] for record in records)

    @property
    def is_finished(self) -> bool:
        return all((folder / MANIFEST).is_file() for folder in self.folders.values())

    def done(self) -> list[Done]:
        """The parts that are on the disk; the next one written comes behind them."""
        found: list[Done] = []
        while (path := self._unfinished / f"part-{len(found):05d}.json").is_file():
            record = _read_json(path)
            found.append(Done(record["units"], record["digest"], record["documents"]))
        self._n = len(found)
        return found

    def write(self, part: Part) -> None:
        """One more part. It counts from when this returns.

        Raises
        ------
        ValueError
            A value is not finite, such as one too large for float16.
        OSError
            The disk refused.
        """
        number, layers = self._n, {}
        for name, vectors in part.vectors.items():
            moments = _moments(vectors, name, self.dtype)
            written = _write_shard(self.folders[name] / shard_name(number), vectors)
            layers[name] = {"d": vectors.shape[1], "rows": len(vectors), **written, **moments}
        for name, table in zip(TABLES, (part.rows, part.documents), strict=True):
            with atomic_writer(self._part_of(name, number)) as file:
                write_parquet(file, table, SCHEMAS[name])
        record = {"units": part.units, "digest": part.digest, "documents": len(part.documents), "layers": layers}
        atomic_write(self._unfinished / f"part-{number:05d}.json", canonical_json(record))
        self._n += 1

    def finish(self) -> None:
        """Put the tables together and write the manifests: from then on it is a store."""
        if not self.is_finished:
            records = [_read_json(self._unfinished / f"part-{i:05d}.json") for i in range(self._n)]
            if not any(layer["rows"] for record in records for layer in record["layers"].values()):
                raise ValueError(f"there is nothing to store in {self.folder}: expected texts with at least one token")
            files = self._write_tables()
            for layer, folder in self.folders.items():
                manifest = self._manifest(layer, [(r["layers"][layer], r["documents"]) for r in records], files)
                atomic_write(folder / MANIFEST, manifest.to_json())
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def discard(self) -> None:
        """Leave nothing of a harvest that wrote no part."""
        with suppress(OSError):
            shutil.rmtree(self._unfinished)
            for folder in self.folders.values():
                for path in (*folder.glob("shard-*.safetensors"), *folder.glob(".shard-*.tmp-*")):
                    path.unlink()
                if folder != self.folder:
                    folder.rmdir()

    def _part_of(self, table: str, number: int) -> Path:
        return self._unfinished / f"{Path(table).stem}-{number:05d}.parquet"

    def _write_tables(self) -> dict[str, dict[str, Any]]:
        first, *others = self.folders.values()
        files = {}
        for name in TABLES:
            with atomic_writer(first / name) as file:
                write_parquet(file, [self._part_of(name, i) for i in range(self._n)], SCHEMAS[name])
            files[name] = {"bytes": (first / name).stat().st_size, "sha256": _sha256(first / name)}
            for other in others:
                _share(first / name, other / name)
        return files

    def _manifest(self, layer: str, parts: list[tuple[dict[str, Any], int]], files: dict[str, Any]) -> Manifest:
        d, moments = parts[0][0]["d"], Moments()
        shards: list[dict[str, Any]] = []
        for number, (part, documents) in enumerate(parts):
            mean, m2 = (torch.tensor(part[name], dtype=torch.float64) for name in ("mean", "m2"))
            moments.merge(part["rows"], mean, m2)
            shards.append(
                {
                    "file": shard_name(number),
                    "offset": sum(shard["rows"] for shard in shards),
                    "rows": part["rows"],
                    "documents": documents,
                    "sha256": part["sha256"],
                    "blocks": part["blocks"],
                }
            )
        described = {
            "fewfire_store": VERSION,
            "layer": layer,
            "per": self.per,
            "dtype": self.dtype,
            "d": d,
            "n_rows": moments.count,
            "n_documents": sum(documents for _, documents in parts),
            "block_rows": _block_rows(d, self.dtype),
            "mean": moments.mean.tolist(),
            "scale": float(moments.variance.mean().sqrt()),
            "producer": self.producer,
            "producer_sha256": sha256_json(self.producer),
            "shards": shards,
            "files": files,
        }
        return Manifest.model_validate(described)


# ---------------------------------------------------------------------------------------------- files


def _block_rows(d: int, dtype: str) -> int:
    return max(BLOCK_BYTES // (d * DTYPES[dtype][1].itemsize), 1)


def _write_shard(path: Path, vectors: Tensor) -> dict[str, Any]:
    """The checksums of the file and of its blocks."""
    dtype = next(name for name, (_, torch_dtype) in DTYPES.items() if torch_dtype == vectors.dtype)
    entry = {"dtype": DTYPES[dtype][0], "shape": list(vectors.shape), "data_offsets": [0, vectors.nbytes]}
    header = canonical_json({TENSOR: entry}).encode()
    header += b" " * (-len(header) % 64 + 56)  # 8 bytes before it: the rows begin at a cache line
    whole, blocks = hashlib.sha256(), []
    with atomic_writer(path) as file:
        start = len(header).to_bytes(8, "little") + header
        file.write(start)
        whole.update(start)
        for block in _blocks(vectors, _block_rows(vectors.shape[1], dtype)):
            data = raw(block.contiguous())
            file.write(data)
            whole.update(data)
            blocks.append(hashlib.sha256(data).hexdigest())
    return {"sha256": whole.hexdigest(), "blocks": blocks}


def _blocks(vectors: Tensor, rows: int) -> Iterator[Tensor]:
    return (vectors[first : first + rows] for first in range(0, len(vectors), rows))


def _moments(vectors: Tensor, layer: str, dtype: str) -> dict[str, Any]:
    moments = Moments()
    for block in _blocks(vectors, 1 << 13):
        moments.update(block)
    if not len(vectors):
        moments.mean = moments.m2 = torch.zeros(vectors.shape[1], dtype=torch.float64)
    if not bool(moments.m2.isfinite().all()):
        advice = "; bfloat16 or float32 holds what float16 is too small for" if dtype == "float16" else ""
        raise ValueError(f"{layer} puts out values that are not finite, or that {dtype} cannot hold{advice}")
    return {"mean": moments.mean.tolist(), "m2": moments.m2.tolist()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(HASH_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _share(file: Path, other: Path) -> None:
    """The same file under another name; a copy where the disk has no links."""
    temporary = other.with_name(f".{other.name}.link")
    temporary.unlink(missing_ok=True)
    try:
        os.link(file, temporary)
    except OSError:
        with atomic_writer(other) as target, file.open("rb") as source:
            shutil.copyfileobj(source, target)
        return
    temporary.replace(other)
    fsync_folder(other.parent)


def _folder_name(layer: str) -> str:
    if not re.fullmatch(r"\w[\w.\-]{0,199}", layer):
        raise ValueError(f"{layer!r:.60} can be no folder's name; harvest this layer alone")
    return layer


def _read_json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes(), 1 << 22)
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {one_line(error)}; begin anew in another folder") from None


def _difference(known: Any, wanted: Mapping[str, Any]) -> str:
    if not isinstance(known, Mapping):
        return "other settings"
    name = next((k for k in sorted({*known, *wanted}) if known.get(k) != wanted.get(k)), "")
    return f"{name} {short(known.get(name))}, and not {short(wanted.get(name))}"
