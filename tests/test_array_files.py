"""Files of one array: .npy, .npz, .safetensors. Bad ones are refused before they can hurt."""

from __future__ import annotations

import io
import json
import re
import stat
import struct
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import scipy.sparse as sp
import torch
from PIL import Image

import fewfire as ff
from fewfire import cli, outputs
from fewfire.contracts import Layout, Source
from fewfire.sources import ArraySource, NpySource, NpzSource, SafetensorsSource, npz, open_source

X = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)
SPARSE = sp.csr_array(np.where(np.random.default_rng(1).random((23, 5)) < 0.4, 1.5, 0).astype(np.float32))
REFUSED_WITHIN = 1.0
"""seconds; measured: a few milliseconds"""


def npy_bytes(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def npy_header(text: str, version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text.encode()


def write_npz(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def refusal(path: Path, **options: Any) -> str:
    start = time.perf_counter()
    with pytest.raises((ValueError, TypeError)) as caught:
        open_source(path, **options)
    assert time.perf_counter() - start < REFUSED_WITHIN
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    assert len(text.replace(str(path.parent), "")) < 400
    return text


def same(one: Source, other: Source) -> bool:
    pairs = zip(one.batches(5, seed=3), other.batches(5, seed=3), strict=True)
    return all(torch.equal(a.x, b.x) and torch.equal(a.rows, b.rows) and a.x.dtype == b.x.dtype for a, b in pairs)


# ------------------------------------------------------------------------------------------------- what is read


def as_npy(path: Path, array: np.ndarray) -> Path:
    np.save(path / "x.npy", array)
    return path / "x.npy"


def as_npz(path: Path, array: np.ndarray) -> Path:
    np.savez(path / "x.npz", array)
    return path / "x.npz"


def as_compressed(path: Path, array: np.ndarray) -> Path:
    np.savez_compressed(path / "x.npz", array)
    return path / "x.npz"


def as_safetensors(path: Path, array: np.ndarray) -> Path:
    safetensors.numpy.save_file({"x": np.ascontiguousarray(array)}, path / "x.safetensors")
    return path / "x.safetensors"


DTYPES = ["?", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"]


@pytest.mark.parametrize("write", [as_npy, as_npz, as_compressed, as_safetensors])
@pytest.mark.parametrize("dtype", [*DTYPES, ">f4", ">i8", "longdouble"])
def test_a_file_gives_the_batches_of_its_array(tmp_path, write, dtype):
    if write is as_safetensors and dtype not in DTYPES:
        pytest.skip("the format has no such dtype")
    array = (X * 9).astype(dtype)
    source = open_source(write(tmp_path, array))
    assert isinstance(source, Source)
    assert same(source, ArraySource(array))
    assert source.name == "x"
    assert source.split(0.5)[0].n_rows == 11


@pytest.mark.parametrize("write", [as_npy, as_npz, as_compressed, as_safetensors])
@pytest.mark.parametrize("array", [X.reshape(-1, 1), np.zeros((2, 4, 5)), np.asfortranarray(X), X[:1]])
def test_shapes_and_orders(tmp_path, write, array):
    source = open_source(write(tmp_path, array))
    assert same(source, ArraySource(array))
    assert source.layout == ArraySource(array).layout


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_header_is_read(tmp_path, version):
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, X, version=version)
    assert same(NpySource(tmp_path / "x.npy"), ArraySource(X))


def test_headers_of_other_writers_are_read(tmp_path):
    body = X.tobytes()
    for text in (
        "{'shape': (23, 3), 'fortran_order': False, 'descr': '<f4'}",
        "{'descr':'<f4','fortran_order':False,'shape':(23,3),}\n",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (23L, 3L), }   ",
    ):
        (tmp_path / "x.npy").write_bytes(npy_header(text) + body)
        assert same(NpySource(tmp_path / "x.npy"), ArraySource(X))


def test_bfloat16_is_read_as_the_floats_it_means(tmp_path):
    x = torch.randn(23, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    safetensors.torch.save_file({"x": x}, tmp_path / "x.safetensors")
    source = SafetensorsSource(tmp_path / "x.safetensors")
    assert same(source, ArraySource(x))
    changed = x.clone()
    changed[5, 1] += 1
    safetensors.torch.save_file({"x": changed}, tmp_path / "y.safetensors")
    assert SafetensorsSource(tmp_path / "y.safetensors").fingerprint != source.fingerprint


def test_one_tensor_of_several_is_read_at_its_place(tmp_path):
    tensors = {"a": np.zeros((3, 3), np.float64), "odd": np.zeros(5, np.uint8), "x": X, "y": X[:4] + 1}
    safetensors.numpy.save_file(tensors, tmp_path / "t.safetensors")
    assert same(SafetensorsSource(tmp_path / "t.safetensors", tensor="x"), ArraySource(X))
    assert same(SafetensorsSource(tmp_path / "t.safetensors", tensor="y"), ArraySource(X[:4] + 1))
    text = refusal(tmp_path / "t.safetensors")
    assert "'x' F32 (23, 3)" in text
    assert "choose with tensor=" in text
    assert "it has no tensor 'z'" in refusal(tmp_path / "t.safetensors", tensor="z")


def test_a_tensor_file_stays_on_disk(tmp_path):
    assert isinstance(SafetensorsSource(as_safetensors(tmp_path, X))._x, np.memmap)


def test_one_array_of_several_is_read(tmp_path):
    path = tmp_path / "several.npz"
    names = np.array(["a", None], dtype=object)
    np.savez(path, x=X, y=X + 1, labels=np.arange(23), names=names)
    assert same(NpzSource(path, array="y"), ArraySource(X + 1))
    text = refusal(path)
    assert "'x' float32 (23, 3), 'y' float32 (23, 3); choose with array='x'" in text
    assert "it has no array 'z'; it holds 'x'" in refusal(path, array="z")
    assert "pickled Python objects, which are never loaded" in refusal(path, array="names")
    assert "reshape" in refusal(path, array="labels")
    np.savez(path, x=X, labels=np.arange(23), names=names)
    assert same(NpzSource(path), ArraySource(X)), "only one has rows"


def test_options_and_layout_are_handed_on(tmp_path):
    layout = {"kind": "table", "columns": ["a", "b", "c"]}
    for write in (as_npy, as_npz, as_safetensors):
        source = open_source(write(tmp_path, X), layout=layout, suggested_preprocess="center")
        assert source.layout == Layout("table", columns=("a", "b", "c"))
        assert source.suggested_preprocess == "center"


# ------------------------------------------------------------------------------------------------- sparse archives


@pytest.mark.parametrize("form", ["csr_array", "csr_matrix", "csc_array", "coo_array", "coo_matrix"])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_sparse_archive_gives_the_batches_of_its_matrix(tmp_path, form, compressed):
    path = tmp_path / "s.npz"
    sp.save_npz(path, getattr(sp, form)(SPARSE), compressed=compressed)
    source = open_source(path)
    assert sp.issparse(source._x)
    assert same(source, ArraySource(SPARSE))


def test_codes_that_encode_wrote_can_be_trained_on(tmp_path):
    model = ff.Autoencoder(3, 8, ff.TopK(k=2))
    outputs.write_codes(model, ArraySource(X), tmp_path / "codes.npz")
    source = open_source(tmp_path / "codes.npz")
    assert torch.equal(next(source.batches(99, shuffle=False)).x, model.encode(X))


def parts(matrix: Any = SPARSE) -> dict[str, Any]:
    csr = sp.csr_array(matrix)
    return {
        "format": np.array(b"csr"),
        "shape": np.array(csr.shape),
        "data": csr.data,
        "indices": csr.indices.copy(),
        "indptr": csr.indptr.copy(),
    }


def changed(name: str, change: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    found = parts()
    found[name] = change(found[name])
    return found


def put(place: int, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.int64)
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (changed("indices", put(3, 5)), "'indices' .* points outside its 5 places"),
        (changed("indices", put(3, -1)), "'indices' .* points outside"),
        (changed("indices", put(3, 2**62)), "'indices' .* points outside"),
        (changed("indices", lambda a: a.astype(float)), "'indices' .* whole numbers, got float64"),
        (changed("indices", lambda a: a[:-1]), "indptr does not divide"),
        (changed("indices", lambda a: a.reshape(1, -1)), "expected 'indices', a vector"),
        (changed("indptr", put(-1, 10**9)), "'indptr' .* points outside"),
        (changed("indptr", put(2, 40)), "indptr does not divide"),
        (changed("indptr", put(0, 1)), "indptr does not divide"),
        (changed("indptr", lambda a: a[:-1]), "indptr does not divide"),
        (changed("shape", lambda a: np.array([2**60, 5])), "indptr does not divide"),
        (changed("shape", lambda a: np.array([23, 2**60])), "shape .* expected 1 to 16,777,216 columns"),
        (changed("shape", lambda a: np.array([23, -5])), "shape"),
        (changed("shape", lambda a: np.array([23.0, 5])), "'shape' is not the shape of a matrix"),
        (changed("shape", lambda a: np.array([23, 5, 1])), "'shape' is not the shape of a matrix"),
        (changed("data", lambda a: a.astype(complex)), "complex"),
        (changed("data", lambda a: a.astype("S4")), "real numbers"),
        (changed("data", lambda a: a[:-1]), "'indptr' .* points outside|indptr does not divide"),
        (changed("format", lambda a: np.array(b"dia")), "csr, csc or coo, got 'dia'; save x.tocsr"),
        (changed("format", lambda a: np.array(b"__class__")), "csr, csc or coo"),
        (changed("format", lambda a: np.array(3)), "'format' does not name"),
        ({k: v for k, v in parts().items() if k != "indptr"}, "expected 'indptr', a vector"),
        ({**parts(), "format": np.array(b"csc"), "shape": np.array([2**40, 23])}, "claims 1,099,511,627,776 rows"),
        (
            {
                **parts(),
                "format": np.array(b"coo"),
                "row": np.array([2**33]),
                "col": np.array([0]),
                "data": np.array([1.0]),
                "shape": np.array([2**34, 5]),
            },
            "claims 17,179,869,184 rows; if you trust it, pass allow_expansion",
        ),
        (
            {**parts(), "format": np.array(b"coo"), "row": np.array([0, 1]), "col": np.array([0])},
            r"values at 2 rows and 1 columns",
        ),
    ],
)
def test_parts_that_do_not_make_a_matrix_are_refused_before_scipy_follows_them(tmp_path, archive, message):
    np.savez(tmp_path / "s.npz", **archive)
    assert re.search(message, refusal(tmp_path / "s.npz"))


def test_entries_beyond_the_last_row_are_left_out(tmp_path):
    found = parts()
    found["data"] = np.append(found["data"], 9).astype(np.float32)
    found["indices"] = np.append(found["indices"], 0)
    np.savez(tmp_path / "s.npz", **found)
    assert same(NpzSource(tmp_path / "s.npz"), ArraySource(SPARSE)), "as scipy reads it"


# ------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def call(monkeypatch, capsys, tmp_path) -> Callable[[str], tuple[int, str]]:
    """``call("info run")`` -> (exit code, what it said), in a folder with one of everything."""
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", x=X, y=X)
    sp.save_npz("s.npz", SPARSE)
    safetensors.numpy.save_file({"x": X}, "x.safetensors")
    Path("x.xlsx").write_bytes(b"PK")
    for folder, shape in (("grey", (12, 9)), ("colour/cats", (20, 30, 3)), ("colour/dogs", (30, 20, 3))):
        Path(folder).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(f"{folder}/{i}.png")

    def run(line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fewfire", *line.split()])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() sets it
        with pytest.raises(SystemExit) as exit, warnings.catch_warnings():
            warnings.simplefilter("default")
            cli.main()
        out, err = capsys.readouterr()
        return exit.value.code or 0, out + err

    return run


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ("x.npz --set data.options.array=y", (3,)),
        ("s.npz", (5,)),
        ("x.safetensors", (3,)),
        ("grey", (12, 9)),
        ("colour --set data.options.size=[6,5]", (3, 6, 5)),
        ("colour --set data.options.size=6 --set data.options.grey=true", (6, 6)),
        ("colour --set data.options.patch=8 --set data.options.n=50", (3, 8, 8)),
        ("colour --set data.options.patch=8 --set data.options.n=50 --set data.options.grey=true", (8, 8)),
    ],
)
def test_the_command_line_trains_on_files_and_folders(call, data, shape):
    code, said = call(f"train {data} --out run --set train.steps=5 --set train.batch_size=8")
    assert code == 0, said
    name = data.split()[0]
    for line in ("report run", "evaluate run --json", f"encode run {name} --out z.npz"):
        code, said = call(line)
        assert code == 0, said
    code, said = call(f"reconstruct run {name} --out x_hat.npy")
    assert code == 0, said
    assert np.load("x_hat.npy").shape[1:] == shape
    code, said = call("train z.npz --out again --set train.steps=5 --set train.batch_size=8")
    assert code == 0, said


def test_the_command_line_names_what_it_could_read(call):
    for line in ("train x.xlsx --out run", "train absent --out run"):
        code, said = call(line)
        assert code == 2
        assert ".npy, .npz" in said
        assert ".safetensors" in said
        assert "a folder of images" in said
    code, said = call("train colour --out run")
    assert code == 2
    assert "colour/cats/0.png is 20 x 30, colour/dogs/0.png 30 x 20 (height x width); resize" in said


# ------------------------------------------------------------------------------------------------- bad .npy


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy_bytes(X)[:-1], r"expected 404 bytes for float32 of shape \(23, 3\), the file has 403"),
        (npy_bytes(X) + npy_bytes(X), "written behind the array"),
        (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000, 1), }"), "the file has 8"),
        (npy_bytes(np.array([[1, None]]), allow_pickle=True), "pickled Python objects, which are never loaded"),
        (npy_bytes(np.zeros(3, [("a", "f4")])), "structured array"),
        (npy_bytes(np.zeros((0, 7))), "at least one row"),
        (npy_bytes(np.zeros(7)), "reshape"),
        (npy_bytes(np.zeros(())), r"shape \(\)"),
        (npy_bytes(np.zeros((2, 2), "M8[s]")), "datetime64"),
        (npy_bytes(np.array([["a"]])), "row 0, column 0 holds 'a'"),
        (npy_bytes(X.astype(complex)), "complex"),
        (npy_header("{" * 5000), "damaged"),
        (npy_header("[" * 9999), "damaged"),
        (npy_header("-" * 9999), "damaged"),
        (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 4000 + "), }"), "at most 16"),
        (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",), }"), "damaged"),
        (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3), }"), "damaged"),
        (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'x': __import__('os')}"), "damaged"),
        (npy_header("{'descr': '<f4', 'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }"), "damaged"),
        (npy_header(" " * 20000), "at most 10,000 bytes"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "at most 10,000 bytes"),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr'", "ends inside its header"),
        (b"\x93NUMPY\x09\x00" + b" " * 200, "does not start like one"),
        (b"PK\x03\x04" + b" " * 200, "does not start like one"),
    ],
)
def test_a_bad_npy_file_is_refused(tmp_path, content, message):
    (tmp_path / "bad.npy").write_bytes(content)
    assert re.search(message, refusal(tmp_path / "bad.npy"))


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_a_folder_or_nothing_in_place_of_a_file(tmp_path, suffix):
    kind = {"npy": NpySource, "npz": NpzSource, "safetensors": SafetensorsSource}[suffix]
    with pytest.raises(FileNotFoundError, match="no such file"):
        kind(tmp_path / f"absent.{suffix}")
    with pytest.raises(ValueError, match="is not a file"):
        kind(tmp_path)


# ------------------------------------------------------------------------------------------------- bad .npz

Member = Callable[[zipfile.ZipInfo], None]


def edited(path: Path, edit: Member) -> Path:
    info = zipfile.ZipInfo("x.npy")
    edit(info)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, npy_bytes(X))
    return path


def zip_of(name: bytes, stream: bytes, size: int) -> bytes:
    """An archive of one deflated member, written by hand, so that two gigabytes need not be compressed."""
    sizes = struct.pack("<5H3L", 20, 0, 8, 0, 0, 0, len(stream), size)
    local = b"PK\x03\x04" + sizes + struct.pack("<2H", len(name), 0) + name + stream
    central = b"PK\x01\x02" + struct.pack("<H", 20) + sizes + struct.pack("<5H2L", len(name), 0, 0, 0, 0, 0, 0) + name
    return local + central + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, len(central), len(local), 0)


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path):
    """2 GB of zeros in 2 MB; the sizes are told truthfully."""
    header = npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (49807360, 5), }")
    deflate = zlib.compressobj(wbits=-15)
    start = deflate.compress(header) + deflate.flush(zlib.Z_FULL_FLUSH)
    mebibyte = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    size = len(header) + 1900 * (1 << 20)
    path = tmp_path / "bomb.npz"
    path.write_bytes(zip_of(b"x.npy", start + 1900 * mebibyte + deflate.flush(), size))
    assert path.stat().st_size < 3_000_000
    text = refusal(path)
    assert f"{size:,} bytes, more than 100 times" in text
    assert "allow_expansion=True" in text


def lying(path: Path, stated: int, actual: int) -> Path:
    """A directory and a header that state ``stated`` bytes, and a stream that inflates to ``actual``."""
    header = npy_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({stated}, 1), }}")
    write_npz(path, {"x.npy": header + bytes(actual)})
    raw = path.read_bytes()
    old, new = (struct.pack("<I", len(header) + n) for n in (actual, stated))
    assert raw.count(old) == 2, "in the local header and in the directory"
    path.write_bytes(raw.replace(old, new))
    return path


@pytest.mark.parametrize(("stated", "actual"), [(1000, 60_000_000), (300_000, 1000)])
def test_a_directory_that_lies_is_found_out(tmp_path, stated, actual):
    text = refusal(lying(tmp_path / "lying.npz", stated, actual))
    assert "CRC" in text or "ends inside" in text


def test_header_and_directory_must_agree(tmp_path):
    path = write_npz(tmp_path / "x.npz", {"x.npy": npy_bytes(X) + b"more"})
    assert "has 408 bytes by the list of members, and 404 by its own header" in refusal(path)


def test_what_expands_much_is_read_when_asked_for(tmp_path):
    zeros = np.zeros((100, 1_000_000), np.uint8)
    np.savez_compressed(tmp_path / "zeros.npz", zeros)
    assert "allow_expansion" in refusal(tmp_path / "zeros.npz")
    assert open_source(tmp_path / "zeros.npz", allow_expansion=True).row_shape == (1_000_000,)


def test_a_small_archive_may_expand_as_it_likes(tmp_path):
    np.savez_compressed(tmp_path / "zeros.npz", np.zeros((1000, 1000)))
    assert (tmp_path / "zeros.npz").stat().st_size * 100 < 8_000_000
    assert open_source(tmp_path / "zeros.npz").n_rows == 1000


def test_what_exceeds_the_memory_of_the_machine_is_refused(tmp_path, monkeypatch):
    path = as_npz(tmp_path, X)
    monkeypatch.setattr(npz, "machine_memory", lambda: 100)
    assert "404 bytes, this machine has 100 of memory; save the array as .npy" in refusal(path)


@pytest.mark.parametrize("flipped", range(-60, -10, 7))
def test_a_changed_number_in_a_stored_member_is_found_out(tmp_path, flipped):
    raw = bytearray(as_npz(tmp_path, X).read_bytes())
    raw[raw.find(X.tobytes()) + X.nbytes + flipped] ^= 1
    (tmp_path / "x.npz").write_bytes(raw)
    assert "CRC" in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.txt": b"text"}, "'x.txt' is not a .npy file"),
        ({"inner.npz": b"PK\x03\x04"}, "'inner.npz' is not a .npy file"),
        ({"../x.npy": npy_bytes(X)}, "name that no array has"),
        ({"/etc/x.npy": npy_bytes(X)}, "name that no array has"),
        ({"c:x.npy": npy_bytes(X)}, "name that no array has"),
        ({"a\\x.npy": npy_bytes(X)}, "name that no array has"),
        ({"a\nb.npy": npy_bytes(X)}, "name that no array has"),
        ({"a" * 300 + ".npy": npy_bytes(X)}, "name that no array has"),
        ({"folder/": b""}, "name that no array has"),
        ({f"{i}.npy": npy_bytes(X[:1]) for i in range(5000)}, "expected 1 to 4096 arrays"),
        ({}, "expected 1 to 4096 arrays"),
        ({"x.npy": b"not an array"}, "does not start like one"),
        ({"x.npy": npy_bytes(np.array([[1, None]]), allow_pickle=True)}, "array 'x': it holds pickled"),
        ({"x.npy": npy_bytes(np.zeros(3, [("a", "f4")]))}, "structured"),
        ({"x.npy": npy_bytes(np.zeros((0, 3)))}, "at least one row"),
        ({"x.npy": npy_bytes(np.zeros(3)), "y.npy": npy_bytes(np.zeros(4))}, r"expected an array of numbers"),
    ],
)
def test_archives_of_something_else_are_refused(tmp_path, members, message):
    assert re.search(message, refusal(write_npz(tmp_path / "bad.npz", members, zipfile.ZIP_STORED)))


def test_members_that_are_no_files_are_refused(tmp_path):
    def as_link(info: zipfile.ZipInfo) -> None:
        info.external_attr = (stat.S_IFLNK | 0o777) << 16

    assert "a link or a folder" in refusal(edited(tmp_path / "x.npz", as_link))
    plain = edited(tmp_path / "y.npz", lambda info: None).read_bytes()
    directory = plain.rfind(b"PK\x01\x02")

    def with_short(offset: int, value: int) -> Path:
        raw = bytearray(plain)
        raw[directory + offset : directory + offset + 2] = struct.pack("<H", value)
        (tmp_path / "z.npz").write_bytes(raw)
        return tmp_path / "z.npz"

    assert "its member 'x.npy' is encrypted" in refusal(with_short(8, 1))
    assert "is compressed by method 14" in refusal(with_short(10, zipfile.ZIP_LZMA))


def test_a_member_that_is_there_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", npy_bytes(X))
        archive.writestr("x.npy", npy_bytes(X + 1))
    assert "is there twice" in refusal(tmp_path / "x.npz")


def test_an_endless_list_of_members_is_refused_unread(tmp_path):
    path = tmp_path / "many.npz"
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    n = 400_000
    directory = entry * n
    short = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, n & 0xFFFF, n & 0xFFFF, len(directory), 0, 0)
    path.write_bytes(directory + short)
    assert "expected a list of members of at most" in refusal(path)

    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, n, n, len(directory), 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(directory), 1)
    for stated in (0xFFFFFFFF, 46):
        short = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, stated, 0xFFFFFFFF, 0)
        path.write_bytes(directory + record + locator + short)
        assert "expected a list of members of at most" in refusal(path), "zip64"


def test_an_archive_of_zip64_is_read(tmp_path):
    """What numpy writes beyond 4 GiB, in small."""
    path = as_npz(tmp_path, X)
    raw = path.read_bytes()
    end = raw.rfind(b"PK\x05\x06")
    count, size, offset = struct.unpack("<H2L", raw[end + 10 : end + 20])
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    short = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(raw[:end] + record + locator + short)
    assert same(NpzSource(path), ArraySource(X))


# ------------------------------------------------------------------------------------------------- bad .safetensors


def tensors_file(path: Path, header: Any, body: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ({"x": entry([2, 2], 0, 16)}, 15, "tensors take 16 bytes, the file has 15"),
        ({"x": entry([2, 2], 0, 16)}, 17, "tensors take 16 bytes, the file has 17"),
        ({"x": entry([2, 2], 0, 12)}, 12, "do not fit its shape"),
        ({"x": entry([2, 2], 4, 20)}, 20, "hole or overlap"),
        ({"x": entry([2, 2], 0, 16), "y": entry([2, 2], 8, 24)}, 24, "hole or overlap"),
        ({"x": entry([2**40, 2**40], 0, 16)}, 16, "do not fit its shape"),
        ({"x": entry([2, 2**60], 0, 16)}, 16, "not described"),
        ({"x": entry([-2, -2], 0, 16)}, 16, "not described"),
        ({"x": entry([2.0, 2], 0, 16)}, 16, "not described"),
        ({"x": entry([True, 4], 0, 16)}, 16, "not described"),
        ({"x": entry([1] * 40, 0, 4)}, 4, "not described"),
        ({"x": {"dtype": "F32", "shape": [1, 1]}}, 4, "not described"),
        ({"x": 3}, 4, "not described"),
        ({"x": entry([4, 4], 0, 16, "F8_E4M3")}, 16, "is 'F8_E4M3'; save it as BF16 or F32"),
        ({"x": entry([4], 0, 16)}, 16, "reshape"),
        ({"x": entry([0, 4], 0, 0)}, 0, "at least one row"),
        ({"x": entry([0, 2**47, 2**47], 0, 0)}, 0, ""),
        ({"a": entry([4], 0, 16), "b": entry([4], 16, 32)}, 32, "expected a tensor"),
        ({}, 0, "expected 1 to 4096 tensors"),
        ({str(i): entry([0], 0, 0) for i in range(10_000)}, 0, "expected at most 4096 tensors"),
        ([], 0, "not a JSON object"),
        (b'{"x": 1, "x": 2}', 0, "twice"),
        (b"[" * 100_000, 0, "nested deeper"),
        (b'{"x": ' * 50_000, 0, "nested deeper"),
        (b"\xff\xfe", 0, "damaged"),
        ({str(i): 0 for i in range(5000)}, 0, "expected 1 to 4096 tensors"),
        (b" " * (5 << 20), 0, "expected a header of at most 1,048,576 bytes"),
    ],
)
def test_a_bad_tensor_file_is_refused(tmp_path, header, body, message):
    path = tensors_file(tmp_path / "bad.safetensors", header, bytes(body))
    assert re.search(message, refusal(path))


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, b"\xff" * 80, struct.pack("<Q", 100) + b"{}"])
def test_what_is_no_tensor_file_is_refused(tmp_path, content):
    (tmp_path / "bad.safetensors").write_bytes(content)
    assert "is not a .safetensors file" in refusal(tmp_path / "bad.safetensors")


def test_a_model_is_not_data(tmp_path):
    ff.save(ff.Autoencoder(3, 8), tmp_path / "model")
    text = refusal(tmp_path / "model" / "model.safetensors")
    assert "it is a fewfire model, not data to train on" in text
