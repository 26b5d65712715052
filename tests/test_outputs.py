"""Codes and reconstructions as files: the model's own numbers, every row, in order, or no file."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import torch

import fewfire as ff
from fewfire import outputs
from fewfire.outputs import write_codes, write_reconstructions


def named(x, names):
    return ff.ArraySource(x, layout=ff.Layout(columns=tuple(names)))


@pytest.fixture(autouse=True)
def several_batches(monkeypatch):
    monkeypatch.setattr(outputs, "BATCH", 64)  # 200 rows: 64, 64, 64, 8


@pytest.fixture
def model():
    return ff.Autoencoder(12, 24, {"name": "topk", "k": 3})


def test_codes_csr(model, rows, tmp_path):
    assert write_codes(model, ff.ArraySource(rows), tmp_path / "z.npz") == (200, 24)
    codes = sp.load_npz(tmp_path / "z.npz")
    assert codes.format == "csr"
    assert codes.nnz <= 600
    assert (codes.toarray() == model.encode(rows).numpy()).all()


def test_codes_npy(model, rows, tmp_path):
    assert write_codes(model, ff.ArraySource(rows), tmp_path / "z.npy") == (200, 24)
    z = np.load(tmp_path / "z.npy", allow_pickle=False)
    assert z.dtype == np.float32
    assert (z == model.encode(rows).numpy()).all()
    assert (np.load(tmp_path / "z.npy", mmap_mode="r") == z).all()


def test_codes_parquet(model, rows, tmp_path):
    assert write_codes(model, ff.ArraySource(rows), tmp_path / "z.parquet") == (200, 24)
    table = pq.read_table(tmp_path / "z.parquet")
    assert table.column_names == ["indices", "values"]
    dense = np.zeros((200, 24), np.float32)
    for i, (where, values) in enumerate(zip(*(table[c].to_pylist() for c in table.column_names), strict=True)):
        dense[i, where] = values
    assert (dense == model.encode(rows).numpy()).all()


def test_codes_of_a_dense_model(rows, tmp_path):
    model = ff.Autoencoder(12, 5, "sigmoid")
    for name in ("z.npz", "z.npy", "z.parquet"):
        assert write_codes(model, ff.ArraySource(rows), tmp_path / name) == (200, 5)
    assert (sp.load_npz(tmp_path / "z.npz").toarray() == model.encode(rows).numpy()).all()


def test_float64_stays(model, rows, tmp_path):
    write_codes(model, ff.ArraySource(rows.astype(np.float64)), tmp_path / "z.npy")
    z = np.load(tmp_path / "z.npy")
    assert z.dtype == np.float64
    assert (z == model.encode(rows.astype(np.float64)).numpy()).all()


def test_a_row_that_fires_nothing(model, tmp_path):
    with torch.no_grad():
        model.encoder.b_enc.fill_(-1e6)
    x = ff.ArraySource(np.ones((3, 12), np.float32))
    for name in ("z.npz", "z.parquet"):
        write_codes(model, x, tmp_path / name)
    assert sp.load_npz(tmp_path / "z.npz").nnz == 0
    assert pq.read_table(tmp_path / "z.parquet")["indices"].to_pylist() == [[], [], []]


@pytest.mark.parametrize("shape", [(12,), (3, 4), (1, 3, 4)])
def test_reconstructions_npy(rows, tmp_path, shape):
    model = ff.Autoencoder(shape, 24)
    x = rows.reshape(200, *shape)
    assert write_reconstructions(model, ff.ArraySource(x), tmp_path / "r.npy") == (200, *shape)
    assert (np.load(tmp_path / "r.npy") == model.reconstruct(x).numpy()).all()


def test_reconstructions_parquet_have_the_columns_names(model, rows, tmp_path):
    names = [f"column {i}" for i in range(12)]
    source = named(rows, names)
    assert write_reconstructions(model, source, tmp_path / "r.parquet") == (200, 12)
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.column_names == names
    assert (np.stack([c.to_numpy() for c in table.columns], 1) == model.reconstruct(rows).numpy()).all()
    write_reconstructions(model, ff.ArraySource(rows), tmp_path / "nameless.parquet")
    assert pq.read_table(tmp_path / "nameless.parquet").column_names == [f"x{i}" for i in range(12)]


def test_columns_of_the_same_name_all_stay(rows, tmp_path):
    model = ff.Autoencoder(3, 6)
    source = named(rows[:, :3], ["a", "b", "a"])
    write_reconstructions(model, source, tmp_path / "r.parquet")
    table = pq.ParquetFile(tmp_path / "r.parquet").read()
    assert table.column_names == ["a", "b", "a"]
    expected = model.reconstruct(rows[:, :3]).numpy()
    assert (np.stack([c.to_numpy() for c in table.columns], 1) == expected).all()


@pytest.mark.parametrize("width", [7, 15])
def test_a_target_of_another_width_loses_no_column(rows, tmp_path, width):
    """The input's names are not the target's."""
    model = ff.Autoencoder(12, 24, d_out=width)
    source = named(rows, list("abcdefghijkl"))
    assert write_reconstructions(model, source, tmp_path / "r.parquet") == (200, width)
    assert pq.read_table(tmp_path / "r.parquet").column_names == [f"x{i}" for i in range(width)]


# ----------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("write", [write_codes, write_reconstructions])
def test_refused_before_any_work(model, rows, tmp_path, write):
    class Never(ff.ArraySource):
        def batches(self, *args, **kwargs):
            pytest.fail("it began to work")

    for name, sentence in (("z.csv", r"ends in .*\.npy, \.parquet; got 'z.csv'"), ("z", "got 'z'")):
        with pytest.raises(ValueError, match=sentence):
            write(model, ff.ArraySource(rows), tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere to write z.npy into; create it first"):
        write(model, ff.ArraySource(rows), tmp_path / "nowhere" / "z.npy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["z.npy", "z.npz", "z.parquet"])
def test_other_rows_are_refused_and_what_was_there_stays(model, rows, tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match=r"expected x of shape \(rows, 12\); got \(64, 5\)"):
        write_codes(model, ff.ArraySource(rows[:, :5]), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("name", ["z.npy", "z.npz", "z.parquet"])
def test_a_failure_half_way_leaves_no_half_file(model, rows, tmp_path, name):
    class Breaking(ff.ArraySource):
        def batches(self, *args, **kwargs):
            for i, batch in enumerate(super().batches(*args, **kwargs)):
                if i == 2:
                    raise OSError("the disk is gone")
                yield batch

    with pytest.raises(OSError, match="the disk is gone"):
        write_codes(model, Breaking(rows), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
