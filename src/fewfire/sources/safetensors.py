"""``.safetensors`` files, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fewfire.contracts import Layout
from fewfire.disk import parse_json
from fewfire.preprocess import Spec
from fewfire.rows import BFLOAT16
from fewfire.sources.arrays import ArraySource
from fewfire.sources.reading import reading
from fewfire.sources.registry import suffixes

__all__ = ["SafetensorsSource"]

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 4096
MAX_RANK = 16
_LISTED = 4

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@suffixes(".safetensors")
class SafetensorsSource(ArraySource):
    """One tensor of a ``.safetensors`` file, memory-mapped: rows are read when a batch needs them.

    So the file may be larger than memory. As with a ``.npy`` file, do not write to it meanwhile.

    Parameters
    ----------
    path
        A file of tensors, such as embeddings or activations: one of them (n, columns) or (n, *row shape). bfloat16
        comes as float32.
    tensor
        The name of the tensor, needed when several have rows.
    layout, suggested_preprocess
        As in :class:`ArraySource`.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is not such a file, is damaged, is a fewfire model, holds no rows of real numbers, or several tensors of
        them.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tensor: str | None = None,
        layout: Layout | Mapping[str, Any] | None = None,
        suggested_preprocess: Spec = None,
    ) -> None:
        path = Path(path)
        with reading(path):
            x = _map(path, tensor)
            super().__init__(x, layout=layout, name=path.stem, suggested_preprocess=suggested_preprocess)


def _map(path: Path, tensor: str | None) -> npt.NDArray[Any]:
    with path.open("rb") as file:
        header, offset = _read_header(file, path.stat().st_size)
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    name = _choose(header, shapes, tensor)
    entry = header[name]
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensor {_short(name)} is {_short(entry['dtype'])}; save it as BF16 or F32")
    if 0 in shapes[name] or not shapes[name]:
        return np.empty(shapes[name], np.uint8)  # nothing to map; its shape will be refused
    begin = offset + entry["data_offsets"][0]
    return np.memmap(path, _DTYPES[entry["dtype"]], mode="r", offset=begin, shape=shapes[name])


# ---------------------------------------------------------------------------------------------- the header


def _read_header(file: IO[bytes], size: int) -> tuple[dict[str, Any], int]:
    """The tensors' entries, checked against the file, and where their bytes begin. Measured before it is parsed."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise ValueError("it is not a .safetensors file, or was cut short")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"expected a header of at most {MAX_HEADER_BYTES:,} bytes, got a length of {length:,}")
    raw = file.read(length)
    if raw.count(b'"data_offsets"') > MAX_TENSORS:  # parsing them would take a while
        raise ValueError(f"expected at most {MAX_TENSORS} tensors in it")
    try:
        header = parse_json(raw)
    except ValueError as error:
        raise ValueError(f"it is not a .safetensors file, or is damaged: {' '.join(str(error).split()):.150}") from None
    if not isinstance(header, dict):
        raise ValueError("it is not a .safetensors file: its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    if isinstance(metadata, dict) and "fewfire" in metadata:
        raise ValueError("it is a fewfire model, not data to train on; `fewfire info` describes it")
    _check_entries(header, size - 8 - length)
    return header, 8 + length


def _check_entries(header: Mapping[str, Any], n_bytes: int) -> None:
    """Every tensor as long as its shape says, one after another without holes, to the end of the file."""
    if not 0 < len(header) <= MAX_TENSORS:
        raise ValueError(f"expected 1 to {MAX_TENSORS} tensors in it, got {len(header)}")
    spans = []
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if (
                len(entry) == 3
                and len(shape) <= MAX_RANK
                and all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, begin, end))
            ):
                spans.append((begin, end))
            case _:
                raise ValueError(f"its tensor {_short(name)} is not described by dtype, shape and data offsets")
        if dtype in _DTYPES and end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
            raise ValueError(f"its tensor {_short(name)} has data offsets that do not fit its shape {tuple(shape)}")
    position = 0
    for begin, end in sorted(spans):
        if begin != position or end < begin:
            raise ValueError(f"its tensors leave a hole or overlap at byte {begin}, expected {position}")
        position = end
    if position != n_bytes:
        raise ValueError(f"its tensors take {position:,} bytes, the file has {n_bytes:,} for them")


def _choose(header: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], tensor: str | None) -> str:
    if tensor is not None and tensor in header:
        return tensor
    with_rows = [name for name, shape in shapes.items() if len(shape) > 1 and 0 not in shape]
    names = with_rows or list(shapes)
    held = ", ".join(f"{_short(name)} {header[name]['dtype']:.10} {shapes[name]}" for name in names[:_LISTED])
    held += f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    if tensor is not None:
        raise ValueError(f"it has no tensor {_short(tensor)}; it holds {held}")
    if len(names) == 1:
        return names[0]
    if with_rows:
        raise ValueError(f"it holds several tensors: {held}; choose with tensor={with_rows[0]!r:.40}")
    raise ValueError(f"expected a tensor (n, columns) in it; it holds {held}")


def _short(name: str) -> str:
    return f"{name!r:.40}"
