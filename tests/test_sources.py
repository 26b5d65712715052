"""Sources: every row once, resumable anywhere, the caller's memory left alone, bad data named in one line."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewfire.contracts import Layout, Source
from fewfire.preprocess import make_preprocess
from fewfire.sources import ArraySource, NpySource, arrays, digits, open_source, patches, photographs

X = np.arange(23 * 3, dtype=np.float32).reshape(23, 3)


def saved(folder: Path, array: np.ndarray, name: str = "x.npy") -> Path:
    np.save(folder / name, array)
    return folder / name


@pytest.fixture(params=["numpy", "torch", "read-only", "memmap", "part"])
def source(request, tmp_path) -> Source:
    """Row i holds 3i, 3i + 1, 3i + 2, wherever it comes from."""
    if request.param == "memmap":
        return NpySource(saved(tmp_path, X))
    if request.param == "torch":
        return ArraySource(torch.from_numpy(X.copy()))
    if request.param == "part":
        return ArraySource(np.concatenate([X, X + 69])).split(0.5, seed=3)[1]
    x = X.copy()
    x.flags.writeable = request.param == "numpy"
    return ArraySource(x)


def rows_of(source: Source, batch_size: int = 5, **kwargs) -> list[int]:
    return torch.cat([batch.rows for batch in source.batches(batch_size, **kwargs)]).tolist()


# ------------------------------------------------------------------------------------------------- batches


def test_it_is_a_source(source):
    assert isinstance(source, Source)
    assert (source.n_rows, source.row_shape, source.target_shape) == (23, (3,), (3,))
    assert source.layout == Layout("table")


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_comes_once_with_its_number_and_values(source, shuffle):
    batches = list(source.batches(5, seed=1, shuffle=shuffle))
    assert [len(batch.x) for batch in batches] == [5, 5, 5, 5, 3]
    rows = torch.cat([batch.rows for batch in batches])
    assert rows.dtype == torch.int64
    assert len(set(rows.tolist())) == 23
    assert (rows.sort().values == rows).all() == (not shuffle)
    x = torch.cat([batch.x for batch in batches])
    assert x.dtype == torch.float32
    assert torch.equal(x, (rows[:, None] * 3 + torch.arange(3)).float())
    assert all(batch.x_in is batch.x for batch in batches)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("start", [0, 1, 4, 5, 9])
def test_resuming_gives_the_tail_of_the_full_epoch(source, start, shuffle):
    full = list(source.batches(5, seed=2, epoch=7, shuffle=shuffle))
    tail = list(source.batches(5, seed=2, epoch=7, start=start, shuffle=shuffle))
    assert len(tail) == max(len(full) - start, 0)
    for a, b in zip(full[start:], tail, strict=True):
        assert torch.equal(a.rows, b.rows)
        assert torch.equal(a.x, b.x)


def test_resuming_does_not_produce_the_earlier_batches(monkeypatch):
    taken = []
    take = arrays.take
    monkeypatch.setattr(arrays, "take", lambda storage, where: (taken.append(where), take(storage, where))[1])
    assert len(list(ArraySource(X).batches(5, start=3))) == len(taken) == 2


def test_order_depends_on_seed_and_epoch_and_nothing_else(source):
    order = rows_of(source, seed=1, epoch=2)
    assert order == rows_of(source, seed=1, epoch=2) == rows_of(source, batch_size=8, seed=1, epoch=2)
    assert order != rows_of(source, seed=1, epoch=3)
    assert order != rows_of(source, seed=2, epoch=2)


def test_global_random_state_is_untouched(source):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    rows_of(source)
    source.split(0.5)
    patches(n=10)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_target_rows_come_with_their_inputs():
    source = ArraySource(X, np.arange(46).reshape(23, 2))
    assert source.target_shape == (2,)
    for batch in source.split(0.5)[1].batches(4):
        assert torch.equal(batch.x_in[:, 0], batch.rows * 3.0)
        assert torch.equal(batch.x[:, 0], batch.rows * 2.0)


@pytest.mark.parametrize("build", [np.asarray, torch.tensor])
def test_the_whole_array_in_natural_order_is_not_copied(build):
    x = build(X.copy())
    (batch,) = ArraySource(x).batches(23, shuffle=False)
    address = x.data_ptr() if isinstance(x, torch.Tensor) else x.ctypes.data
    assert batch.x.data_ptr() == address


def test_shuffled_batches_are_copies():
    x = X.copy()
    for batch in ArraySource(x).batches(23):
        batch.x.zero_()
    assert np.array_equal(x, X)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bool", torch.float32),
        ("uint8", torch.float32),
        ("uint16", torch.float32),
        ("int16", torch.float32),
        ("int32", torch.float64),
        ("int64", torch.float64),
        ("uint64", torch.float64),
        ("float16", torch.float32),
        (">f4", torch.float32),
        ("float64", torch.float64),
        (">f8", torch.float64),
        ("longdouble", torch.float64),
    ],
)
def test_dtypes(dtype, expected, shuffle):
    x = (X % 2).astype(dtype)
    (batch,) = ArraySource(x).batches(99, shuffle=shuffle)
    assert batch.x.dtype == expected
    assert torch.equal(batch.x, torch.from_numpy(X % 2)[batch.rows].to(expected))


def test_bfloat16_tensors_and_odd_strides_are_read():
    (batch,) = ArraySource(torch.ones(4, 2, dtype=torch.bfloat16, requires_grad=True)).batches(9)
    assert batch.x.dtype == torch.float32
    assert not batch.x.requires_grad
    packed = np.zeros(23, dtype=[("flag", "u1"), ("values", "f4", 3)])
    packed["values"] = X[::-1]
    for x in (X[::-1], packed["values"]):
        (batch,) = ArraySource(x).batches(99)
        assert torch.equal(batch.x[:, 0], (22 - batch.rows) * 3.0)


def test_nan_is_let_through_for_the_engine_to_name():
    (batch,) = ArraySource(np.full((2, 2), np.nan)).batches(2)
    assert batch.x.isnan().all()


# --------------------------------------------------------------------------------------------------- split


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 2), (0.5, 12), (1e-9, 1), (1 - 1e-9, 22)])
def test_split_is_disjoint_and_complete(source, fraction, count):
    rest, part = source.split(fraction, seed=4)
    a, b = rows_of(rest, shuffle=False), rows_of(part, shuffle=False)
    assert (rest.n_rows, part.n_rows) == (len(a), len(b)) == (23 - count, count)
    assert sorted(a + b) == rows_of(source, shuffle=False)


def test_split_is_random_and_repeatable(source):
    def part(seed: int) -> list[int]:
        return rows_of(source.split(0.5, seed)[1], shuffle=False)

    assert part(0) == part(0) != part(1)
    assert part(0) == sorted(part(0))


def test_a_part_of_a_part_keeps_original_row_numbers(source):
    for part in source.split(0.5)[0].split(0.5):
        for batch in part.batches(3):
            assert torch.equal(batch.x[:, 0], batch.rows * 3.0)


# ---------------------------------------------------------------------------------------------- fingerprint


def test_fingerprint_follows_the_data():
    def changed(where: tuple[int, int]) -> np.ndarray:
        x = X.copy()
        x[where] += 1
        return x

    sources = [
        ArraySource(X),
        ArraySource(changed((0, 0))),
        ArraySource(changed((22, 2))),
        ArraySource(X.reshape(-1, 1)),
        ArraySource(X.view(np.int32)),
        ArraySource(X, X),
        ArraySource(X, changed((3, 1))),
        *ArraySource(X).split(0.5),
        ArraySource(X).split(0.5, seed=1)[0],
    ]
    assert len({source.fingerprint for source in sources}) == len(sources)
    assert ArraySource(X.copy()).fingerprint == sources[0].fingerprint
    assert ArraySource(X).split(0.5)[0].fingerprint == ArraySource(X).split(0.5)[0].fingerprint


def test_a_part_does_not_inherit_the_fingerprint_of_the_whole():
    source = ArraySource(X)
    assert source.fingerprint not in {part.fingerprint for part in source.split(0.5)}


def test_fingerprint_of_a_small_file_is_its_content_alone(tmp_path):
    path = saved(tmp_path, X)
    before = NpySource(path).fingerprint
    os.utime(path, (1, 1))
    assert NpySource(path).fingerprint == before


def test_fingerprint_of_a_large_file_samples_it(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_HASH_WHOLE_BYTES", 100)
    monkeypatch.setattr(arrays, "_BLOCK_BYTES", 12)
    path = saved(tmp_path, np.zeros((1000, 3), np.float32))
    os.utime(path, (1, 1))
    first = NpySource(path).fingerprint
    assert NpySource(path).fingerprint == first
    os.utime(path, (2, 2))
    assert NpySource(path).fingerprint != first, "the time counts"
    changed = np.zeros((1000, 3), np.float32)
    changed[-1] = 1
    saved(tmp_path, changed)
    os.utime(path, (1, 1))
    assert NpySource(path).fingerprint != first, "the last block is among the samples"


# -------------------------------------------------------------------------------------------------- layout


def test_layout_is_guessed_from_the_row_shape():
    assert ArraySource(np.zeros((2, 4, 5))).layout == Layout("image", (4, 5))
    assert ArraySource(np.zeros((2, 3, 4, 5))).layout == Layout("image", (3, 4, 5))
    assert ArraySource(np.zeros((2, 7, 4, 5))).layout == Layout("table")


def test_column_names_of_a_table_are_kept():
    class Table:
        columns = ("width", "height")

        def __array__(self, dtype=None, copy=None):
            return np.ones((3, 2))

    assert ArraySource(Table()).layout == Layout("table", columns=("width", "height"))
    assert open_source(Table()).row_shape == (2,)


@pytest.mark.parametrize("layout", [Layout("image", (2, 2)), Layout("table", columns=("a",))])
def test_a_layout_that_does_not_fit_is_refused(layout):
    with pytest.raises(ValueError, match="layout describes"):
        ArraySource(X, layout=layout)


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros(5), ValueError, r"reshape\(-1, 1\)"),
        (np.float64(3), ValueError, r"shape \(\)"),
        (torch.zeros(5), ValueError, r"\(n, columns\)"),
        (np.zeros((0, 5)), ValueError, "at least one row"),
        (np.zeros((5, 0)), ValueError, "at least one row and one column"),
        ([[1, 2], [3]], ValueError, "unequal length"),
        (np.array([[1, "many"]], dtype=object), TypeError, r"row 0, column 1 holds 'many' \(str\)"),
        (np.array([["a", "b"]]), TypeError, "real numbers"),
        (np.array([[1j]]), TypeError, "complex"),
        (torch.zeros(2, 2, dtype=torch.complex64), TypeError, "complex"),
        (np.array([["2020-01-01"]], dtype="M8[D]"), TypeError, "datetime64"),
        (np.array([[1]], dtype="m8[s]"), TypeError, "timedelta64"),
        (np.ma.masked_array([[1.0, 2]], [[True, False]]), TypeError, "filled"),
        (torch.zeros(2, 2).to_sparse(), TypeError, "to_dense"),
    ],
)
def test_bad_arrays_are_refused(x, error, message):
    with pytest.raises(error, match=message) as caught:
        ArraySource(x)
    assert "\n" not in str(caught.value)
    with pytest.raises(error, match="target"):
        ArraySource(X, x)


def test_other_misuse_is_refused():
    with pytest.raises(ValueError, match="x has 23, target 22"):
        ArraySource(X, X[1:])
    with pytest.raises(ValueError, match="x has 23, labels 2"):
        ArraySource(X, labels=[0, 1])
    with pytest.raises(ValueError, match="labels only one value"):
        ArraySource(X, labels=7)
    source = ArraySource(X)
    for arguments in ({"batch_size": 0}, {"batch_size": 2, "start": -1}):
        with pytest.raises(ValueError, match="batch_size"):
            source.batches(**arguments)  # at the call, not at the first batch
    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            source.split(fraction)
    with pytest.raises(ValueError, match="at least 2 rows"):
        ArraySource(X[:1]).split(0.5)


# --------------------------------------------------------------------------------------------------- files


def test_a_npy_file_stays_on_disk(tmp_path):
    source = NpySource(saved(tmp_path, X, "readings.npy"))
    assert isinstance(source._x, np.memmap)
    assert source.name == "readings"
    assert rows_of(source, seed=5) == rows_of(ArraySource(X), seed=5)


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"not an array at all",
        npy_bytes(X)[:-1],
        npy_bytes(X).replace(b"'shape'", b"'shapo'"),
        npy_bytes(X).replace(b"(23, 3)", b"(-3, 3)"),
        npy_bytes(X).replace(b"(23, 3), }", b"(99999,3)}"),
        npy_bytes(X).replace(b"{", b"("),
        npy_bytes(X).replace(b"}", b" "),
        npy_bytes(X).replace(b"<f4", b"<q9"),
        npy_bytes(np.array([[1, None]])),
        npy_bytes(np.zeros(7)),
        npy_bytes(np.zeros((0, 7))),
        npy_bytes(np.array([["text"]])),
    ],
)
def test_a_damaged_or_hostile_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    with pytest.raises((ValueError, TypeError), match=r"bad\.npy") as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- built-in


def test_digits():
    source = digits()
    assert (source.n_rows, source.row_shape, source.layout) == (1797, (64,), Layout("image", (8, 8)))
    (batch,) = source.split(0.1)[1].batches(1797)
    assert source.labels[batch.rows].shape == (180,)
    prep = make_preprocess(source.suggested_preprocess).fit(lambda: [batch.x])
    inked = batch.x.std(0) > 0
    ratio = (prep(batch.x).std(0) / batch.x.std(0))[inked]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), msg="pixels share one scale")


def test_patches_are_repeatable_and_whitened():
    source = patches(n=2000)
    assert (source.n_rows, source.row_shape, source.layout) == (2000, (64,), Layout("image", (8, 8)))
    (batch,) = source.batches(2000, shuffle=False)
    (again,) = patches(n=2000).batches(2000, shuffle=False)
    (other,) = patches(n=2000, seed=1).batches(2000, shuffle=False)
    assert torch.equal(batch.x, again.x)
    assert not torch.equal(batch.x, other.x)
    assert batch.x.var() == pytest.approx(1, abs=0.3)
    y = make_preprocess(source.suggested_preprocess).fit(lambda: [batch.x])(batch.x)
    assert y.mean(1).abs().max() < 1e-5, "a patch's brightness says nothing about its content"


def test_patches_are_cut_evenly_away_from_the_border():
    pictures = [np.arange(400.0).reshape(20, 20), 1000 + np.arange(600.0).reshape(20, 30)]
    source = patches(size=4, n=5000, whiten=False, images=pictures)
    (batch,) = source.batches(5000, shuffle=False)
    x = batch.x.reshape(-1, 4, 4)
    first = x[:, 0, 0] < 1000
    assert torch.equal(x[:, 0, 1], x[:, 0, 0] + 1)
    assert torch.equal(x[first, 1, 0], x[first, 0, 0] + 20)
    assert torch.equal(x[~first, 1, 0], x[~first, 0, 0] + 30)
    # Corners run from 5 to 11 down and, across, from 5 to 11 and from 5 to 21: 7 * 7 and 7 * 17 positions.
    corners = {(5 + r) * 20 + 5 + c for r in range(7) for c in range(7)}
    corners |= {1000 + (5 + r) * 30 + 5 + c for r in range(7) for c in range(17)}
    assert set(x[:, 0, 0].int().tolist()) == corners
    assert first.double().mean().item() == pytest.approx(7 / 24, abs=0.03)


def test_patches_whiten_whole_pictures_before_cutting(monkeypatch):
    from fewfire.sources import builtin

    seen = []
    monkeypatch.setattr(builtin, "whiten_1_over_f", lambda image: (seen.append(image.shape), image)[1])
    patches(n=3, images=[np.zeros((20, 30))])
    assert seen == [(20, 30)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size"),
        ({"n": 0}, "n="),
        ({"images": []}, "at least one picture"),
        ({"images": [np.zeros((17, 40))]}, "18 or more"),
        ({"images": [np.zeros((40, 40, 3))]}, "grey"),
        ({"images": [np.full((40, 40), np.nan)]}, "grey"),
    ],
)
def test_bad_patches_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        patches(**options)


def test_photographs_are_grey_floats_in_the_order_of_their_names(tmp_path):
    Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / "b.png")
    Image.new("L", (5, 4), 51).save(tmp_path / "a.PNG")
    Image.fromarray(np.full((3, 4), 65535 // 3, np.uint16)).save(tmp_path / "c.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    grey = photographs(tmp_path)
    assert [picture.shape for picture in grey] == [(4, 5), (4, 6), (3, 4)]
    assert [picture.mean() for picture in grey] == pytest.approx([0.2, 0.299, 1 / 3])


def test_bad_photographs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        photographs(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no pictures"):
        photographs(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"bad\.png"):
        photographs(tmp_path)


# ---------------------------------------------------------------------------------------------- open_source


def test_open_source_finds_the_right_source(tmp_path, source):
    assert open_source("digits").name == "digits"
    assert open_source("patches", n=7, size=5).row_shape == (25,)
    assert type(open_source(str(saved(tmp_path, X, "y.NPY.npy")))) is NpySource
    assert open_source(X, name="mine").name == "mine"
    assert open_source(torch.zeros(3, 2)).n_rows == 3
    assert open_source([[1, 2], [3, 4]]).n_rows == 2
    assert open_source(source) is source


def test_a_kind_opens_a_file_whose_ending_does_not_tell(tmp_path):
    path = saved(tmp_path, X)
    path.rename(tmp_path / "x.bin")
    with pytest.raises(ValueError, match="cannot tell"):
        open_source(tmp_path / "x.bin")
    assert open_source(tmp_path / "x.bin", kind="npy").n_rows == 23


def test_a_built_in_name_wins_over_a_file_unless_it_is_written_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, X).rename(tmp_path / "digits")
    assert open_source("digits").n_rows == 1797
    assert open_source("./digits", kind="npy").n_rows == 23
    assert open_source(Path("digits"), kind="npy").n_rows == 23


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ("digit", {}, FileNotFoundError, r"digits, patches.*\.npy"),
        ("absent.npy", {}, FileNotFoundError, "absent.npy"),
        (3, {}, TypeError, "int; expected a built-in name"),
        (X, {"nmae": "x"}, ValueError, "no option 'nmae'; it takes: target"),
        ("digits", {"n": 3}, ValueError, "digits has no option 'n'; it takes: nothing"),
        ("x", {"kind": "xlsx"}, ValueError, "unknown kind"),
        (X, {"kind": "npy"}, ValueError, "is for paths"),
        (ArraySource(X), {"name": "x"}, ValueError, "no options"),
    ],
)
def test_open_source_says_what_it_can_read(data, options, error, message):
    with pytest.raises(error, match=message):
        open_source(data, **options)
