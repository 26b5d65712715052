"""What a stranger's folder holds, taken item by item: what is missing, unknown or of another kind is an error."""

from __future__ import annotations

import errno
import io
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from fewfire.disk import ModelFileError, load_foreign_tensors, one_line, parse_json, short

__all__ = ["Settings", "Tensors"]

MAX_JSON_BYTES = 4 << 20
MAX_PICKLE_BYTES = 1 << 20
"""of the description in a .pt file, the numbers not counted: a dictionary's takes a kilobyte"""
MAX_RECORDS = 4096
PICKLE = "data.pkl"

_REQUIRED: Final = object()
_NUMBERS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int64, torch.int32)


class Settings:
    """A JSON object, taken key by key.

    Parameters
    ----------
    file
        Where it comes from, for messages.
    entries
        The object.
    where
        Its key, when it is part of another.
    """

    def __init__(self, file: Path, entries: Mapping[str, Any], where: str = "") -> None:
        self.file = file
        self.whole = dict(entries)
        self._left = dict(entries)
        self._where = where

    @classmethod
    def read(cls, file: Path) -> Settings:
        """The object in a JSON file of at most 4 MiB.

        Raises
        ------
        FileNotFoundError, ModelFileError
            There is no such file; or it is too large, damaged, or no object.
        """
        if not file.is_file():  # a pipe would block for ever
            raise FileNotFoundError(f"there is no {file}; expected it beside the weights")
        with file.open("rb") as opened:
            text = opened.read(MAX_JSON_BYTES + 1)
        if len(text) > MAX_JSON_BYTES:
            raise ModelFileError(f"{file} is longer than {MAX_JSON_BYTES} bytes; no configuration is")
        try:
            entries = parse_json(text)
        except ValueError as error:
            raise ModelFileError(f"{file} is damaged: {one_line(error)}; restore it from a copy") from None
        if not isinstance(entries, dict):
            raise ModelFileError(f"{file} is not a configuration: expected a JSON object, got {short(entries)}")
        return cls(file, entries)

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def take(self, key: str, *kinds: type, default: Any = _REQUIRED) -> Any:
        """The value of a key, of one of these kinds; ``default`` where there is none.

        Raises
        ------
        ModelFileError
            It is missing and has no default, or is of another kind.
        """
        if key not in self._left:
            if default is _REQUIRED:
                raise ModelFileError(f"{self.file} lacks {self._name(key)}")
            return default
        value = self._left.pop(key)
        if type(value) not in kinds and not (float in kinds and type(value) is int):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ModelFileError(f"{self.file}: expected {self._name(key)} to be {names}, got {short(value)}")
        return value

    def size(self, key: str) -> int:
        """A whole number of at least 1."""
        value = self.take(key, int)
        if value < 1:
            raise ModelFileError(f"{self.file}: expected {self._name(key)} to be at least 1, got {short(value)}")
        return int(value)

    def table(self, key: str) -> Settings:
        """An object within this one."""
        return Settings(self.file, self.take(key, dict), self._name(key, quoted=False))

    def pass_over(self, *keys: str) -> None:
        """Keys that are known, and change nothing of what the model computes."""
        for key in keys:
            self._left.pop(key, None)

    def finish(self) -> None:
        """Refuse what nobody took.

        Raises
        ------
        ModelFileError
            A key is left.
        """
        if self._left:
            raise ModelFileError(f"{self.file} has {self._name(min(self._left))}, which is not understood")

    def refuse(self, why: str) -> ModelFileError:
        """The error that says why this model cannot be read."""
        return ModelFileError(f"{self.file} cannot be read: {why}")

    def _name(self, key: str, quoted: bool = True) -> str:
        name = f"{self._where}.{key}" if self._where else key
        return short(name) if quoted else name


class Tensors:
    """Named tensors, taken one by one."""

    def __init__(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        self.file = file
        self._left = dict(tensors)

    @classmethod
    def read_safetensors(cls, file: Path) -> Tensors:
        """Those of a safetensors file; errors as ``load_foreign_tensors``."""
        return cls(file, load_foreign_tensors(file))

    @classmethod
    def read_pt(cls, file: Path) -> Tensors:
        """Those of a state dict that torch saved: the one place where fewfire opens a pickle.

        ``torch.load(weights_only=True)`` runs no code, but a small file can make it fill the memory: with compressed
        records, with the many bytes of a ``bytearray``, with a tensor that repeats one number. So the archive and the
        list of what it wants built are looked through first, and the tensors afterwards. torch is given a new archive
        of the records that were looked at: it might find others in the file. Takes twice the file's size of memory.

        Raises
        ------
        FileNotFoundError, ModelFileError
            There is no such file; or it is damaged, or holds other things than dense tensors.
        """
        if not file.is_file():
            raise FileNotFoundError(f"there is no {file}; expected it beside the configuration")
        archive = _checked_archive(file)
        try:
            found = torch.load(archive, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch runs into, the file is what is wrong
            reason = one_line(error) or type(error).__name__
            raise ModelFileError(f"{file} is damaged: {reason}; restore it from a copy") from error
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise ModelFileError(f"{file} is not a state dict: expected tensors by name, got a {type(found).__name__}")
        return cls(file, {name: value for name, value in found.items() if _checked(file, name, value)})

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape, of finite numbers, in float32 or float64 (narrower ones fit into float32 exactly).

        Raises
        ------
        ModelFileError
            It is missing, or of another shape or kind, or holds NaN or infinity.
        """
        tensor = self._pop(name, _NUMBERS, shape)
        wide = tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        if not wide.isfinite().all():
            raise ModelFileError(f"{self.file} holds NaN or infinity in {short(name)}")
        return wide.contiguous()

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that is to be taken; () where there is none."""
        return tuple(self._left[name].shape) if name in self._left else ()

    def number(self, name: str) -> float:
        """A tensor without dimensions, as a number."""
        return float(self.take(name))

    def integers(self, name: str, *shape: int) -> Tensor:
        """A tensor of whole numbers, int64."""
        return self._pop(name, _INTEGERS, shape).to(torch.int64)

    def _pop(self, name: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]) -> Tensor:
        if name not in self._left:
            raise ModelFileError(f"{self.file} lacks the tensor {short(name)}")
        tensor = self._left.pop(name)
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
            raise ModelFileError(
                f"{self.file}: expected {short(name)} of shape {shape} in {str(dtypes[0]).removeprefix('torch.')} or "
                f"its like, got {tuple(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')}"
            )
        return tensor

    def finish(self) -> None:
        """Refuse what nobody took.

        Raises
        ------
        ModelFileError
            A tensor is left.
        """
        if self._left:
            raise ModelFileError(f"{self.file} has the tensor {short(min(self._left))}, which is not understood")


# ------------------------------------------------------------------------------------------------ .pt

_BUILT = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"} | {
    f"torch {kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int")
}
"""what a state dict needs; weights_only allows more, a bytearray of any length among it"""
_INDIRECT = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "BUILD"}
"""ways to name or fill an object that torch.save does not use for tensors"""


def _checked_archive(file: Path) -> io.BytesIO:
    """The records of an archive, after a look at what they are and what they want built.

    Raises
    ------
    ModelFileError
        They are not plain, or not those of tensors.
    """
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as checked:
            records = archive.infolist()
            _check_records(records, file.stat().st_size)
            for record in records:
                data = archive.read(record)
                if record.filename.endswith(PICKLE):
                    _check_pickle(data)
                checked.writestr(record.filename, data)
    except Exception as error:  # zipfile has many words for a damaged archive
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # but for a position that is none
            raise
        reason = one_line(error) or type(error).__name__
        raise ModelFileError(f"{file} is not a state dict that torch saved as an archive: {reason}") from error
    copy.seek(0)
    return copy


def _check_records(records: list[zipfile.ZipInfo], n_bytes: int) -> None:
    names = [record.filename for record in records]
    if len(names) > MAX_RECORDS:
        raise ValueError(f"it has {len(names)} records, at most {MAX_RECORDS} are allowed")
    if len(set(names)) < len(names):
        raise ValueError("it has two records of one name")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("it is compressed, which torch does not do")
    if sum(record.file_size for record in records) > n_bytes:
        raise ValueError("its records claim more bytes than the file has")
    lists = [record for record in records if record.filename.endswith(PICKLE)]
    if len(lists) != 1 or lists[0].file_size > MAX_PICKLE_BYTES:
        raise ValueError("it does not hold one list of tensors of a sensible length")


def _check_pickle(data: bytes) -> None:
    """Read the instructions without following them."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _INDIRECT or (opcode.name == "GLOBAL" and argument not in _BUILT):
            raise ValueError(f"it wants {short(argument or opcode.name)}, expected tensors by name and nothing else")


def _checked(file: Path, name: str, value: Any) -> bool:
    """Refuse what is not a dense tensor of its own numbers; a stride of 0 makes terabytes of one."""
    dense = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    if not dense or value.is_quantized or value.numel() * value.itemsize > value.untyped_storage().nbytes():
        what = "a tensor larger than its data" if dense else f"a {type(value).__name__}"
        raise ModelFileError(f"{file}: expected {short(name)} to be a dense tensor, got {what}")
    return True
