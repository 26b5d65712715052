"""Files whole or not there; tensors bit for bit, or a ModelFileError."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from fewfire.disk import (
    ModelFileError,
    atomic,
    atomic_write,
    atomic_writer,
    canonical_json,
    load_tensors,
    parse_json,
    read_metadata,
    save_tensors,
    sha256_json,
)
from fewfire.disk import tensors as module

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
FLOATS += [torch.float8_e4m3fn, torch.float8_e5m2]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
INTEGERS += [torch.uint16, torch.uint32, torch.uint64, torch.bool]
SHAPES = [(), (0,), (3, 0, 2), (1,), (5, 7), (2, 3, 4, 5, 1)]
METADATA = {"name": "täst", "nested": {"list": [1, 2.5, None, True], "text": 'a "quoted" \\ line\n'}}


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())


def identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Same names, dtypes, shapes and bits; NaN payloads and the sign of zero included."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and bits(a[k]) == bits(b[k]) for k in a
    )


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "W_enc": torch.randn(6, 4, generator=generator),
        "b_enc": torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45, 1.0]),
        "count": torch.tensor(7),
        "half": torch.randn(3, generator=generator).bfloat16(),
        "none": torch.empty(0, 5),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    save_tensors(path, some_tensors(), METADATA)
    return path


# ----------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for i, shape in enumerate(SHAPES):
        width = max(1, dtype.itemsize)
        n = int(torch.Size(shape).numel()) * width
        raw = torch.randint(0, 2 if dtype is torch.bool else 256, (n,), generator=generator).to(torch.uint8)
        tensors[f"t{i}"] = raw.view(dtype).reshape(shape)
    save_tensors(tmp_path / "t", tensors, {})
    loaded, metadata = load_tensors(tmp_path / "t")
    assert identical(loaded, tensors)
    assert metadata == {}


def test_safetensors_reads_our_file(saved: Path) -> None:
    theirs = safetensors.torch.load_file(saved)
    assert identical(theirs, some_tensors())


def test_strided_shared_and_trained_tensors_are_written_in_full(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "t": base.T,
        "row": base[1],
        "again": base,
        "every other": base[:, ::2],
        "same": base.expand(2, 3, 4),
        "trained": torch.nn.Parameter(base),
    }
    save_tensors(tmp_path / "t", tensors, {})
    loaded, _ = load_tensors(tmp_path / "t")
    assert identical(loaded, tensors)
    loaded["row"].zero_()
    assert torch.equal(loaded["again"], base)  # nothing is shared any more
    assert not loaded["trained"].requires_grad


def test_metadata_come_back_and_can_be_read_alone(saved: Path) -> None:
    assert load_tensors(saved)[1] == METADATA
    assert read_metadata(saved) == METADATA
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1  # a tensor's byte: read_metadata does not look there
    saved.write_bytes(data)
    assert read_metadata(saved) == METADATA


def test_no_tensors_at_all(tmp_path: Path) -> None:
    save_tensors(tmp_path / "t", {}, METADATA)
    assert load_tensors(tmp_path / "t") == ({}, METADATA)


def test_same_input_same_bytes_in_any_order_and_process(tmp_path: Path) -> None:
    tensors = some_tensors()
    save_tensors(tmp_path / "a", tensors, METADATA)
    backwards = {name: tensors[name] for name in reversed(tensors)}
    save_tensors(tmp_path / "b", backwards, dict(reversed(METADATA.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_format_is_pinned(tmp_path: Path) -> None:
    """These bytes may change only together with a version of the format."""
    save_tensors(tmp_path / "t", {"b": torch.ones(2), "a": torch.zeros(1, dtype=torch.int64)}, {"k": 1})
    data = (tmp_path / "t").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert data[8 + length :] == bytes(8) + struct.pack("<2f", 1, 1)
    assert header["a"] == {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}
    assert header["b"] == {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}
    claims = header["__metadata__"]
    assert claims["fewfire"] == '{"k":1}'
    assert claims["metadata_sha256"] == hashlib.sha256(b'{"k":1}').hexdigest() == sha256_json({"k": 1})
    digest = hashlib.sha256(b'["F32",[2]]' + struct.pack("<2f", 1, 1)).hexdigest()
    assert json.loads(claims["sha256"])["b"] == digest


def test_wide_tensors_start_aligned(saved: Path) -> None:
    data = saved.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            assert (start + entry["data_offsets"][0]) % some_tensors()[name].itemsize == 0


# ----------------------------------------------------------------------------------- what is not saved


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "meta"),
        (torch.zeros(2, dtype=torch.complex64), "complex64"),
        (torch.zeros(1, 1, 1, 1, 1, 1), "6 dimensions"),
        (torch.empty(0, 1 << 33), "dimension outside"),
    ],
)
def test_a_tensor_that_could_not_be_read_back_is_not_saved(tmp_path: Path, tensor: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        save_tensors(tmp_path / "t", {"w": tensor}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"loss": [1.0, float("nan")]}, r"nan at loss\[1\]"),
        ({"a": {"b": torch.ones(1)}}, r"a Tensor at a\.b"),
        ({"a": {3: 1}}, "the key 3 in a"),
        ({"text": "x" * (8 << 20)}, "shorten the metadata"),
        ({"list": [0] * (1 << 18)}, "more than 262144 values"),
        ({"seed": 10**99}, "more digits than are read at seed"),
    ],
)
def test_metadata_that_could_not_be_read_back_are_not_saved(tmp_path: Path, metadata: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        save_tensors(tmp_path / "t", {}, metadata)
    assert "\n" not in str(caught.value)


def test_deep_metadata_and_strange_names_are_not_saved(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    with pytest.raises(ValueError, match="nested"):
        save_tensors(tmp_path / "t", {}, {"deep": deep})
    for name in ("n" * 300, "__metadata__"):
        with pytest.raises(ValueError, match="name"):
            save_tensors(tmp_path / "t", {name: torch.ones(1)}, {})


# --------------------------------------------------------------------------------------- atomic writes


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o000], ids=oct)
def test_mode_follows_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        atomic_write(tmp_path / "text", "hello")
        save_tensors(tmp_path / "tensors", some_tensors(), {})
    finally:
        os.umask(before)
    for name in ("text", "tensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask


def test_atomic_write_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a"
    atomic_write(path, b"old")
    atomic_write(path, "nëw")
    assert path.read_bytes() == "nëw".encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), FileNotFoundError(2, "x", "other")])
def test_an_exception_in_the_block_passes_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(type(error)) as caught, atomic_writer(path) as file:
        file.write(b"half")
        raise error
    assert caught.value is error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


class FullDisk:
    """A file that takes some bytes and then refuses."""

    def __init__(self, file: Any, room: int, code: int) -> None:
        self.file, self.room, self.code = file, room, code

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(self.code, os.strerror(self.code))
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *args: object) -> None:
        self.file.close()


def raising(code: int) -> Callable[..., None]:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def break_the_disk(monkeypatch: pytest.MonkeyPatch, point: str, code: int) -> None:
    """Make one step of an atomic write fail."""
    if point.startswith("write"):
        real, room = Path.open, int(point.removeprefix("write"))
        monkeypatch.setattr(
            Path,
            "open",
            lambda self, mode="r", *a, **k: (
                FullDisk(real(self, mode, *a, **k), room, code) if "x" in mode else real(self, mode, *a, **k)
            ),
        )
    else:
        monkeypatch.setattr(os, point, raising(code))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("point", ["write0", "write8", "write500", "fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_no_litter(
    saved: Path, monkeypatch: pytest.MonkeyPatch, point: str, code: int
) -> None:
    old = saved.read_bytes()
    with monkeypatch.context() as patch:
        break_the_disk(patch, point, code)
        with pytest.raises(OSError, match="could not write") as caught:
            save_tensors(saved, {"new": torch.ones(1000)}, {})
    assert caught.value.errno == code
    assert type(caught.value) is type(OSError(code, ""))  # PermissionError stays PermissionError
    assert str(saved) in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step: the new file is in place; a real failure is told, an unable file system is not."""
    real = os.fsync

    def fail_on_folders(code: int) -> Callable[[int], None]:
        def fsync(handle: int) -> None:
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                raise OSError(code, os.strerror(code))
            real(handle)

        return fsync

    monkeypatch.setattr(os, "fsync", fail_on_folders(errno.EINVAL))
    atomic_write(tmp_path / "a", "one")
    monkeypatch.setattr(os, "fsync", fail_on_folders(errno.EIO))
    with pytest.raises(OSError, match="power cut"):
        atomic_write(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_truly_full_disk(saved: Path) -> None:
    """No mocks: the system itself takes part of the file and refuses the rest."""
    old = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="could not write") as caught:
            save_tensors(saved, {"big": torch.ones(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


def test_everything_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the first fsync a power cut leaves an empty file; without the last, the old one."""
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        status = os.fstat(handle)
        steps.append("fsync folder" if stat.S_ISDIR(status.st_mode) else f"fsync {status.st_size} bytes")
        real_fsync(handle)

    def replace(old: Any, new: Any) -> None:
        steps.append("rename")
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    atomic_write(tmp_path / "a", b"12345")
    assert steps == ["fsync 5 bytes", "rename", "fsync folder"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make its folder first"):
        atomic_write(tmp_path / "no" / "a", "x")


# Runs the file itself: importing the package would import torch, which takes a second and writes nothing.
KILLED = """
import os, runpy, signal, sys
module, path, name, count = sys.argv[1:]
calls, real = 0, getattr(os, name)
def kill(*args):
    global calls
    calls += 1
    if calls == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
setattr(os, name, kill)
runpy.run_path(module)["atomic_write"](path, "new" * 1000)
"""


@pytest.mark.parametrize(
    ("step", "count", "survivor"), [("fsync", 1, "old"), ("replace", 1, "old"), ("fsync", 2, "new")]
)
def test_kill_leaves_old_or_new(tmp_path: Path, step: str, count: int, survivor: str) -> None:
    path = tmp_path / "a"
    path.write_text("old" * 1000)
    done = subprocess.run([sys.executable, "-c", KILLED, atomic.__file__, path, step, str(count)], check=False)
    assert done.returncode == -9
    assert path.read_text() == survivor * 1000


# --------------------------------------------------------------------------------------- damaged files


def build(header: Any, data: bytes = b"", *, raw: bytes | None = None) -> bytes:
    text = raw if raw is not None else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def signed(header: dict[str, Any], data: bytes, metadata: str = "{}") -> bytes:
    """What a forger writes: every checksum is right."""
    digests = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        text = json.dumps([entry["dtype"], entry["shape"]], separators=(",", ":")).encode()
        digests[name] = hashlib.sha256(text + data[begin:end]).hexdigest()
    sha256 = hashlib.sha256(metadata.encode()).hexdigest()
    claims = {"fewfire": metadata, "metadata_sha256": sha256, "sha256": json.dumps(digests)}
    return build({"__metadata__": claims, **header}, data)


def put(path: Path, data: bytes) -> None:
    """Write a new file: some file systems force an overwritten one to the disk, which takes milliseconds."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


HANG = 10.0
"""Seconds of processor time. Refusals take milliseconds; this tells a hang, on a busy machine too."""


def refused(path: Path, data: bytes) -> str:
    put(path, data)
    start = time.process_time()
    with pytest.raises(ModelFileError) as caught:
        load_tensors(path)
    assert time.process_time() - start < HANG
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    return message


def mutants(data: bytes, n: int) -> Iterator[bytes]:
    rng = random.Random(0)
    end = 8 + struct.unpack("<Q", data[:8])[0]
    for i in range(n):
        new = bytearray(data)
        at = rng.randrange(len(data) if i % 2 else end)  # half of them in the header
        match i % 8:
            case 0 | 1 | 2:
                for _ in range(rng.choice([1, 1, 2, 8])):
                    new[rng.randrange(len(data) if i % 2 else end)] ^= 1 << rng.randrange(8)
            case 3:
                new = new[:at]
            case 4:
                new[rng.randrange(8)] = rng.randrange(256)
            case 5:
                new[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 6:
                del new[at : at + rng.randrange(1, 9)]
            case 7:
                new = bytearray(swapped(data, rng))
        yield bytes(new)


def swapped(data: bytes, rng: random.Random) -> bytes:
    """Well-formed JSON, with a field exchanged, replaced, renamed or dropped."""
    header, body = split(data)
    a, b = rng.sample([name for name in header if name != "__metadata__"], 2)
    match rng.randrange(7):
        case 0:
            header[a], header[b] = header[b], header[a]
        case 1:
            header[a]["shape"] = header[a]["shape"][::-1]
        case 2:
            header[a]["dtype"] = rng.choice(["F32", "I32", "F64", "BF16", "X9", None, 3])
        case 3:
            header[a]["data_offsets"] = rng.choice([header[b]["data_offsets"], [0, 0], [-1, 3], "x", [1.5, 2]])
        case 4:
            del header[rng.choice([a, "__metadata__"])]
        case 5:
            header[a + "x"] = header.pop(a)
        case 6:
            header["__metadata__"][rng.choice(["fewfire", "sha256", "metadata_sha256"])] = rng.choice(["{}", 3, "["])
    return build(header, body)


def test_two_thousand_mutants(saved: Path) -> None:
    """A damaged file loads as what was saved, or is refused; nothing else, and quickly."""
    data, truth = saved.read_bytes(), some_tensors()
    same = errors = 0
    for mutant in mutants(data, 2000):
        put(saved, mutant)
        start = time.perf_counter()
        try:
            tensors, metadata = load_tensors(saved)
        except ModelFileError as error:
            errors += 1
            assert "\n" not in str(error)
        else:
            same += 1
            assert identical(tensors, truth)
            assert metadata == METADATA
        assert time.perf_counter() - start < 1
    assert errors > 1500  # the mutators do bite
    assert same > 0  # and not every byte matters: the padding of the header


def test_every_single_bit_of_the_data_matters(saved: Path) -> None:
    data = saved.read_bytes()
    for at in range(8 + struct.unpack("<Q", data[:8])[0], len(data)):
        mutant = bytearray(data)
        mutant[at] ^= 1 << (at % 8)
        assert "checksum" in refused(saved, bytes(mutant))


def test_every_truncation_is_refused(saved: Path) -> None:
    data = saved.read_bytes()
    for size in range(len(data)):
        refused(saved, data[:size])
    refused(saved, data + b"\0")


class Agreeable:
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def test_checksums_are_what_refuses(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail: without the comparison a damaged tensor is loaded."""
    data = bytearray(saved.read_bytes())
    data[-2] ^= 1
    saved.write_bytes(data)
    monkeypatch.setattr(module, "_digest", lambda *args: Agreeable())
    tensors, _ = load_tensors(saved)
    assert not identical(tensors, some_tensors())


# --------------------------------------------------------------------------------------- hostile files

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"w": {**ONE, "shape": [0, 1 << 40], "data_offsets": [0, 0]}}, b"", "dimension outside"),
        ({"w": {**ONE, "shape": [0, 1 << 31, 1 << 31], "data_offsets": [0, 0]}}, b"", "more than"),
        ({"w": {**ONE, "shape": [1 << 31, 1 << 31, 1 << 31]}}, bytes(4), "more than"),
        ({"w": {**ONE, "shape": [-1]}}, bytes(4), "dimension outside"),
        ({"w": {**ONE, "shape": [True]}}, bytes(4), "not described"),
        ({"w": {**ONE, "shape": [1.0]}}, bytes(4), "not described"),
        ({"w": {**ONE, "shape": [1] * 6}}, bytes(4), "6 dimensions"),
        ({"w": {**ONE, "dtype": "F33"}}, bytes(4), "unknown dtype"),
        ({"w": {**ONE, "strides": [1]}}, bytes(4), "not described"),
        ({"w": {**ONE, "data_offsets": [4, 0]}}, bytes(4), "offsets"),
        ({"w": {**ONE, "data_offsets": [0, 8]}}, bytes(8), "offsets"),
        ({"w": ONE, "v": ONE}, bytes(4), "starts at byte 0, expected 4"),
        ({"w": {**ONE, "data_offsets": [4, 8]}}, bytes(8), "starts at byte 4, expected 0"),
        ({"w": ONE}, bytes(8), "take 4 bytes, the file has 8"),
        ({"w": {**ONE, "shape": [1 << 20], "data_offsets": [0, 1 << 22]}}, bytes(4), "the file has 4"),
        ({"n" * 257: ONE}, bytes(4), "257 characters"),
        ({f"w{i}": {**ONE, "shape": [0], "data_offsets": [0, 0]} for i in range(4097)}, b"", "4097 tensors"),
    ],
)
def test_forged_entries_are_refused(tmp_path: Path, header: dict[str, Any], data: bytes, words: str) -> None:
    assert words in refused(tmp_path / "f", signed(header, data))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"a":' * 60_000, "nested"),
        (b"[" * 60_000, "nested"),
        (b"[" * (8 << 20), "more than 65536 values"),
        (b"[]," * (2 << 20), "more than 65536 values"),
        (b'""' * (4 << 20), "more than 65536 values"),
        (b"1," * (4 << 20), "more than 65536 values"),
        (b"[]" * 30_000, "Extra data"),
        (b'{"a":1,"a":2}', "twice"),
        (b'{"a":NaN}', "not finite"),
        (b'{"a":-Infinity}', "not finite"),
        (b'{"a":1e999}', "not finite"),
        (b'{"a":' + b"9" * 10_000 + b"}", "the number 99999999999999999999... has 10000 digits"),
        (b'"' + b'\\"' * 500_000, "Unterminated"),
        (b'"a' * 100_000, "Extra data"),
        (b'{"a":"\xff"}', "utf-8"),
        (b"{" + b",".join(b'"%x":{}' % i for i in range(30_000)) + b"}", "not written by fewfire"),
        (b"", "Expecting value"),
        (b"[]", "not written by fewfire"),
        (b'{"__metadata__":[]}', "not written by fewfire"),
        (b'{"__metadata__":{"fewfire":1}}', "checksum"),
    ],
)
def test_hostile_headers_are_refused_quickly(tmp_path: Path, raw: bytes, words: str) -> None:
    assert words in refused(tmp_path / "f", build(None, raw=raw))


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A million tensors, and a length of 100 MB: what costs safetensors 23 seconds."""
    million = b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(1_000_000))
    for data in (build(None, raw=b"{" + million + b"}"), struct.pack("<Q", 100 << 20) + b"{}"):
        assert "at most 8388608" in refused(tmp_path / "f", data)


def test_hostile_metadata_inside_right_checksums(tmp_path: Path) -> None:
    for metadata, words in {
        "[" * 50_000: "nested",
        "[]," * (1 << 20): "more than 262144 values",
        '{"a":1,"a":1}': "twice",
        '{"a":NaN}': "not finite",
        "[1]": "not a JSON object",
    }.items():
        assert words in refused(tmp_path / "f", signed({}, b"", metadata))


def test_unknown_claims_are_refused(saved: Path) -> None:
    header, body = split(saved.read_bytes())
    header["__metadata__"]["note"] = "read me"
    assert "have the unknown entry 'note'" in refused(saved, build(header, body))


def test_the_oldest_files_are_read(saved: Path) -> None:
    """They have no digest of their digests."""
    header, body = split(saved.read_bytes())
    del header["__metadata__"]["digests_sha256"]
    put(saved, build(header, body))
    assert identical(load_tensors(saved)[0], some_tensors())


def test_names_are_bound_to_what_they_name(saved: Path) -> None:
    """Two tensors of one shape, renamed wherever their names stand, as an editor would."""
    save_tensors(saved, {"W_enc": torch.zeros(3), "W_dec": torch.ones(3)}, {})
    data = saved.read_bytes().replace(b"W_enc", b"W_tmp").replace(b"W_dec", b"W_enc").replace(b"W_tmp", b"W_dec")
    assert "the checksums do not match their own" in refused(saved, data)


def test_a_foreign_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"w": torch.ones(3)}, path, metadata={"format": "pt"})
    for read in (load_tensors, read_metadata):
        with pytest.raises(ModelFileError, match=r"not written by fewfire.*convert"):
            read(path)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    for read in (load_tensors, read_metadata):
        with pytest.raises(FileNotFoundError, match="check the path"):
            read(tmp_path / "missing")
        with pytest.raises(ModelFileError, match="not a file"):
            read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="not a file"):
        load_tensors(tmp_path / "pipe")


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.safetensors"
    canary = tmp_path / "canary"
    refused(path, b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.")
    assert not canary.exists()


def test_a_disk_that_fails_while_reading_names_the_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_read_entries", raising(errno.EIO))
    with pytest.raises(OSError, match="could not read") as caught:
        load_tensors(saved)
    assert str(saved) in str(caught.value)


# ------------------------------------------------------------------------------------------------ JSON


def test_canonical_json() -> None:
    assert canonical_json({"b": (1, 2.0), "a": "é"}) == '{"a":"\\u00e9","b":[1,2.0]}'
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1}) != sha256_json({"a": 1, "b": 3})


def test_brackets_in_strings_are_not_nesting() -> None:
    value = {"[" * 100: ['\\"[' * 100, "{\\"]}
    assert parse_json(canonical_json(value)) == value
