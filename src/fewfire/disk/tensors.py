"""Named tensors and their metadata in one checksummed file.

The file is an ordinary safetensors file, which any of its readers opens::

    8 bytes     header length N, little-endian
    N bytes     JSON: {"__metadata__": {"fewfire": ..., "metadata_sha256": ..., "sha256": ..., "digests_sha256": ...},
                       name: {"dtype": "F32", "shape": [L, D], "data_offsets": [begin, end]}, ...}
    the rest    the tensors, one after another, without gaps

A file from a stranger is cheap to refuse: its header is measured before it is parsed, and no memory is taken
for data that the file does not hold. Checksums guard against accident, not against forgery: whoever can write
the file can write the checksums.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewfire.disk.atomic import atomic_writer
from fewfire.disk.strict_json import canonical_json, check_size, parse_json, sha256_text, short

__all__ = ["ModelFileError", "load_foreign_tensors", "load_tensors", "read_metadata", "save_tensors", "stored_size"]

# What a file may claim: far above any model, far below what makes a reader suffer. (A header of a million
# empty tensors costs the safetensors library 23 seconds and a gigabyte.) Saving keeps the same limits.
MAX_HEADER_BYTES = 8 << 20
"""a table's column names are most of it: 200,000 names of 30 letters, or 35,000 of 30 Chinese characters"""
MAX_TENSORS = 4096
MAX_ENTRIES = 16 * MAX_TENSORS
"""JSON values of the header, the metadata inside it counted as one: an entry has at most eleven"""
MAX_NAME = 256
MAX_RANK = 5
MAX_DIM = 1 << 31
MAX_ELEMENTS = 1 << 40
"""per tensor, an empty dimension counted as 1: (0, 2**31, 2**31, 2**31) is empty and overflows a stride"""

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_OTHERS = {
    b"PK": "a zip archive, as torch.save and numpy.savez write, which is never opened",
    b"\x80": "a pickle, which can run code and is never opened",
    b"\x93NUMPY": "a .npy file",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
}
_NOT_OURS = "was not written by fewfire, its metadata do not say so; `fewfire convert` may read it"
_CLAIMS = ("fewfire", "metadata_sha256", "sha256", "digests_sha256")
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class ModelFileError(ValueError):
    """A file is damaged, hostile, too new, or not fewfire's. The message is one line and names the file."""


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata as one checksummed safetensors file, whole or not at all.

    The same input gives the same bytes. Tensors may live on any device, be strided, or share memory; each is
    written in full.

    Parameters
    ----------
    path
        The file to write. Its folder must exist.
    tensors
        Name -> dense tensor of any shape, of a floating-point, integer or bool dtype.
    metadata
        Plain JSON values.

    Raises
    ------
    ValueError
        A tensor or the metadata cannot be stored, or is larger than :func:`load_tensors` would accept.
    OSError
        The disk refused; an older file at ``path`` is untouched.
    """
    tensors = {name: _on_host(name, tensor) for name, tensor in tensors.items()}
    # Wide elements first: every tensor then starts at a multiple of its element size, as memory maps like it.
    tensors = dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))
    header = _header(tensors, metadata, lambda entry, tensor: _digest(entry.dtype, entry.shape, _bytes(tensor)))
    with atomic_writer(path) as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for tensor in tensors.values():
            file.write(_bytes(tensor))


def stored_size(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> int:
    """Bytes of the file that :func:`save_tensors` would write, without reading the tensors' content.

    Raises
    ------
    ValueError
        What :func:`save_tensors` would refuse.
    """
    for name, tensor in tensors.items():
        _check_kind(name, tensor)
    header = _header(tensors, metadata, lambda *_: "0" * 2 * hashlib.sha256().digest_size)
    return 8 + len(header) + sum(tensor.nbytes for tensor in tensors.values())


def load_tensors(
    path: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote, every byte verified.

    Returns
    -------
    tensors, metadata
        The tensors own their memory and live on ``device``.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ModelFileError
        The file is damaged, beyond the limits above, or not written by fewfire.
    """
    path = Path(path)
    with _opened(path) as file, _blaming(path):
        header, claims, n_bytes = _read_json(file)
        contents = _verified(header, claims, n_bytes)
        return _read_tensors(file, contents, device), contents.metadata


def load_foreign_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of any safetensors file, within the limits above; verified where fewfire wrote it.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ModelFileError
        The file is damaged or beyond the limits; or its metadata say more than what its tensors are for, which nobody
        here would read.
    """
    path = Path(path)
    with _opened(path) as file, _blaming(path):
        header, claims, n_bytes = _read_json(file)
        if "fewfire" in claims:
            return _read_tensors(file, _verified(header, claims, n_bytes))
        if claims.keys() - {"format"}:
            raise ModelFileError(f"has the metadata {short(min(claims.keys() - {'format'}))}, which are not understood")
        return _read_tensors(file, _Contents({}, {}, _read_entries(header, n_bytes)))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Only the metadata of a file, verified. The tensors are not read, so a large file takes no longer.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ModelFileError
        The header is damaged, beyond the limits above, or not written by fewfire.
    """
    path = Path(path)
    with _opened(path) as file, _blaming(path):
        return _verified(*_read_json(file)).metadata


# ---------------------------------------------------------------------------------------------- both ways


@dataclass(frozen=True)
class _Entry:
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def refusal(self, name: str) -> str | None:
        """Why no fewfire file holds such a tensor; None: it may."""
        if name == "__metadata__":
            return "has a name that safetensors keeps for itself"
        if len(name) > MAX_NAME:
            return f"has a name of {len(name)} characters, at most {MAX_NAME} are allowed"
        if len(self.shape) > MAX_RANK:
            return f"has {len(self.shape)} dimensions, at most {MAX_RANK} are allowed"
        if any(not 0 <= dim <= MAX_DIM for dim in self.shape):
            return f"has a dimension outside 0 ... {MAX_DIM}"
        if math.prod(max(dim, 1) for dim in self.shape) > MAX_ELEMENTS:
            return f"has a shape of more than {MAX_ELEMENTS} elements"
        if self.end - self.begin != math.prod(self.shape) * _DTYPES[self.dtype].itemsize:
            return "has data offsets that do not fit its shape"
        return None


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor; not a copy."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _digest(dtype: str, shape: tuple[int, ...], data: memoryview) -> str:
    """SHA-256 over dtype, shape and bytes: the same bytes in another shape are another tensor."""
    digest = hashlib.sha256(canonical_json([dtype, shape]).encode())
    digest.update(data)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- writing


def _check_kind(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _DTYPE_NAMES:
        raise ValueError(
            f"tensor {short(name)}: expected a dense tensor of {', '.join(_DTYPES)}; "
            f"got {'a meta tensor without data' if tensor.is_meta else f'{tensor.layout}, {tensor.dtype}'}"
        )


def _on_host(name: str, tensor: Tensor) -> Tensor:
    _check_kind(name, tensor)
    return tensor.detach().cpu().contiguous()


def _header(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], digest: Callable[[_Entry, Tensor], str]
) -> bytes:
    """The header of these tensors, in this order, padded to a multiple of 8 bytes."""
    position, digests, entries = 0, {}, {}
    for name, tensor in tensors.items():
        entry = _Entry(_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), position, position + tensor.nbytes)
        refusal = entry.refusal(name)
        if refusal:
            raise ValueError(f"tensor {short(name)} cannot be saved: it {refusal}")
        digests[name] = digest(entry, tensor)
        entries[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (entry.begin, entry.end)}
        position = entry.end

    text = canonical_json(dict(metadata))
    try:
        check_size(text)
    except ValueError as error:
        raise ValueError(f"the metadata cannot be saved: they would be {error}") from None
    table = canonical_json(digests)
    claims = {"fewfire": text, "metadata_sha256": sha256_text(text)}
    claims |= {"sha256": table, "digests_sha256": sha256_text(table)}
    header = canonical_json({"__metadata__": claims, **entries}).encode()
    header += b" " * (-len(header) % 8)
    if len(entries) > MAX_TENSORS or len(header) > MAX_HEADER_BYTES:
        raise ValueError(
            f"expected at most {MAX_TENSORS} tensors and {MAX_HEADER_BYTES} bytes of names and metadata, "
            f"got {len(entries)} tensors and {len(header)} bytes; shorten the metadata"
        )
    return header


# ---------------------------------------------------------------------------------------------- reading
# These raise ValueError with a clause; _blaming makes it a sentence about the file.


@dataclass(frozen=True)
class _Contents:
    """A header, checked."""

    metadata: dict[str, Any]
    sha256: dict[str, Any]
    """name -> the digest that its tensor must have; empty where nobody wrote one"""
    entries: dict[str, _Entry]
    """in the order of their bytes"""


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such model file; check the path", str(path))
    if not path.is_file():  # a folder; or a pipe, which would block for ever
        raise ModelFileError(f"{path} is not a file; expected a .safetensors file")
    with path.open("rb") as file:
        yield file


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    try:
        yield
    except ModelFileError as error:
        raise ModelFileError(f"{path} {error}") from None
    except ValueError as error:
        raise ModelFileError(f"{path} is damaged: {error}; restore it from a copy") from None
    except OSError as error:  # a failing disk: the system does not say which file it was reading
        raise OSError(error.errno, f"could not read ({error.strerror or error})", str(path)) from error


def _read_json(file: BufferedReader) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The header's entries, its ``__metadata__``, and how many bytes of tensors follow."""
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise ValueError(f"it is {size} bytes long, too short for a safetensors file")
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES:
        other = next((f"; it looks like {name}" for magic, name in _OTHERS.items() if start.startswith(magic)), "")
        raise ValueError(f"expected a header of at most {MAX_HEADER_BYTES} bytes, got a length of {length}{other}")
    raw = file.read(length)
    if len(raw) < length:
        raise ValueError(f"the file ends inside its header, at byte {size} of at least {8 + length}")
    header = parse_json(raw, MAX_ENTRIES)
    claims = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(claims, dict):
        raise ModelFileError(_NOT_OURS)
    return header, claims, size - 8 - length


def _verified(header: dict[str, Any], claims: dict[str, Any], n_bytes: int) -> _Contents:
    """What fewfire wrote, with what it wrote to check it by."""
    if "fewfire" not in claims:
        raise ModelFileError(_NOT_OURS)
    metadata, sha256 = _read_claims(claims)
    entries = _read_entries(header, n_bytes)
    for name in sha256.keys() ^ entries.keys():
        raise ValueError(f"tensor {short(name)} has {'no checksum' if name in entries else 'a checksum but no data'}")
    return _Contents(metadata, sha256, entries)


def _read_tensors(file: BufferedReader, contents: _Contents, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    tensors = {}
    for name, entry in contents.entries.items():
        # Read, not mapped: a mapped file that shrinks meanwhile kills the process with SIGBUS.
        tensor = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
        data = _bytes(tensor)
        if file.readinto(data) != len(data):
            raise ValueError(f"the file ends inside tensor {short(name)}")
        if contents.sha256 and _digest(entry.dtype, entry.shape, data) != contents.sha256[name]:
            raise ValueError(f"tensor {short(name)} does not match its checksum")
        tensors[name] = tensor.to(device)
    return tensors


def _read_claims(claims: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metadata, verified, and the digests that the tensors must have."""
    if unknown := claims.keys() - set(_CLAIMS):
        raise ValueError(f"its metadata have the unknown entry {short(min(unknown))}")
    texts = map(claims.get, _CLAIMS)
    metadata, expected, sha256, names_too = (text if isinstance(text, str) else "" for text in texts)
    if sha256_text(metadata) != expected:
        raise ValueError("the metadata do not match their checksum")
    # A tensor's digest does not hold its name; the digest of the table does. The oldest files have none.
    if sha256_text(sha256) != names_too and "digests_sha256" in claims:
        raise ValueError("the checksums do not match their own")
    parsed, digests = parse_json(metadata), parse_json(sha256, MAX_ENTRIES)
    if not isinstance(parsed, dict) or not isinstance(digests, dict):
        raise ValueError("the metadata are not a JSON object")
    return parsed, digests


def _read_entries(header: dict[str, Any], n_bytes: int) -> dict[str, _Entry]:
    """The tensors' entries in the order of their bytes, which they must cover exactly."""
    if len(header) > MAX_TENSORS:
        raise ValueError(f"it has {len(header)} tensors, at most {MAX_TENSORS} are allowed")
    entries = {name: _read_entry(name, value) for name, value in header.items()}
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    position = 0
    for name, entry in entries.items():
        if entry.begin != position:
            raise ValueError(f"tensor {short(name)} starts at byte {entry.begin}, expected {position}")
        position = entry.end
    if position != n_bytes:
        raise ValueError(f"its tensors take {position} bytes, the file has {n_bytes} for them")
    return entries


def _read_entry(name: str, value: Any) -> _Entry:
    match value:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if len(value) == 3 and all(
            type(number) is int for number in (*shape, begin, end)
        ):
            entry = _Entry(dtype, tuple(shape), begin, end)
        case _:
            raise ValueError(f"tensor {short(name)} is not described by dtype, shape and data offsets")
    if dtype not in _DTYPES:
        raise ValueError(f"tensor {short(name)} has the unknown dtype {short(dtype)}")
    refusal = entry.refusal(name)
    if refusal:
        raise ValueError(f"tensor {short(name)} {refusal}")
    return entry
