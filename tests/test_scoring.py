"""How unusual each row is, and why."""

import math

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

import fewfire as ff
from fewfire.scoring import column_names, score_rows, threshold, write_scores

COLUMNS = tuple(f"c{i}" for i in range(12))


@pytest.fixture(scope="module")
def trained():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2000, 3)) @ generator.normal(size=(3, 12))
    x = (x + 0.05 * generator.normal(size=x.shape)) * np.logspace(-4, 6, 12)
    source = ff.ArraySource(x, layout=ff.Layout("table", columns=COLUMNS))
    model = ff.Autoencoder(12, 24, ff.TopK(k=4), preprocess="standardize")
    ff.Trainer(model, source, config=ff.TrainConfig(steps=1500), progress=False).fit()
    return model, source, x


def test_score_is_the_mean_squared_error_in_model_space(trained):
    model, _, x = trained
    scores = score_rows(model, x)
    standard = (x - x.mean(0)) / x.std(0)
    recon = (model.reconstruct(x).numpy() - x.mean(0)) / x.std(0)
    error = np.square(recon - standard)
    np.testing.assert_allclose(scores.score, error.mean(1), rtol=1e-6)
    np.testing.assert_allclose(scores.share, error / error.sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("preprocess", ["row_mean", ["row_mean", "clip_scale"], "whiten"])
def test_the_score_is_the_error_that_training_lowers(preprocess):
    """On the way to data space and back, row_mean and clip_scale lose some of it."""
    x = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    model = ff.Autoencoder(6, 4, "relu", preprocess=preprocess)
    ff.Trainer(model, x, [ff.MSE()], ff.TrainConfig(steps=50), progress=False).fit()
    with torch.no_grad():
        out = model(model.to_model_space(torch.from_numpy(x)))
    np.testing.assert_allclose(score_rows(model, x).score, (out.recon - out.x).square().mean(1), rtol=1e-5)


def test_targets_are_checked_as_rows_are(tmp_path, monkeypatch):
    x = np.zeros((4, 3), np.float32)
    target = x.copy()
    target[3, 2] = math.nan
    model = ff.Autoencoder(3, 4)
    with pytest.raises(ValueError, match="target holds NaN, first in row 3, column 2"):
        score_rows(model, x, target)
    monkeypatch.setattr("fewfire.scoring.BATCH", 2)
    with pytest.raises(ValueError, match="target holds NaN, first in row 3, column 2"):
        write_scores(model, ff.ArraySource(x, target), tmp_path / "s.csv", above=1.0)
    with pytest.raises(ValueError, match=r"targets of shape \(4, 5\), got \(4, 3\); this model's targets are not"):
        score_rows(ff.Autoencoder(3, 4, d_out=5), x)


def test_a_row_without_error_has_no_column_to_blame():
    model = ff.Autoencoder(3, 4)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    scores = score_rows(model, np.zeros((2, 3)))
    assert scores.score.tolist() == [0, 0]
    assert scores.share.tolist() == [[0, 0, 0]] * 2


def test_the_spoiled_column_is_named_whatever_its_scale(trained, tmp_path):
    model, _, x = trained
    spoiled = x[:12].copy()
    for i in range(12):
        spoiled[i, i] += 40 * x[:, i].std()
    write_scores(
        model,
        ff.ArraySource(spoiled, layout=ff.Layout("table", columns=COLUMNS)),
        tmp_path / "s.csv",
        above=threshold(model, ff.ArraySource(x)),
    )
    table = pyarrow.csv.read_csv(tmp_path / "s.csv")
    assert table.column_names == [
        *("row", "score", "is_anomaly", "column_1", "share_1", "column_2", "share_2", "column_3", "share_3")
    ]
    assert all(table["is_anomaly"].to_pylist())
    named = list(zip(*(table[f"column_{i}"].to_pylist() for i in (1, 2, 3)), strict=True))
    assert sum(f"c{i}" in named[i] for i in range(12)) >= 9  # a few drown in what they made of the others; by chance 3


def test_one_training_row_in_a_hundred_is_above_the_threshold(trained):
    model, source, x = trained
    above = threshold(model, source, quantile=0.99)
    assert above == pytest.approx(np.quantile(score_rows(model, x).score, 0.99))
    assert math.isnan(threshold(model, ff.ArraySource(np.full((3, 12), np.nan))))


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_rows_come_in_order_whatever_the_batch(trained, tmp_path, ending, monkeypatch):
    model, source, x = trained
    monkeypatch.setattr("fewfire.scoring.BATCH", 300)
    out = tmp_path / f"scores{ending}"
    assert write_scores(model, source, out, above=0.0) == (2000, 2000)
    table = pq.read_table(out) if ending == ".parquet" else pyarrow.csv.read_csv(out)
    assert table["row"].to_pylist() == list(range(2000))
    np.testing.assert_allclose(table["score"], score_rows(model, x).score, rtol=1e-12)
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_what_cannot_be_written_is_refused_before_any_work(trained, tmp_path):
    model, source, _ = trained
    with pytest.raises(ValueError, match=r"ends in \.csv, \.parquet; got 's\.txt'"):
        write_scores(model, source, tmp_path / "s.txt", above=1.0)
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_scores(model, source, tmp_path / "no" / "s.csv", above=1.0)
    with pytest.raises(ValueError, match="row 1"):
        write_scores(model, ff.ArraySource([[0.0] * 12, [math.nan] * 12]), tmp_path / "s.csv", above=1.0)
    assert list(tmp_path.iterdir()) == []


def test_every_value_of_a_row_has_a_name():
    assert column_names(ff.Layout("table", columns=("a", "b")), 2) == ["a", "b"]
    assert column_names(ff.Layout("table", columns=("a", "b")), 4) == ["a[0]", "a[1]", "b[0]", "b[1]"]
    assert column_names(ff.Layout(), 2) == ["x0", "x1"]
