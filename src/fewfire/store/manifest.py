"""What a store says of itself, and what of that a reader may believe."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fewfire.disk import ModelFileError, one_line, parse_json, sha256_json

__all__ = [
    "BLOCK_BYTES",
    "DTYPES",
    "MANIFEST",
    "PER",
    "SHARD_BYTES",
    "TABLES",
    "Manifest",
    "Shard",
    "StoreError",
    "StoredFile",
    "shard_name",
]

MANIFEST = "manifest.json"
TABLES = ("rows.parquet", "documents.parquet")
VERSION = 1
PER = ("token", "mean", "first", "last")
DTYPES: dict[str, tuple[str, torch.dtype]] = {
    "float16": ("F16", torch.float16),
    "bfloat16": ("BF16", torch.bfloat16),
    "float32": ("F32", torch.float32),
}
"""name -> what safetensors calls it, and torch"""

SHARD_BYTES = 64 << 20
"""of rows in a shard, about: what a killed harvest does again"""
BLOCK_BYTES = 4 << 20
"""of rows that are read at once: a pool of shuffled rows has dozens of blocks, from all over the store"""

MAX_BYTES = 256 << 20
"""of a manifest: a checksum for every 4 MiB makes 20 MiB of it for a terabyte of rows"""
MAX_VALUES = 1 << 22
MAX_D = 1 << 20
MAX_ROWS = 1 << 48
MAX_SHARD_ROWS = 1 << 31
MAX_SHARD_DOCUMENTS = 1 << 20

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=MAX_ROWS)]


class StoreError(ModelFileError):
    """A store is damaged, hostile or too new. The message is one line and names the file."""


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StoredFile(_Strict):
    """A file beside the shards."""

    bytes: Count
    sha256: Sha256


class Shard(_Strict):
    """One file of rows."""

    file: str
    offset: Count
    """number of its first row"""
    rows: Annotated[int, Field(ge=0, le=MAX_SHARD_ROWS)]
    documents: Annotated[int, Field(ge=0, le=MAX_SHARD_DOCUMENTS)]
    sha256: Sha256
    """of the file"""
    blocks: list[Sha256]
    """of the bytes of every ``block_rows`` rows"""


class Manifest(_Strict):
    """``manifest.json``."""

    fewfire_store: Annotated[int, Field(ge=VERSION, le=VERSION)]
    layer: Annotated[str, Field(max_length=1000)]
    per: Literal["token", "mean", "first", "last"]
    dtype: Literal["float16", "bfloat16", "float32"]
    d: Annotated[int, Field(ge=1, le=MAX_D)]
    n_rows: Count
    n_documents: Count
    block_rows: Annotated[int, Field(ge=1, le=MAX_SHARD_ROWS)]
    mean: list[float]
    scale: float
    producer: dict[str, Any]
    producer_sha256: Sha256
    shards: list[Shard]
    files: dict[str, StoredFile]

    @property
    def row_bytes(self) -> int:
        return self.d * DTYPES[self.dtype][1].itemsize

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"

    @model_validator(mode="after")
    def _adds_up(self) -> Manifest:
        """The counts agree with each other, and no name leads out of the folder."""
        rows = 0
        for number, shard in enumerate(self.shards):
            if shard.file != shard_name(number):
                raise ValueError(f"expected shard {number} to be {shard_name(number)}, got {shard.file!r:.60}")
            if shard.offset != rows:
                raise ValueError(f"{shard.file} begins with row {shard.offset:,}, expected {rows:,}")
            if len(shard.blocks) != -(-shard.rows // self.block_rows):
                raise ValueError(f"{shard.file} has {len(shard.blocks):,} checksums, not one for each of its blocks")
            rows += shard.rows
        _equal("n_rows", self.n_rows, rows)
        _equal("n_documents", self.n_documents, sum(shard.documents for shard in self.shards))
        _equal("mean", len(self.mean), self.d)
        if set(self.files) != set(TABLES):
            raise ValueError(f"expected the files {', '.join(TABLES)}, got {one_line(', '.join(self.files), 80)}")
        if sha256_json(self.producer) != self.producer_sha256:
            raise ValueError("producer is not what producer_sha256 was made of")
        return self

    @classmethod
    def read(cls, folder: Path) -> tuple[Manifest, str]:
        """(what ``manifest.json`` says, the SHA-256 of its bytes), checked against itself.

        Raises
        ------
        FileNotFoundError
            There is none.
        StoreError
            It makes no sense.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {MANIFEST}: it is no activation store, or not a finished one")
        if path.stat().st_size > MAX_BYTES:
            raise StoreError(f"{path} has {path.stat().st_size:,} bytes, at most {MAX_BYTES:,} are read")
        data = path.read_bytes()
        try:
            raw = parse_json(data, MAX_VALUES)
            version = raw.get("fewfire_store") if isinstance(raw, Mapping) else None
            if version != VERSION:
                made = f"of version {version}" if isinstance(version, int) else "not an activation store's"
                raise ValueError(f"it is {made}; this fewfire reads version {VERSION}")
            return cls.model_validate(raw), hashlib.sha256(data).hexdigest()
        except ValidationError as error:
            raise StoreError(f"{path} makes no sense: {_complaint(error)}") from None
        except ValueError as error:
            raise StoreError(f"{path} cannot be used: {one_line(error)}") from None


def _equal(what: str, said: int, counted: int) -> None:
    if said != counted:
        raise ValueError(f"{what} says {said:,}, the rest says {counted:,}")


def _complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    return one_line(f"{re.sub(r'^$', 'it', where)}: {first['msg'].removeprefix('Value error, ')}")
