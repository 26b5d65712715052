"""``.npz`` archives: zip files of ``.npy`` members."""

from __future__ import annotations

import math
import os
import stat
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fewfire.contracts import Layout
from fewfire.preprocess import Spec
from fewfire.sources.arrays import ArraySource
from fewfire.sources.npy import NpyHeader
from fewfire.sources.reading import machine_memory, reading
from fewfire.sources.registry import suffixes
from fewfire.sources.sparse import holds_sparse, read_sparse

__all__ = ["NpzSource"]

MAX_MEMBERS = 4096
MAX_NAME = 256
MAX_DIRECTORY_BYTES = 1 << 20
"""the list of members at the end of the archive, which is read before anything can be asked"""
MAX_RATIO = 100
"""an archive may hold this many times its own size, or 64 MiB"""
MAX_SMALL_BYTES = 64 << 20
_CHUNK = 1 << 20
_END = b"PK\x05\x06"
_LISTED = 4


@suffixes(".npz")
class NpzSource(ArraySource):
    """A ``.npz`` archive: one array of it, or a sparse matrix written by ``scipy.sparse.save_npz``.

    It is read into memory; a ``.npy`` file is not, and may be larger. What ``fewfire encode --out codes.npz`` wrote
    is such a matrix, and only the rows of a batch become dense.

    Parameters
    ----------
    path
        A file written by ``numpy.savez``, ``numpy.savez_compressed`` or ``scipy.sparse.save_npz``. Pickled objects
        are never loaded.
    array
        The name of the array, needed when several have rows.
    allow_expansion
        Read an archive that holds more than 64 MiB and more than 100 times its own size. Without it such a file is
        taken for a bomb, and refused before anything is inflated.
    layout, suggested_preprocess
        As in :class:`ArraySource`.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    TypeError, ValueError
        It is not such an archive, is damaged, holds no rows of real numbers, or several arrays of them.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        array: str | None = None,
        allow_expansion: bool = False,
        layout: Layout | Mapping[str, Any] | None = None,
        suggested_preprocess: Spec = None,
    ) -> None:
        path = Path(path)
        with reading(path), path.open("rb") as file:
            x = _read(file, array, allow_expansion)
            super().__init__(x, layout=layout, name=path.stem, suggested_preprocess=suggested_preprocess)


def _read(file: IO[bytes], array: str | None, allow_expansion: bool) -> Any:
    size = _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        members = _check_members(archive, size, allow_expansion)
        headers, refused = _read_headers(archive, members)

        def load(name: str) -> npt.NDArray[Any]:
            return _inflate(archive, members[name], headers[name])

        if array is None and holds_sparse(headers):
            return read_sparse(headers, load, None if allow_expansion else _budget(size))
        return load(_choose(headers, refused, array))


# ---------------------------------------------------------------------------------------------- before inflating


def _check_directory(file: IO[bytes]) -> int:
    """The size of the file; refuse a list of members that would take long to read."""
    size = file.seek(0, os.SEEK_END)
    tail_start = max(0, size - (1 << 16) - 22)
    file.seek(tail_start)
    tail = file.read()
    ends = {tail.rfind(_END), len(tail) - 22 if tail[-22:-18] == _END else -1} - {-1}
    if not ends:
        raise ValueError("it is not a .npz archive, which is a zip file, or was cut short")
    lengths = [length for end in ends for length in _directory_lengths(file, tail, tail_start, end)]
    if max(lengths) > MAX_DIRECTORY_BYTES:
        raise ValueError(f"expected a list of members of at most {MAX_DIRECTORY_BYTES:,} bytes, got {max(lengths):,}")
    file.seek(0)
    return size


def _directory_lengths(file: IO[bytes], tail: bytes, tail_start: int, end: int) -> list[int]:
    """How long the list of members is, by the end record at ``tail[end]``, and by that of zip64 where there is one."""
    length = int.from_bytes(tail[end + 12 : end + 16], "little")
    if end < 20 or tail[end - 20 : end - 16] != b"PK\x06\x07":
        return [length]
    lengths = [] if length == 0xFFFFFFFF else [length]
    stated = int.from_bytes(tail[end - 12 : end - 4], "little")
    for place in (stated, tail_start + end - 76):  # readers differ in where they look
        file.seek(min(max(place, 0), tail_start + end))
        record = file.read(56)
        lengths += [int.from_bytes(record[40:48], "little")] if record[:4] == b"PK\x06\x06" else []
    return lengths or [length]


def _check_members(archive: zipfile.ZipFile, size: int, allow_expansion: bool) -> dict[str, zipfile.ZipInfo]:
    """The members by the names of their arrays, none of which is anything else than a ``.npy`` file."""
    infos = archive.infolist()
    if not 0 < len(infos) <= MAX_MEMBERS:
        raise ValueError(f"expected 1 to {MAX_MEMBERS} arrays in it, got {len(infos)}")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        refusal = _refusal(info)
        if refusal or info.filename in members:
            raise ValueError(f"its member {_short(info.filename)} {refusal or 'is there twice'}")
        members[info.filename] = info
    total = sum(info.file_size for info in infos)
    if total > _budget(size) and not allow_expansion:
        raise ValueError(
            f"it would grow from {size:,} to {total:,} bytes, more than {MAX_RATIO} times; if you trust it, "
            "pass allow_expansion=True (--set data.options.allow_expansion=true)"
        )
    memory = machine_memory()
    if memory is not None and total > memory:
        raise ValueError(
            f"its arrays take {total:,} bytes, this machine has {memory:,} of memory; "
            "save the array as .npy, which is read as it is needed"
        )
    return {name.removesuffix(".npy"): info for name, info in members.items()}


def _budget(size: int) -> int:
    """Bytes that an archive of this size may hold without a word from its reader."""
    return max(MAX_SMALL_BYTES, MAX_RATIO * size)


def _refusal(info: zipfile.ZipInfo) -> str | None:
    """Why no array is in such a member; None: one may be."""
    name = info.filename
    if len(name) > MAX_NAME or not name.isprintable() or any(c in name for c in "/\\:") or name.startswith("."):
        return "has a name that no array has"
    if not name.endswith(".npy"):
        return "is not a .npy file; expected arrays saved by numpy.savez"
    if info.flag_bits & 0x1:
        return "is encrypted"
    mode = info.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "is not a regular file but a link or a folder"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {info.compress_type}; numpy writes only stored and deflated ones"
    return None


def _read_headers(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> tuple[dict[str, NpyHeader], dict[str, TypeError]]:
    """What each array is, and why some, of pickled objects, are never loaded. A few bytes of each are inflated."""
    headers, refused = {}, {}
    for name, info in members.items():
        with archive.open(info) as member:
            try:
                header = NpyHeader.read(member)
            except TypeError as error:
                refused[name] = error
                continue
        if header.end != info.file_size:
            raise ValueError(
                f"its member {_short(name)} has {info.file_size:,} bytes by the list of members, and "
                f"{header.end:,} by its own header"
            )
        headers[name] = header
    return headers, refused


# ---------------------------------------------------------------------------------------------- one array


def _choose(headers: Mapping[str, NpyHeader], refused: Mapping[str, TypeError], array: str | None) -> str:
    if array in refused or not headers:
        name = next(iter(refused)) if array is None else array
        raise TypeError(f"array {_short(name)}: {refused.get(name, 'is not in it')}")
    if array is not None and array in headers:
        return array
    with_rows = [n for n, h in headers.items() if len(h.shape) > 1 and h.dtype.kind in "biuf" and 0 not in h.shape]
    held = _listed(headers, with_rows or headers)
    if array is not None:
        raise ValueError(f"it has no array {_short(array)}; it holds {held}")
    if len(with_rows) == 1 or len(headers) == 1:
        return (with_rows or list(headers))[0]
    if with_rows:
        raise ValueError(f"it holds several arrays: {held}; choose with array={with_rows[0]!r:.40}")
    raise ValueError(f"expected an array of numbers (n, columns) in it; it holds {held}")


def _listed(headers: Mapping[str, NpyHeader], names: Iterable[str]) -> str:
    names = list(names)
    described = [f"{_short(name)} {headers[name].dtype} {headers[name].shape}" for name in names[:_LISTED]]
    return ", ".join(described) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _inflate(archive: zipfile.ZipFile, info: zipfile.ZipInfo, header: NpyHeader) -> npt.NDArray[Any]:
    """The numbers; not one byte more than the header promised is ever inflated.

    That is all that the list of members promised, and having read so much, zipfile compares the checksum.
    """
    array = np.empty(math.prod(header.shape), header.dtype)
    room = array.view(np.uint8)
    with archive.open(info) as member:
        member.read(header.offset)
        done = 0
        while done < len(room):
            piece = member.read(min(_CHUNK, len(room) - done))
            if not piece:
                raise ValueError(f"it ends inside its member {_short(info.filename)}")
            room[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
    return array.reshape(header.shape, order="F" if header.fortran_order else "C")


def _short(name: str | None) -> str:
    return f"{name!r:.40}"
