"""Files from strangers: damaged ones are rows or one clear line, and pickles are never loaded.

The mutants are opened in a process of their own with little memory, where a crash or a hang would show::

    python tests/test_hostile_arrays.py npy 10000 0
"""

from __future__ import annotations

import ast
import bz2
import gzip
import io
import json
import lzma
import pickle
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import scipy.sparse as sp
import torch
from PIL import Image

import fewfire as ff
from fewfire import cli
from fewfire.sources import open_source

KINDS = ["npy", "npz", "safetensors", "png"]
SPARE_BYTES = 1 << 30
"""of address space, beyond what the interpreter takes with everything imported"""
HANG_SECONDS = 10


# ------------------------------------------------------------------------------------------------- mutants


def originals(kind: str) -> list[bytes]:
    """Small good files of a kind, of several sorts."""
    x = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    return {"npy": _npy, "npz": _npz, "safetensors": _safetensors, "png": _png}[kind](x)


def _npy(x: np.ndarray) -> list[bytes]:
    found = []
    for array, version in ((x, (1, 0)), (np.asfortranarray(x, np.float64), (2, 0)), (x.astype(np.int64), (3, 0))):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array, version=version)
        found.append(buffer.getvalue())
    return found


def _npz(x: np.ndarray) -> list[bytes]:
    found = []
    for write in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        write(buffer, x=x, y=np.arange(11))
        found.append(buffer.getvalue())
    for form in (sp.csr_array, sp.csc_array, sp.coo_array):
        buffer = io.BytesIO()
        sp.save_npz(buffer, form(np.where(x > 0, x, 0)), compressed=False)
        found.append(buffer.getvalue())
    return found


def _safetensors(x: np.ndarray) -> list[bytes]:
    tensor = torch.from_numpy(x)
    return [
        safetensors.torch.save({"x": tensor}),
        safetensors.torch.save({"x": tensor.bfloat16(), "note": torch.arange(3)}, {"made": "by hand"}),
    ]


def _png(x: np.ndarray) -> list[bytes]:
    found = []
    grey = (np.abs(x) * 99).astype(np.uint8)
    for array in (grey, np.dstack([grey] * 3), grey.astype(np.uint16) * 99):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "png")
        found.append(buffer.getvalue())
    buffer = io.BytesIO()
    Image.fromarray(grey).quantize(8).save(buffer, "png", optimize=True)
    return [*found, buffer.getvalue()]


NASTY = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


def mutant(original: bytes, random: np.random.Generator) -> bytes:
    """One to four damages: a flipped bit, a byte, a length, a cut, something inserted, removed, repeated."""
    data = bytearray(original)
    for _ in range(random.integers(1, 5)):
        n = max(len(data), 1)
        # half of them near the ends, where headers and directories stand
        at = int(
            random.choice([random.integers(n), min(random.integers(150), n - 1), max(n - random.integers(200), 0)])
        )
        length = int(random.integers(1, 16))
        width = int(random.choice([2, 4, 8]))
        nasty = (int(random.choice(len(NASTY))), "little" if random.integers(2) else "big")
        number = (NASTY[nasty[0]] & ((1 << 8 * width) - 1)).to_bytes(width, nasty[1])
        match int(random.integers(8)):
            case 0 if data:
                data[min(at, n - 1)] ^= 1 << int(random.integers(8))
            case 1 if data:
                data[min(at, n - 1)] = int(random.integers(256))
            case 2:
                data[at : at + width] = number
            case 3:
                del data[at:]
            case 4:
                data[at:at] = random.bytes(length)
            case 5:
                del data[at : at + length]
            case 6:
                data[at:at] = data[at : at + 4 * length]
            case _:  # a digit of a header written in text
                digits = [i for i, byte in enumerate(data[:300]) if chr(byte).isdigit()]
                if digits:
                    data[int(random.choice(digits))] = ord(str(random.integers(10)))
    return bytes(data)


def repaired(data: bytes) -> bytes:
    """A PNG whose checksums fit again, so that the damage gets past them."""
    found, at = bytearray(data), 8
    while at + 12 <= len(found):
        length = int.from_bytes(found[at : at + 4], "big")
        if at + 12 + length > len(found):
            break
        body = found[at + 4 : at + 8 + length]
        found[at + 8 + length : at + 12 + length] = zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return bytes(found)


def read_all(path: Path) -> str:
    """Open and read to the end; what became of it."""
    try:
        source = open_source(path)
        count = 0
        for batch in source.batches(2, shuffle=False):
            assert tuple(batch.x.shape[1:]) == tuple(source.row_shape), f"rows of {batch.x.shape}"
            assert batch.x.dtype in (torch.float32, torch.float64)
            count += len(batch.rows)
        assert count == source.n_rows >= 1, f"{count} rows of {source.n_rows}"
        assert len(source.fingerprint) == 64
    except (ValueError, TypeError) as error:
        text = str(error)
        assert path.stem in text, f"the message names no file: {text}"
        assert "\n" not in text, f"several lines: {text}"
        assert len(text.replace(str(path.parent), "")) < 400, f"long: {text}"
        assert type(error) in (ValueError, TypeError), f"{type(error)} got through"
        return "refused"
    return "read"


def fuzz(kind: str, count: int, seed: int) -> None:
    """Print what became of ``count`` mutants as JSON; die of the first that does anything else."""
    import resource

    sources = originals(kind)
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"mutant.{kind}"
        opened = path.parent if kind == "png" else path
        path.write_bytes(sources[0])
        assert read_all(opened) == "read", "the original cannot be read"
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + SPARE_BYTES, resource.RLIM_INFINITY))
        found: Counter[str] = Counter()
        slowest = 0.0
        for number in range(count):
            content = mutant(sources[number % len(sources)], random)
            content = repaired(content) if kind == "png" and number % 2 else content
            # A new file: one that was mapped stays as it is for whoever mapped it.
            path.unlink()
            path.write_bytes(content)
            signal.alarm(HANG_SECONDS)
            start = time.perf_counter()
            try:
                found[read_all(opened)] += 1
            except BaseException as error:
                raise AssertionError(f"mutant {number} of seed {seed}: {error!r}: {content!r}") from error
            slowest = max(slowest, time.perf_counter() - start)
        signal.alarm(0)
    sys.stdout.write(json.dumps({**found, "slowest": slowest}) + "\n")


def run_fuzz(kind: str, count: int, seed: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, kind, str(count), str(seed)], capture_output=True, text=True
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["refused"] + result.get("read", 0) == count
    return result


needs_limits = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")


@needs_limits
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_mutants_are_rows_or_one_clear_line(kind):
    result = run_fuzz(kind, 1000, seed=0)
    assert result["refused"] > 300, "the mutants are too tame to say anything"
    assert result["read"] > 10, "nothing gets far enough to be read"


@needs_limits
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_mutants_are_rows_or_one_clear_line(kind):
    run_fuzz(kind, 10_000, seed=1)


# ------------------------------------------------------------------------------------------------- pickles


class Call:
    """Pickles as a call of a function, which loading then makes."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def payloads(canary: Path) -> dict[str, bytes]:
    """Files that make the canary appear when they are loaded by whoever trusts pickles."""
    import builtins
    import os

    touch = Call(os.system, f"touch {canary}")
    code = f"open({str(canary)!r}, 'w').close()"
    plain = pickle.dumps(touch)
    tensor = Call(torch._utils._rebuild_tensor_v2, Call(os.system, f"touch {canary}"), 0, (2, 2), (2, 1), False, None)
    parameter = Call(torch._utils._rebuild_parameter, Call(builtins.eval, code), False, None)
    found = {f"os.system, protocol {p}": pickle.dumps(touch, protocol=p) for p in range(6)}
    found |= {
        "builtins.eval": pickle.dumps(Call(builtins.eval, code)),
        "builtins.exec": pickle.dumps(Call(builtins.exec, code)),
        "subprocess": pickle.dumps(Call(subprocess.check_call, ["touch", str(canary)])),
        "Path.touch": pickle.dumps(Call(Path.touch, canary)),
        "in a list of arrays": pickle.dumps([np.zeros(3), {"model": touch}]),
        "rebuild_tensor": pickle.dumps(tensor),
        "rebuild_parameter": pickle.dumps(parameter),
        "gzip": gzip.compress(plain),
        "bz2": bz2.compress(plain),
        "lzma": lzma.compress(plain),
        "zlib, as joblib": zlib.compress(plain),
        "npy of objects": _saved(lambda f: np.save(f, np.array([[touch, 1]], dtype=object), allow_pickle=True)),
        "npz of objects": _saved(lambda f: np.savez(f, x=np.array([[touch, 1]], dtype=object))),
        "sparse npz of objects": _saved(
            lambda f: np.savez(f, format="csr", shape=(1, 1), data=np.array([touch]), indices=[0], indptr=[0, 1])
        ),
        "torch.save": _saved(lambda f: torch.save({"weight": torch.ones(2), "x": touch}, f)),
        "torch.save, legacy": _saved(lambda f: torch.save(touch, f, _use_new_zipfile_serialization=False)),
        "zip in a zip": _zipped("x.npz", _zipped("archive/data.pkl", plain)),
        "tar": _tarred("pickle", plain),
        "behind a good array": _saved(lambda f: np.save(f, np.ones((2, 2)))) + plain,
    }
    return found


def _saved(write: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def _tarred(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


NAMES = list(payloads(Path("/nowhere")))
SUFFIXES = [".npy", ".npz", ".safetensors", ".csv", ".parquet", ".pt", ".pkl"]


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "the payload was run"


def test_there_are_25_payloads():
    assert len(NAMES) == len(set(NAMES)) == 25


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n.startswith(("os", "builtins", "sub", "Path", "in a", "rebuild"))]
)
def test_the_payloads_are_live(tmp_path, name):
    """Were they not, the tests below would prove nothing."""
    alive = tmp_path / "canary"
    try:
        pickle.loads(payloads(alive)[name])
    except Exception:  # what the call returned is no tensor; it was made all the same
        assert name.startswith("rebuild")
    assert alive.exists()


def test_the_payloads_of_numpy_are_live(tmp_path):
    alive = tmp_path / "canary"
    np.load(io.BytesIO(payloads(alive)["npy of objects"]), allow_pickle=True)
    assert alive.exists()


def check(error: BaseException, path: Path) -> None:
    text = str(error)
    assert isinstance(error, ValueError | TypeError)
    assert path.name in text
    assert "\n" not in text
    assert len(text.replace(str(path.parent), "")) < 400


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_is_refused_as_data_and_as_a_model(tmp_path, canary, name, suffix):
    path = tmp_path / f"payload{suffix}"
    path.write_bytes(payloads(canary)[name])
    with pytest.raises(Exception) as caught:
        open_source(path)
    check(caught.value, path)
    with pytest.raises(Exception) as caught:
        ff.load(path)
    check(caught.value, path)


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_is_refused_whatever_kind_it_is_said_to_be(tmp_path, canary, name, kind):
    path = tmp_path / "payload.bin"
    path.write_bytes(payloads(canary)[name])
    with pytest.raises(Exception) as caught:
        open_source(path, kind=kind)
    check(caught.value, path)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_refuses_a_pickle_in_one_line(tmp_path, canary, name, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    suffix = SUFFIXES[NAMES.index(name) % len(SUFFIXES)]
    Path(f"payload{suffix}").write_bytes(payloads(canary)[name])
    Path("model").mkdir()
    Path("model/model.safetensors").write_bytes(payloads(canary)[name])
    for call in (f"train payload{suffix} --out run", "info model", "evaluate model digits", f"info payload{suffix}"):
        monkeypatch.setattr(sys, "argv", ["fewfire", *call.split()])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capsys.readouterr()
        assert exit.value.code in (1, 2)
        assert out == ""
        assert err.startswith("fewfire: ")
        assert err.count("\n") == 1
        assert len(err) < 400
    assert not Path("run").exists()


# ------------------------------------------------------------------------------------------------- the code

PACKAGE = Path(ff.__file__).parent
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_ATTRIBUTES = {
    ("torch", "load"),
    ("pd", "read_pickle"),
    ("os", "system"),
    ("os", "popen"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("yaml", "Loader"),
    ("yaml", "UnsafeLoader"),
    ("yaml", "FullLoader"),
    ("yaml", "load"),
    ("tempfile", "mktemp"),
}


def unsafe(tree: ast.AST) -> Iterator[str]:
    """What a stranger's file could use to run something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.split(".")[0] in UNSAFE_MODULES:
                yield module
            yield from (f"{module}.{a.name}" for a in node.names if (module, a.name) in UNSAFE_ATTRIBUTES)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
                yield f"{node.func.id}("
            for keyword in node.keywords:
                given = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if (keyword.arg in ("allow_pickle", "shell") and given is not False) or (
                    keyword.arg == "weights_only" and given is not True
                ):
                    yield f"{keyword.arg}={given}"
        elif isinstance(node, ast.Attribute) and (getattr(node.value, "id", ""), node.attr) in UNSAFE_ATTRIBUTES:
            yield ast.unparse(node)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_can_run_what_a_file_says(path):
    """One call may load what torch saved: without code, and looked at first (``formats/strict.py``)."""
    text = path.read_text()
    allowed = ["torch.load"] if path.relative_to(PACKAGE).as_posix() == "formats/strict.py" else []
    assert list(unsafe(ast.parse(text))) == allowed
    assert text.count('torch.load(archive, map_location="cpu", weights_only=True)') == len(allowed)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import torch, pickle as p",
        "from joblib import load",
        "torch.load(path)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "yaml.load(text, Loader=yaml.Loader)",
        "from yaml import unsafe_load",
        "eval(text)",
        "exec(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "f(weights_only=False)",
        "def f():\n    if x:\n        __import__(name)",
    ],
)
def test_what_could_run_something_is_seen(code):
    assert list(unsafe(ast.parse(code)))


def test_what_is_harmless_is_not():
    code = "model.eval()\nnp.load(f, allow_pickle=False)\nre.compile(x)\nast.literal_eval(x)\n'eval( pickle'"
    assert list(unsafe(ast.parse(code))) == []


if __name__ == "__main__":
    fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
