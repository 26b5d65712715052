"""Windows of a time series: the rows they cover, from any kind of data; a split that keeps past and future apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import fewfire as ff
from fewfire import plot
from fewfire.contracts import Layout, Source
from fewfire.runs import RunConfig, open_run, train
from fewfire.sources import ArraySource, cut_windows, lines, open_source, windows

N, LENGTH = 300, 16
NAMES = ["flow", "pressure", "volts"]
X = np.random.default_rng(0).normal(size=(N, 3)).round(6)


def array(folder, **options):
    return open_source(X, **options)


def npy(folder, **options):
    np.save(folder / "x.npy", X)
    return open_source(folder / "x.npy", **options)


def sparse(folder, **options):
    return open_source(sp.csr_array(X), **options)


def small_csv(folder, **options):
    pd.DataFrame(X, columns=NAMES).to_csv(folder / "x.csv", index=False)
    return open_source(folder / "x.csv", **options)


def csv(folder, **options):
    """In blocks of some 30 rows, pools of some 40 windows, and runs of two blocks."""
    return small_csv(folder, shuffle_bytes=40 * (3 * LENGTH * 8 + 16), **options)


def one_block(folder, **options):
    pd.DataFrame(X, columns=NAMES).to_parquet(folder / "x.parquet")
    return open_source(
        folder / "x.parquet", shuffle_bytes=40 * (3 * LENGTH * 8 + 16) if options else 1 << 20, **options
    )


KINDS = {kind.__name__: kind for kind in (array, npy, sparse, small_csv, csv, one_block)}


@pytest.fixture(params=KINDS)
def opened(request, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 900)
    monkeypatch.setattr(windows, "RUN_BYTES", 1500)
    monkeypatch.setattr(windows, "PIECE_BYTES", 7 * 3 * LENGTH * 8)
    return lambda **options: KINDS[request.param](tmp_path, **options)


def expected(stride: int) -> np.ndarray:
    return np.stack([X[i : i + LENGTH].T for i in range(0, N - LENGTH + 1, stride)])


def same(a, b) -> bool:
    return len(a) == len(b) and all(
        torch.equal(u.rows, v.rows) and torch.equal(u.x, v.x) for u, v in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("stride", [1, 3, 16, 40])
def test_row_i_covers_the_rows_from_i_times_the_stride(opened, stride, shuffle):
    source = opened(window=LENGTH, stride=stride)
    truth = expected(stride)
    assert isinstance(source, Source)
    assert source.row_shape == source.target_shape == (3, LENGTH)
    assert source.n_rows == len(truth)
    found = list(source.batches(7, seed=1, shuffle=shuffle))
    rows = torch.cat([b.rows for b in found])
    assert (rows.sort().values == rows).all() == (not shuffle)
    assert sorted(rows.tolist()) == list(range(len(truth)))
    np.testing.assert_array_equal(torch.cat([b.x for b in found]).numpy(), truth[rows.numpy()])
    assert all(b.x_in is b.x for b in found)
    for start in (0, 1, 2, 5, len(found)):
        assert same(list(source.batches(7, seed=1, start=start, shuffle=shuffle)), found[start:])
    assert not same(list(source.batches(7, seed=1, epoch=1)), list(source.batches(7, seed=1, epoch=2)))


@pytest.mark.parametrize("stride", [1, 5, 20])
def test_a_split_holds_out_the_end_and_no_row_is_in_both(opened, stride):
    source = opened(window=LENGTH, stride=stride)
    rest, held = source.split(0.2)
    truth = expected(stride)
    a, b = (torch.cat([batch.rows for batch in part.batches(9, shuffle=False)]).tolist() for part in (rest, held))
    assert len(b) == held.n_rows == round(0.2 * len(truth))
    assert (a, b) == (list(range(len(a))), list(range(len(truth) - len(b), len(truth))))
    past = {row for i in a for row in range(i * stride, i * stride + LENGTH)}
    future = {row for i in b for row in range(i * stride, i * stride + LENGTH)}
    assert not past & future
    assert a[-1] * stride + LENGTH > b[0] * stride - stride, "and no more is left out than need be"
    for batch in held.batches(9, seed=2):
        np.testing.assert_array_equal(batch.x.numpy(), truth[batch.rows.numpy()])
    twice = rest.split(0.3)
    assert max(batch.rows.max() for batch in twice[1].batches(9)) == a[-1]
    assert max(batch.rows.max() for batch in twice[0].batches(9)) < len(a) * 0.7 + 1
    assert len({part.fingerprint for part in (source, rest, held, *twice)}) == 5


def test_fingerprints_follow_data_window_and_stride(opened):
    settings = [{}, {"window": 8}, {"window": 9}, {"window": 8, "stride": 2}, {"window": 8}]
    found = [opened(**options).fingerprint for options in settings]
    assert len(set(found)) == 4
    assert found[1] == found[-1]


def test_the_layout_names_the_channels(tmp_path):
    assert small_csv(tmp_path, window=4).layout == Layout("series", (3, 4), tuple(NAMES))
    assert open_source(X, window=4).layout == Layout("series", (3, 4))
    layout = Layout("series", (3, 4), tuple(NAMES))
    assert Layout.from_dict(layout.to_dict()) == layout
    assert plot.column_name(layout, 0) == "flow[0]"
    assert plot.column_name(layout, 7) == "pressure[3]"
    assert plot.column_name(Layout("series", (3, 4)), 11) == "channel 2[3]"
    layout.check((3, 4))
    layout.check((12,))
    for wrong in (Layout("series", (3, 5)), Layout("series", (2, 6), tuple(NAMES)), Layout("series", (12,))):
        with pytest.raises(ValueError, match="series"):
            wrong.check((3, 4))


def test_nothing_is_copied_before_a_batch_needs_it(tmp_path):
    x = X.copy()
    (batch,) = open_source(x, window=LENGTH).batches(10**6, shuffle=False)
    assert batch.x.data_ptr() == x.ctypes.data
    source = npy(tmp_path, window=LENGTH)
    assert isinstance(source._rows._x, np.memmap)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": 301}, "a window of 301 rows needs as many; x has 300"),
        ({"window": 0}, "expected window to be a whole number of rows, at least 1; got 0"),
        ({"window": 2.5}, "expected window"),
        ({"window": True}, "expected window"),
        ({"window": "64"}, "expected window"),
        ({"window": 4, "stride": 0}, "expected stride"),
        ({"stride": 4}, "stride=4 is the distance of windows"),
    ],
)
def test_windows_that_cannot_be_cut(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        small_csv(tmp_path, **options)


def test_what_windows_cannot_be_cut_from(tmp_path):
    with pytest.raises(ValueError, match="rows of shape"):
        open_source(np.zeros((50, 4, 4)), window=2)
    with pytest.raises(ValueError, match="rows of shape"):
        cut_windows(open_source(X, window=4), 2)
    with pytest.raises(ValueError, match="part of a split"):
        cut_windows(ArraySource(X).split(0.5)[0], 4)
    with pytest.raises(ValueError, match="part of a split"):
        cut_windows(small_csv(tmp_path).split(0.5)[0], 4)
    with pytest.raises(ValueError, match="target"):
        cut_windows(ArraySource(X, X * 2), 4)

    class Foreign:
        n_rows, row_shape, target_shape, layout, fingerprint = 50, (3,), (3,), Layout(), "x"

        def batches(self, *a, **k): ...

        def split(self, *a): ...

    with pytest.raises(ValueError, match="knows no row by its number"):
        open_source(Foreign(), window=4)
    with pytest.raises(ValueError, match="leaves none to train on"):
        open_source(X[:20], window=LENGTH).split(0.2)
    with pytest.raises(ValueError, match="fraction"):
        open_source(X, window=4).split(1.0)


def test_as_many_rows_as_one_window_are_enough():
    (batch,) = open_source(X[:LENGTH], window=LENGTH).batches(4)
    np.testing.assert_array_equal(batch.x.numpy()[0], X[:LENGTH].T)


def test_sources_and_arrays_are_cut_alike():
    for source in (open_source(ArraySource(X), window=4), open_source(pd.DataFrame(X, columns=NAMES), window=4)):
        assert source.n_rows == N - 3
    assert open_source(pd.DataFrame(X, columns=NAMES), window=4).layout.columns == tuple(NAMES)


@pytest.mark.parametrize("options", [{"window": 8, "stride": 4}, {"window": 8, "shuffle_bytes": 4000}])
def test_a_run_on_windows_and_what_follows_it(tmp_path, monkeypatch, options):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 900)
    monkeypatch.setattr(windows, "RUN_BYTES", 1500)
    small_csv(tmp_path)
    path = str(tmp_path / "x.csv")
    config = RunConfig.model_validate(
        {"data": {"path": path, "options": options}, "train": {"steps": 30, "validation_fraction": 0.2}}
    )
    run = train(config, tmp_path / "run", progress=False)
    assert run.model.input_shape == (3, 8)
    assert run.model.layout == Layout("series", (3, 8), tuple(NAMES))
    result = ff.evaluate(run.model, run.source())
    assert result["n_rows"] == run.source().n_rows
    pd.DataFrame(X[:50, ::-1], columns=NAMES[::-1]).to_csv(tmp_path / "other.csv", index=False)
    other = open_run(tmp_path / "run").source(str(tmp_path / "other.csv"))
    np.testing.assert_array_equal(next(other.batches(1, shuffle=False)).x[0], X[:8].T)
    assert "flow[" in open_report(run)
    assert plot.top_columns(run.model, 0) is not None


def open_report(run) -> str:
    from fewfire.report import write_report

    return write_report(run, run.source()).read_text()
