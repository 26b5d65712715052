"""Columns by other names, or in another order, are never taken for the model's own."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

import fewfire as ff
from fewfire.outputs import write_codes, write_reconstructions
from fewfire.runs import load_config, open_run, train
from fewfire.scoring import write_scores

NAMES = ["alpha", "beta", "gamma"]


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(60, 3)) * [1, 100, 1e4] + [0, 5, -7]


@pytest.fixture(scope="module")
def model(x):
    model = ff.Autoencoder(3, 6, preprocess="standardize")
    ff.Trainer(model, pd.DataFrame(x, columns=NAMES), config=ff.TrainConfig(steps=20), progress=False).fit()
    return model


WRONG = {
    "reordered": (["gamma", "beta", "alpha"], "another order: column 0 was 'alpha' and is 'gamma'"),
    "renamed": (["alpha", "beta", "delta"], "missing: gamma; unknown: delta"),
}


@pytest.mark.parametrize("frame", [pd.DataFrame, lambda x, columns: pl.DataFrame(x, schema=columns)])
@pytest.mark.parametrize("case", WRONG)
def test_refused_everywhere(model, x, tmp_path, frame, case):
    names, says = WRONG[case]
    data = frame(x, columns=names)
    source = ff.open_source(data)
    for work in (
        lambda: model.encode(data),
        lambda: model.encode_sparse(data),
        lambda: model.reconstruct(data),
        lambda: ff.evaluate(model, data),
        lambda: write_codes(model, source, tmp_path / "z.npz"),
        lambda: write_reconstructions(model, source, tmp_path / "x.npy"),
        lambda: write_scores(model, source, tmp_path / "s.csv", above=1.0),
    ):
        with pytest.raises(ValueError, match=says):
            work()


def test_the_same_names_and_no_names_pass(model, x):
    same = model.encode(pd.DataFrame(x, columns=NAMES))
    assert (same == model.encode(x)).all()
    assert (same == model.encode(ff.ArraySource(x)._x)).all()


def test_a_file_is_read_by_the_names_of_the_model(x, tmp_path, monkeypatch):
    """Whatever else the file holds, in whatever order, under whatever format."""
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(x, columns=NAMES)
    frame.assign(id="text").to_csv("a.csv", index=False)
    config = load_config(None, ["data.options.drop=[id]", "train.steps=20"], path="a.csv")
    run = train(config, "run", progress=False)
    assert run.model.layout.columns == tuple(NAMES)
    expected = run.model.encode(x)
    shuffled = frame.assign(label=1, note="text")[["note", "gamma", "label", "alpha", "beta"]]
    shuffled.to_csv("b.csv", index=False)
    shuffled.to_parquet("b.parquet", index=False)
    for file in ("a.csv", "b.csv", "b.parquet"):
        batch = next(iter(open_run("run").source(file).batches(100, shuffle=False)))
        assert (run.model.encode(batch.x_in) == expected).all(), file
    frame[["alpha", "beta"]].to_csv("c.csv", index=False)
    with pytest.raises(ValueError, match="gamma"):
        open_run("run").source("c.csv")
