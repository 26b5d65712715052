"""SparseAutoencoder in use: with everything scikit-learn has around it, on every kind of input, kept and brought back.

scikit-learn's own checks are in test_estimator_checks.py.
"""

import copy
import inspect
import io
import json
import math
import pickle
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from matplotlib.figure import Figure
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, make_pipeline

import fewfire as ff
from fewfire import metrics
from fewfire.disk import load_tensors, save_tensors
from fewfire.estimators import AutoencoderEstimator, SparseAutoencoder, building
from fewfire.estimators.building import HIDDEN_ACTIVATION, KL_WEIGHT_DECAY
from fewfire.estimators.inputs import checked_rows
from fewfire.estimators.training import MAX_RECORDS, thinned
from fewfire.preprocess import make_preprocess


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def trained(digits):
    """On half of the digits: (estimator, the other half)."""
    return SparseAutoencoder(96, k=8, max_epochs=60, random_state=0).fit(digits.data[:900]), digits.data[900:]


def sae(**settings):
    """Small and quick."""
    return SparseAutoencoder(**{"n_components": 24, "k": 3, "max_epochs": 30, "random_state": 0, **settings})


@pytest.fixture(scope="module")
def rows():
    """(200, 12) float32: a few directions, sparsely mixed, with noise and an offset."""
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(20, 12))
    weights = generator.exponential(size=(200, 20)) * (generator.random((200, 20)) < 0.15)
    return (weights @ directions + 0.05 * generator.normal(size=(200, 12)) + 1.0).astype(np.float32)


SETTINGS = {
    "topk": {},
    "kl": {"activation": "sigmoid", "k": None},
    "l1": {"activation": "relu", "k": None},
    "deep": {"hidden": (16, 9)},
    "deep kl": {"hidden": (16,), "activation": "sigmoid", "k": None},
    "tied": {"tied": True},
    "bce": {"loss": "bce"},
    "float64": {"dtype": "float64"},
    "whiten": {"preprocess": "whiten"},
    "row mean": {"preprocess": ["row_mean", "standardize"]},
    "sparse": {"sparse_output": True},
    "lbfgs": {"optimizer": "lbfgs", "activation": "sigmoid", "k": None},
}


@pytest.fixture(scope="module", params=SETTINGS)
def every(request, rows):
    """Each setting, fitted."""
    return sae(max_epochs=100, **SETTINGS[request.param]).fit(rows)


def dense(codes):
    return codes.toarray() if sparse.issparse(codes) else codes


# ---------------------------------------------------------------------------------------------- there and back


def test_it_is_the_model_inside(every, rows):
    codes, module = every.transform(rows), every.module_
    assert isinstance(module, ff.Autoencoder)
    assert np.array_equal(dense(codes), module.encode(rows).numpy())
    assert np.array_equal(every.inverse_transform(codes), module.decode(module.encode(rows)).numpy())
    assert np.array_equal(every.reconstruct(rows), module.reconstruct(rows).numpy())
    assert every.score(rows) == ff.evaluate(module, rows)["explained_variance"]


def test_score_is_explained_variance(every, rows):
    recon = torch.from_numpy(every.reconstruct(rows))
    assert every.score(rows) == pytest.approx(metrics.explained_variance(torch.from_numpy(rows), recon), abs=1e-6)
    assert every.score(rows, np.zeros(len(rows))) == every.score(rows)


def test_it_learned(every, rows):
    """A mean predictor scores 0."""
    assert every.score(rows) > 0.3


def test_fitted_attributes(every, rows):
    assert every.n_features_in_ == 12
    assert not hasattr(every, "feature_names_in_")
    assert every.n_iter_ == 100
    assert every.components_.shape == (24, 12)
    assert all(record["loss"] > 0 for record in every.history_)
    assert [*every.get_feature_names_out()][:2] == ["sparseautoencoder0", "sparseautoencoder1"]
    assert len(every.get_feature_names_out()) == 24
    losses = [record["loss"] for record in every.history_]
    assert losses[-1] < losses[0]
    assert np.isfinite(losses).all()


def test_fit_transform_is_fit_then_transform(rows):
    assert np.array_equal(sae().fit_transform(rows), sae().fit(rows).transform(rows))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_alone_has_the_bits_it_has_in_a_batch(every, rows, dtype):
    x = rows.astype(dtype)
    codes, recon = dense(every.transform(x)), every.reconstruct(x)
    for i in (0, 1, 63, 64, 199):
        assert np.array_equal(dense(every.transform(x[i : i + 1]))[0], codes[i])
        if every.preprocess != "whiten":  # its inverse multiplies all rows at once
            assert np.array_equal(every.reconstruct(x[i : i + 1])[0], recon[i])


def test_components_are_what_a_latent_adds(every, rows):
    """In the units of the data; with a linear decoder, all of them add up to the reconstruction."""
    silent = np.zeros((1, 24))
    one = silent.copy()
    one[0, 5] = 1.0
    added = every.inverse_transform(one) - every.inverse_transform(silent)
    assert np.allclose(every.components_[5], added[0], atol=1e-8)
    codes = dense(every.transform(rows.astype(np.float64)))
    together = codes @ every.components_ + every.inverse_transform(silent)
    is_linear = every.hidden is None and every.loss == "mse"
    assert np.allclose(together, every.inverse_transform(codes), atol=1e-8) == is_linear


def test_what_is_taken_from_each_row_comes_back_in_reconstruct_alone(rows):
    shifted = rows + 100 * np.arange(len(rows), dtype=np.float32)[:, None]
    model = sae(preprocess=["row_mean", "standardize"]).fit(shifted)
    assert np.abs(model.reconstruct(shifted) - shifted).mean() < 5
    assert np.abs(model.inverse_transform(model.transform(shifted)) - shifted).mean() > 1000


def test_sparse_codes_are_the_dense_ones(trained):
    model, x = trained
    codes = clone(model).set_params(sparse_output=True).fit(x).transform(x)
    assert isinstance(codes, sparse.csr_array)
    assert codes.shape == (len(x), 96)
    assert codes.nnz <= 8 * len(x)
    same = clone(model).fit(x)
    assert np.array_equal(codes.toarray(), same.transform(x))
    assert np.array_equal(same.inverse_transform(codes), same.inverse_transform(codes.toarray()))
    assert np.array_equal(same.inverse_transform(codes), same.reconstruct(x))


def test_only_a_block_of_sparse_codes_is_ever_dense(rows, monkeypatch):
    monkeypatch.setattr("fewfire.estimators.family.VALUES_AT_ONCE", 64 * 24)
    blocks, encode = [], ff.Autoencoder.encode
    monkeypatch.setattr(ff.Autoencoder, "encode", lambda self, x: blocks.append(len(x)) or encode(self, x))
    model = sae(sparse_output=True).fit(rows)
    blocks.clear()
    codes = model.transform(rows)
    assert blocks == [64, 64, 64, 8]
    monkeypatch.undo()
    assert np.array_equal(codes.toarray(), model.transform(rows).toarray())


# ---------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("f4", "f4"), ("f8", "f8"), ("f2", "f4"), ("i8", "f8"), ("i4", "f8"), ("u1", "f8"), ("?", "f8"), (">f8", "f8")],
)
def test_the_precision_of_rows_is_that_of_codes(rows, given, wanted):
    model, x = sae().fit(rows), np.abs(rows).astype(given)
    for result in (model.transform(x), model.reconstruct(x), model.inverse_transform(model.transform(x))):
        assert result.dtype == np.dtype(wanted)
    exact = model.module_.encode(torch.from_numpy(x.astype(wanted)))
    assert np.array_equal(model.transform(x), exact.numpy()), "computed in that precision, not rounded to it"


def test_rows_in_another_precision_cost_one_copy_of_the_model(rows, monkeypatch):
    """And not one for each block of them."""
    monkeypatch.setattr("fewfire.estimators.family.VALUES_AT_ONCE", 64 * 24)
    model, in_dtype = sae().fit(rows), ff.Autoencoder._in_dtype
    blocks = []
    monkeypatch.setattr(
        ff.Autoencoder, "_in_dtype", lambda self, dtype: blocks.append(self.dtype == dtype) or in_dtype(self, dtype)
    )
    x = rows.astype(np.float64)
    for verb in (model.transform, model.reconstruct, model.score):
        verb(x)
    assert len(blocks) > 12
    assert all(blocks)


def test_whole_numbers_beyond_float32_keep_their_digits():
    """Seconds since 1970: in float32 they come in steps of 128."""
    x = 1_700_000_000 + np.arange(400).reshape(200, 2)
    model = sae(n_components=8, k=2, max_epochs=300).fit(x)
    assert model.score(x) > 0.9
    assert np.array_equal(model.transform(x), model.transform(x.astype(float)))


def test_narrow_numbers_are_not_copied(rows):
    """A megapixel of bytes must not become eight."""
    for x in (np.abs(rows).astype(np.uint8), rows, rows.astype(np.float64), rows.astype(np.float16)):
        assert np.shares_memory(checked_rows(sae(), x, reset=True), x)


# ---------------------------------------------------------------------------------------------- kinds of input

KINDS = {
    "list": lambda x: x.tolist(),
    "fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, 0)[::2],
    "backwards": lambda x: x[::-1].copy()[::-1],
    "objects": lambda x: x.astype(object),
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "torch": torch.from_numpy,
    "torch with gradient": lambda x: torch.from_numpy(x).requires_grad_(),
    "csr": sparse.csr_array,
    "csc matrix": sparse.csc_matrix,
    "coo": sparse.coo_array,
    "source": lambda x: ff.ArraySource(x),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_input(kind, rows):
    x = rows.astype(np.float64)
    given = KINDS[kind](x)
    expected = sae().fit(x)
    model = sae().fit(given)
    assert np.allclose(model.transform(given), expected.transform(x), atol=1e-4)
    assert np.allclose(model.reconstruct(given), expected.reconstruct(x), atol=1e-4)
    assert model.score(given) == pytest.approx(expected.score(x), abs=1e-4)
    assert isinstance(model.transform(given), np.ndarray)


def test_sparse_input_with_many_zeros():
    x = sparse.random_array((300, 40), density=0.1, random_state=np.random.default_rng(0), format="csr")
    model = sae().fit(x)
    assert np.array_equal(model.transform(x), model.transform(x.toarray()))
    assert model.reconstruct(x).shape == (300, 40)
    x.data[7] = np.nan
    row, column = x.nonzero()[0][7], x.nonzero()[1][7]
    with pytest.raises(ValueError, match=rf"X holds NaN, first in row {row}, column {column}"):
        model.transform(x)


def test_a_file(rows, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    path = tmp_path / "rows.npy"
    model = sae().fit(path)
    assert np.array_equal(model.transform(str(path)), sae().fit(rows).transform(rows))
    assert np.array_equal(model.reconstruct(path), model.reconstruct(rows))
    assert model.score(path) == model.score(rows)
    assert sparse.issparse(sae(sparse_output=True).fit(path).transform(path))
    assert np.array_equal(model.fit_transform(path), model.transform(rows))
    assert np.array_equal(model.set_output(transform="pandas").transform(path).to_numpy(), model.transform(rows))


def test_a_file_with_named_columns(rows, tmp_path):
    frame = pd.DataFrame(rows, columns=[f"c{i}" for i in range(12)])
    frame.to_csv(tmp_path / "rows.csv", index=False)
    model = sae().fit(tmp_path / "rows.csv")
    assert [*model.feature_names_in_] == [*frame.columns]
    codes = model.transform(frame)
    assert codes.shape == (200, 24)
    with pytest.raises(ValueError, match="feature names should match"):
        model.transform(frame[frame.columns[::-1]])
    frame[frame.columns[::-1]].to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(ValueError, match="another order: column 0 was 'c0' and is 'c11'"):
        model.transform(tmp_path / "other.csv")


def test_what_a_source_may_not_be(rows):
    model = sae().fit(rows)
    with pytest.raises(ValueError, match="X has 5 features, but SparseAutoencoder is expecting 12 features as input"):
        model.transform(ff.ArraySource(rows[:, :5]))
    with pytest.raises(ValueError, match="targets of \\(3,\\); an estimator reconstructs its own input"):
        sae().fit(ff.ArraySource(rows, rows[:, :3]))
    with pytest.raises(FileNotFoundError):
        sae().fit("nowhere.npy")
    endless = ff.ArraySource(rows)
    endless.n_rows = None
    with pytest.raises(ValueError, match="X has no last row"):
        sae().fit(endless)
    holed = rows.copy()
    holed[150, 3] = np.inf
    for verb in (sae().fit, model.transform, model.reconstruct):
        with pytest.raises(ValueError, match="X holds infinity, first in row 150, column 3"):
            verb(ff.ArraySource(holed))


def test_pictures_as_a_source_and_as_flat_rows(digits):
    pictures = digits.images[:300]
    model = sae().fit(ff.ArraySource(pictures))
    assert model.module_.layout.shape == (8, 8)
    assert np.array_equal(model.transform(digits.data[:300]), model.transform(ff.ArraySource(pictures)))
    assert model.inverse_transform(model.transform(digits.data[:9])).shape == (9, 64)
    assert model.components_.shape == (24, 64)


REFUSED = {
    "masked": (lambda x: np.ma.masked_greater(x, 1), TypeError, "masked array; masked values would be ignored"),
    "dates": (lambda x: x.astype("M8[s]"), TypeError, "datetime64"),
    "dates in pandas": (
        lambda x: pd.DataFrame(x).assign(when=pd.Timestamp("2026-01-01")), TypeError, "'when'.*datetime64"),
    "dates in polars": (
        lambda x: pl.DataFrame(x).with_columns(when=pl.date(2026, 1, 1)), TypeError, "'when'.*datetime64"),
    "text in pandas": (lambda x: pd.DataFrame(x).assign(word="a"), TypeError, "'word'.*'a'"),
    "complex": (lambda x: x + 1j, ValueError, "Complex data not supported"),
    "NaN": (lambda x: np.where(x == x[3, 2], np.nan, x), ValueError,
            "X holds NaN, first in row 3, column 2, 1 of 2,400 values;"),
    "NaN in pandas": (lambda x: pd.DataFrame(x).add_prefix("f").where(lambda d: d != x[3, 2]), ValueError,
                      r"first in row 3, column 2 \('f2'\)"),
    "infinity": (lambda x: np.where(x == x[3, 2], -np.inf, x), ValueError, "X holds infinity, first in row 3"),
    "one row": (lambda x: x[:1], ValueError, r"1 sample\(s\).*minimum of 2"),
    "no row": (lambda x: x[:0], ValueError, r"0 sample\(s\)"),
    "no column": (lambda x: x[:, :0], ValueError, r"0 feature\(s\)"),
    "one dimension": (lambda x: x[0], ValueError, "Expected 2D array"),
    "three dimensions": (lambda x: x.reshape(200, 3, 4), ValueError, "dim 3"),
    "sparse tensor": (lambda x: torch.from_numpy(x).to_sparse(), TypeError, "sparse"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:X has feature names")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind, rows):
    make, error, words = REFUSED[kind]
    x = make(rows.copy())
    fitted = sae().fit(rows)
    verbs = [sae().fit, sae().partial_fit]
    verbs += [] if kind == "one row" else [fitted.transform, fitted.reconstruct, fitted.score]
    for verb in verbs:
        with pytest.raises(error, match=words):
            verb(x)
    assert not hasattr(sae(), "module_")


def test_codes_that_are_refused(rows):
    model = sae().fit(rows)
    with pytest.raises(ValueError, match="Z has 12 columns, but SparseAutoencoder has 24 components"):
        model.inverse_transform(rows)
    with pytest.raises(ValueError, match="Z holds NaN"):
        model.inverse_transform(np.full((3, 24), np.nan))


def test_columns_by_name_and_in_order(rows):
    frame = pd.DataFrame(rows).add_prefix("c")
    model = sae().fit(frame)
    assert [*model.feature_names_in_] == [*frame.columns]
    assert model.module_.layout.columns == tuple(frame.columns)
    for other in (frame[frame.columns[::-1]], pl.from_pandas(frame[frame.columns[::-1]])):
        with pytest.raises(ValueError, match="feature names should match those that were passed during fit"):
            model.transform(other)
    with pytest.raises(ValueError, match="X has 5 features, but SparseAutoencoder is expecting 12"):
        sae().fit(rows).transform(rows[:, :5])
    again = model.fit(rows)
    assert not hasattr(again, "feature_names_in_")


def test_the_callers_rows_are_left_alone(rows):
    x = rows.copy()
    x.flags.writeable = False
    model = sae().fit(x)
    model.transform(x)
    model.partial_fit(x)
    assert np.array_equal(x, rows)
    mine = rows.copy()
    sae(preprocess=None).fit(mine).transform(mine)
    assert np.array_equal(mine, rows)


# ---------------------------------------------------------------------------------------------- difficult data


def test_columns_of_wildly_different_scale():
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(500, 3))
    scale = np.logspace(-6, 9, 12)
    x = (hidden @ generator.normal(size=(3, 12)) + 0.1 * generator.normal(size=(500, 12)) + 5) * scale
    model = SparseAutoencoder(random_state=0).fit(x)
    recon = model.reconstruct(x)
    for column in range(12):
        assert metrics.explained_variance(*map(torch.from_numpy, (x[:, column], recon[:, column]))) > 0.8
    assert model.score(x) > 0.9


def test_constant_columns(rows):
    x = np.column_stack([rows, np.full(200, 7.0), np.zeros(200), np.full(200, 1e9)])
    model = sae().fit(x)
    assert np.isfinite(model.transform(x)).all()
    for settings in ({}, {"hidden": (9,)}, {"tied": True}, {"activation": "sigmoid", "k": None}):
        recon = sae(**settings).fit(x).reconstruct(x)
        assert np.allclose(recon[:, 12:], x[:, 12:], rtol=1e-6), "exactly what they always are"
    flat = sae().fit(np.ones((50, 3)))
    assert np.isfinite(flat.transform(np.ones((5, 3)))).all()
    assert flat.score(np.ones((50, 3))) == 1


@pytest.mark.parametrize("shape", [(2, 3), (20, 3), (20, 50), (300, 1)])
def test_few_rows_and_few_columns(shape):
    """Fewer rows than a batch, more latents than rows; the defaults, and without a warning."""
    x = np.random.default_rng(0).normal(size=shape)
    for settings in ({}, {"activation": "sigmoid"}, {"activation": "relu"}, {"hidden": (8,)}):
        model = SparseAutoencoder(random_state=0, **settings).fit(x)
        assert np.isfinite(model.transform(x)).all()
        assert model.score(x) > 0.3, settings


def test_values_beyond_float32():
    x = np.random.default_rng(0).normal(size=(100, 4)) * 1e200
    with pytest.raises(ValueError, match="scale the data down first"):
        sae().fit(x)


@pytest.mark.slow
def test_the_defaults_are_good(digits):
    """What a person gets without turning a knob; benchmarks/estimator.py has other data."""
    x = digits.data
    for settings, at_least in (
        ({}, 0.94),
        ({"activation": "sigmoid"}, 0.95),
        ({"activation": "relu"}, 0.88),
        ({"hidden": (128,)}, 0.95),
        ({"loss": "bce"}, 0.91),
    ):
        model = SparseAutoencoder(random_state=0, **settings).fit(x)
        summary = ff.evaluate(model.module_, x)
        assert summary["explained_variance"] > at_least, settings
        assert summary["dead_fraction"] < 0.2, settings


def test_kl_comes_near_its_target(digits):
    """A bias moves by the learning rate a step: from one half, so few steps would not get there."""
    for rho in (0.05, 0.2):
        model = sae(activation="sigmoid", k=None, n_components=64, rho=rho, max_epochs=40).fit(digits.data)
        assert 0.8 * rho < model.transform(digits.data).mean() < 2 * rho


def test_all_positive_rows_leave_latents_alive(digits):
    """Without a start from their mean, the same few latents win on every row: 60 % of these would be dead."""
    model = sae(preprocess="minmax", n_components=128, k=8, max_epochs=60).fit(digits.data)
    assert ff.evaluate(model.module_, digits.data)["dead_fraction"] < 0.25


def test_a_penalty_that_does_nothing_is_a_warning(digits):
    few = {"n_components": 8, "k": None, "penalty_weight": 0, "max_epochs": 60}
    with pytest.warns(ff.SparsityWarning, match="L1 penalty did nothing"):
        sae(activation="relu", **few).fit(digits.data)
    with pytest.warns(ff.SparsityWarning, match="KL penalty did not reach its target.*rho 0.001"):
        sae(activation="sigmoid", rho=0.001, **few).fit(digits.data)


def test_latents_that_never_fire_are_a_warning_where_the_rows_are_enough_to_tell():
    """One line through space takes two latents, whichever way one looks along it."""
    line = np.outer(np.random.default_rng(0).normal(size=2000), np.arange(1, 13))
    settings = {"n_components": 64, "k": 2, "penalty": None}
    with pytest.warns(ff.SparsityWarning, match="of the latents never fire"):
        sae(**settings).fit(line)
    few = sae(**settings).fit(line[:50])
    assert ff.evaluate(few.module_, line[:50])["dead_fraction"] > 0.5, "without a warning"


# ---------------------------------------------------------------------------------------------- parameters


def terms_of(**settings):
    """What training would lower."""
    estimator = SparseAutoencoder(n_components=8, **settings)
    x = np.random.default_rng(0).random((20, 4))
    model = estimator._make_model(estimator._source(x, reset=True), 0)
    return [term.config() for term in estimator._make_terms(model)], model


def named(terms):
    return {term["name"]: term for term in terms}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["mse", "auxk"]),
        ({"penalty": None}, ["mse"]),
        ({"penalty": "l1"}, ["mse", "l1", "auxk"]),
        ({"activation": "sigmoid"}, ["mse", "kl", "weight_decay"]),
        ({"activation": "sigmoid", "penalty": "kl"}, ["mse", "kl", "weight_decay"]),
        ({"activation": "sigmoid", "weight_decay": 0}, ["mse", "kl"]),
        ({"activation": "sigmoid", "penalty": None}, ["mse"]),
        ({"activation": "sigmoid", "penalty": "l1"}, ["mse", "l1"]),
        ({"activation": "relu"}, ["mse", "l1"]),
        ({"activation": "relu", "weight_decay": 0.1}, ["mse", "l1", "weight_decay"]),
        ({"hidden": (5,)}, ["mse"]),
        ({"loss": "bce"}, ["bce"]),
        ({"loss": "bce", "activation": "sigmoid"}, ["bce", "kl", "weight_decay"]),
    ],
    ids=str,
)
def test_the_objective(settings, expected):
    assert [term["name"] for term in terms_of(**settings)[0]] == expected


def test_weights_of_the_objective():
    kl = named(terms_of(activation="sigmoid")[0])
    assert (kl["kl"]["weight"], kl["kl"]["rho"]) == (3.0, 0.05)
    assert kl["weight_decay"]["weight"] == KL_WEIGHT_DECAY
    set_ = named(terms_of(activation="sigmoid", penalty_weight=7, rho=0.2, weight_decay=0.5)[0])
    assert (set_["kl"]["weight"], set_["kl"]["rho"], set_["weight_decay"]["weight"]) == (7.0, 0.2, 0.5)
    assert named(terms_of(activation="relu", penalty_weight=0.25)[0])["l1"]["weight"] == 0.25
    weaker = named(terms_of(activation="sigmoid", loss="bce")[0])
    assert weaker["kl"]["weight"] == pytest.approx(0.3)
    assert weaker["weight_decay"]["weight"] == pytest.approx(KL_WEIGHT_DECAY / 10)


def test_l1_cannot_be_cheated_by_a_growing_decoder():
    for settings in ({}, {"loss": "bce"}, {"hidden": (5,)}, {"activation": "sigmoid", "penalty": "l1"}):
        assert terms_of(**{"activation": "relu", **settings})[1].decoder.constrained
    for settings in ({"tied": True}, {"optimizer": "lbfgs"}):
        terms, model = terms_of(activation="relu", **settings)
        assert not model.decoder.constrained
        assert named(terms)["l1"]["by_decoder_norm"]


def test_the_model_that_parameters_make():
    _, model = terms_of()
    assert (model.activation.name, model.activation.k, model.network.name) == ("topk", 1, "linear")
    assert model.preprocess.name == "standardize"
    _, model = terms_of(hidden=(5, 3), tied=True, k=2)
    assert (model.network.name, model.network.hidden, model.network.tied) == ("mlp", (5, 3), True)
    assert model.network.hidden_activation == HIDDEN_ACTIVATION
    assert terms_of(loss="bce")[1].preprocess.name == "minmax"
    assert terms_of(loss="bce", preprocess=None)[1].preprocess is None
    assert terms_of(activation={"name": "topk", "k": 4})[1].activation.k == 4
    assert terms_of(activation=ff.TopK(5))[1].activation.k == 5
    assert terms_of(hidden=())[1].network.name == "linear"


@pytest.mark.parametrize(("columns", "expected"), [(5, 20), (5000, 838)])
def test_how_many_components_by_default(columns, expected):
    assert building.n_latents(SparseAutoencoder(), (columns,)) == expected
    assert building.n_latents(SparseAutoencoder(7), (columns,)) == 7


CANNOT_APPLY = [
    ({"k": 3, "activation": "sigmoid"}, "k=3 is how many latents fire per row, .*='sigmoid' does not fix"),
    ({"k": 3, "activation": {"name": "topk", "k": 2}}, "disagree; give k once"),
    ({"k": 100}, "k is at most the number of latents: expected at most 24, got 100"),
    ({"rho": 0.1}, "rho=0.1 is what the KL penalty aims at.*leave it out, or use activation='sigmoid'"),
    ({"rho": 0.1, "activation": "sigmoid", "penalty": "l1"}, "rho=0.1 .*penalty='l1' has none"),
    ({"penalty": "kl"}, "penalty='kl' asks for units between 0 and 1, activation='topk' has none"),
    ({"penalty_weight": 2}, "penalty_weight=2 has nothing to weigh.*leave it out, or set penalty='l1'"),
    ({"penalty_weight": 2, "penalty": None}, "penalty_weight=2 has nothing to weigh"),
    ({"target_l0": 8}, "target_l0=8 steers a penalty, and activation='topk' fires k .* without one; use k=8 instead"),
    ({"target_l0": 8.4, "activation": "batchtopk"}, "activation='batchtopk' fires k .*; use k=8 instead"),
    ({"target_l0": 8, "activation": "relu", "penalty": None}, "target_l0 steers one penalty, .* got none in mse"),
    ({"target_l0": 8, "activation": "sigmoid", "rho": 0.1}, "target_l0=8 and rho=0.1 both say .*; leave one out"),
    ({"target_l0": 8, "activation": "plain", "penalty": "l1"}, "moves thresholds, and activation 'plain' has none"),
    ({"target_l0": 24, "activation": "relu"}, "target_l0 below 24 latents, got 24"),
    ({"activation": "matching_pursuit", "loss": "bce"}, "needs residual: .* output identity, got sigmoid"),
    ({"activation": "nope"}, "unknown activation 'nope'; choose from"),
    ({"preprocess": "nope"}, "unknown preprocess 'nope'; choose from"),
    ({"preprocess": "whiten", "loss": "bce"}, "loss='bce' takes values from 0 to 1.*use preprocess='minmax'"),
    ({"batch_size": 10, "optimizer": "lbfgs"}, "lbfgs needs the whole data as one batch"),
    ({"hidden": (3, 0)}, "expected hidden to be the widths"),
    ({"device": "cuda:99"}, "cuda"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "words"), CANNOT_APPLY, ids=str)
def test_what_was_set_and_cannot_apply_is_refused_at_fit(settings, words, rows):
    estimator = SparseAutoencoder(max_epochs=2, **settings)
    for verb in (estimator.fit, estimator.partial_fit):
        if verb == estimator.partial_fit and settings.get("optimizer") == "lbfgs":
            continue
        with pytest.raises(ValueError, match=words) as refusal:
            verb(rows[:, :6])
        assert len(str(refusal.value)) < 400
        assert "\n" not in str(refusal.value)
    assert vars(estimator).keys() == estimator.get_params().keys(), "a failed fit leaves nothing behind"


def test_a_failed_fit_leaves_the_estimator_as_it_was(rows):
    model = sae().fit(rows)
    before = model.transform(rows)
    with pytest.raises(ValueError, match="target_l0"):
        model.set_params(target_l0=3).fit(rows[:, :5])
    assert model.n_features_in_ == 12
    assert np.array_equal(model.transform(rows), before)


def test_not_fitted(rows):
    for verb in ("transform", "inverse_transform", "reconstruct", "score"):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            getattr(sae(), verb)(rows)
    with pytest.raises(NotFittedError):
        sae().save("nowhere")
    assert not hasattr(sae(), "components_")
    assert not Path("nowhere").exists()


def test_held_out_rows_end_training_with_the_best_weights(digits):
    few = digits.data[:80]
    model = sae(n_components=256, k=64, max_epochs=3000, learning_rate=0.01, validation_fraction=0.25).fit(few)
    losses = [record["val_loss"] for record in model.history_ if "val_loss" in record]
    assert model.n_iter_ < 3000
    assert losses[-1] > min(losses)
    assert len(losses) - 1 - int(np.argmin(losses)) == 10, "ten misses in a row"


def test_dtype_and_device_reach_the_model(rows):
    model = sae(dtype="float64", device="cpu").fit(rows)
    assert model.module_.dtype == torch.float64
    assert model.transform(rows).dtype == np.float32, "the rows' own"


def test_max_epochs_and_batch_size(rows):
    model = sae(max_epochs=7, batch_size=64).fit(rows)
    assert model.n_iter_ == 7
    assert model.history_[-1]["step"] == 7 * 4
    assert SparseAutoencoder(random_state=0).fit(rows).history_[-1]["step"] == 300, "few rows, few steps"


def test_verbose(rows, capsys):
    sae().fit(rows)
    assert capsys.readouterr() == ("", "")
    sae(verbose=True).fit(rows)
    out, err = capsys.readouterr()
    assert out == ""
    assert "variance explained" in err


# ---------------------------------------------------------------------------------------------- randomness


def bits(model, x):
    return dense(model.transform(x)).tobytes()


def test_the_same_seed_gives_the_same_bits(rows):
    a, b, c = (bits(sae(random_state=seed, batch_size=64).fit(rows), rows) for seed in (3, np.int64(3), 4))
    assert a == b != c


def test_the_seed_is_that_of_the_command_line(rows):
    """A thin face: the same model, terms and Trainer by hand give the same weights."""
    model = sae(random_state=5, preprocess=None, max_epochs=4).fit(rows - rows.mean(0))
    config = ff.TrainConfig(seed=5, epochs=4, learning_rate=4e-3)
    by_hand = ff.Autoencoder(12, 24, ff.TopK(3), seed=5)
    trainer = ff.Trainer(by_hand, rows - rows.mean(0), config=config, progress=False)
    trainer.started = True  # an estimator starts from the mean, which is 0; a Trainer from the geometric median
    trainer.fit()
    assert torch.allclose(by_hand.encoder.W_enc, model.module_.encoder.W_enc, atol=1e-4)


def test_a_random_state_moves_on(rows):
    state = np.random.RandomState(0)
    model = sae(random_state=state, batch_size=64)
    first, second = bits(model.fit(rows), rows), bits(model.fit(rows), rows)
    assert first != second
    state.seed(0)
    assert bits(model.fit(rows), rows) == first


def test_no_random_state_is_another_one_each_time_and_not_the_global_one(rows):
    """conftest's fixture sees to the second half."""
    assert bits(sae(random_state=None).fit(rows), rows) != bits(sae(random_state=None).fit(rows), rows)


# ---------------------------------------------------------------------------------------------- streams


def parts(rows):
    return [rows[i : i + 40] for i in range(0, 200, 40)]


def test_a_stream(rows):
    model = sae(batch_size=16)
    scores = []
    for _ in range(30):
        for part in parts(rows):
            assert model.partial_fit(part) is model
        scores.append(model.score(rows))
    assert scores[0] < scores[5] < scores[-1]
    assert scores[-1] > 0.6
    assert model.n_iter_ == 150
    assert model.history_[-1]["step"] == 150 * 3
    assert model.history_[-1]["samples"] == 150 * 40
    model.partial_fit(rows)  # 13 steps, of which a schedule would spend the last on coming down
    assert {record["lr"] for record in model.history_} == {4e-3}, "constant"


def test_the_optimiser_and_the_counters_go_on(rows):
    """From call to call: Adam's averages and count, and the rows since each latent fired."""
    model = sae(batch_size=16)
    for n, part in enumerate(parts(rows), 1):
        model.partial_fit(part)
        assert model._stream.calls == n
        assert model._stream.samples == 40 * n
        assert float(model._stream.engine["step.encoder.W_enc"]) == 3 * n
    with torch.no_grad():
        model.module_.encoder.b_enc[7] = -1e6
    silent = int(model._stream.since_fired[7])
    for n in (1, 2):
        model.partial_fit(rows[:40])
        assert model._stream.since_fired[7] == silent + 40 * n


@pytest.mark.parametrize("through", ["pickle", "deepcopy", "joblib"])
def test_a_stream_interrupted_goes_on_with_the_same_bits(through, rows):
    def kept(model):
        if through == "deepcopy":
            return copy.deepcopy(model)
        if through == "pickle":
            return pickle.loads(pickle.dumps(model))
        memory = io.BytesIO()
        joblib.dump(model, memory)
        memory.seek(0)
        return joblib.load(memory)

    straight, interrupted = sae(batch_size=16), sae(batch_size=16)
    for part in parts(rows):
        straight.partial_fit(part)
        interrupted = kept(interrupted.partial_fit(part))
    assert bits(interrupted, rows) == bits(straight, rows)
    assert all(
        torch.equal(p, q) for p, q in zip(straight.module_.parameters(), interrupted.module_.parameters(), strict=True)
    )


def test_the_order_of_rows_changes_from_call_to_call(rows):
    seeds = []
    model = sae(batch_size=16)
    for _ in range(3):
        model.partial_fit(rows)
        seeds.append(model._stream.next_seed())
    assert len(set(seeds)) == 3


def test_the_first_call_decides(rows):
    model = sae().partial_fit(rows[:100])
    mean = model.module_.preprocess.mean.clone()
    assert np.allclose(mean, rows[:100].mean(0), atol=1e-5)
    model.partial_fit(rows[100:] + 50)
    assert torch.equal(model.module_.preprocess.mean, mean)
    with pytest.raises(ValueError, match="X has 5 features, but SparseAutoencoder is expecting 12"):
        model.partial_fit(rows[:, :5])
    assert model.n_iter_ == 2
    model.partial_fit(rows[:1])
    assert model.n_iter_ == 3


TARGETS = {"relu": 3, "gated": 3, "jumprelu": 3, "sigmoid": 4}


def fires(model, rows):
    codes = model.transform(rows)
    return codes.sum(1).mean() if model.activation == "sigmoid" else (codes != 0).sum(1).mean()


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
@pytest.mark.parametrize(("activation", "target"), TARGETS.items())
def test_as_many_fire_as_were_asked_for(activation, target, rows):
    model = sae(k=None, activation=activation, target_l0=target, max_epochs=300, batch_size=50).fit(rows)
    assert fires(model, rows) == pytest.approx(target, rel=0.1)
    assert model.score(rows) > 0.3
    in_bfloat16 = clone(model).set_params(dtype="bfloat16").fit(rows)
    assert fires(in_bfloat16, rows) == pytest.approx(target, rel=0.1)
    assert in_bfloat16.module_.dtype == torch.float32
    assert in_bfloat16.score(rows) == pytest.approx(model.score(rows), abs=0.02)


@pytest.mark.parametrize(("activation", "target"), TARGETS.items())
def test_a_stream_is_steered_from_call_to_call(activation, target, rows):
    """Thresholds are started at the first call alone; the penalty goes on from where it was."""
    model = sae(k=None, activation=activation, target_l0=target, batch_size=40)
    values, calls = [], 0
    for _ in range(120):
        for part in parts(rows):
            model.partial_fit(part)
            values.append(model._stream.steering["value"])
            calls += 1
    steps = np.diff(np.log(values))
    assert np.abs(steps).max() < 0.02, "no call jumps"
    assert len(set(values)) > 500
    assert fires(model, rows) == pytest.approx(target, rel=0.3)


@pytest.mark.parametrize("activation", ["jumprelu", "gated", "sigmoid"])
def test_a_steered_stream_interrupted_goes_on_with_the_same_bits(activation, rows):
    settings = {"k": None, "activation": activation, "target_l0": 3, "batch_size": 16}
    straight, interrupted = sae(**settings), sae(**settings)
    for part in parts(rows):
        straight.partial_fit(part)
        interrupted = pickle.loads(pickle.dumps(interrupted.partial_fit(part)))
    assert bits(interrupted, rows) == bits(straight, rows)
    assert interrupted._stream.steering == straight._stream.steering
    before = {n: t.clone() for n, t in straight.module_.state_dict().items()}
    straight.set_params(learning_rate=1e-9).partial_fit(rows[:1])
    moved = {n: float((t - before[n]).abs().max()) for n, t in straight.module_.state_dict().items()}
    assert max(moved.values()) < 0.1, "one row does not set the thresholds anew"


@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu", "gated", "matching_pursuit"])
def test_todays_mechanisms(activation, rows, tmp_path):
    """Through every verb, kept and brought back; a fractional mean is not a scikit-learn parameter."""
    k = {} if activation in ("jumprelu", "gated") else {"k": 3}
    model = sae(**{"k": None, **k}, activation=activation, max_epochs=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.SparsityWarning)
        model.fit(rows)
    assert model.score(rows) > 0.5
    codes = model.transform(rows)
    if k:
        assert (codes != 0).sum(1).mean() == pytest.approx(3, rel=0.2)
    assert np.array_equal(model.transform(rows[7:8])[0], codes[7])
    assert model.module_.network.tied == (activation == "matching_pursuit")
    assert np.allclose(np.linalg.norm(model.module_.decoder.W_dec.detach(), axis=1), 1, atol=1e-5)
    model.save(tmp_path / "model")
    again = SparseAutoencoder.load(tmp_path / "model")
    assert np.array_equal(again.transform(rows), codes)
    before = model.module_.state_dict()
    model.partial_fit(rows)
    assert before.keys() == model.module_.state_dict().keys()


def test_the_weight_of_the_penalty_is_not_that_of_what_helps_it():
    """GatedAux teaches the gates, whatever L1 costs."""
    model = ff.Autoencoder(12, 24, "gated")
    terms = building.make_terms(sae(k=None, activation="gated", penalty_weight=0.25), model)
    assert {term.name: term.weight for term in terms} == {"mse": 1, "l1": 0.25, "gated_aux": 1, "auxk": 1 / 32}
    terms = building.make_terms(sae(k=None, activation="gated", penalty="l1", loss="bce"), ff.Autoencoder(
        12, 24, "gated", network={"name": "linear", "output": "sigmoid"}))  # fmt: skip
    assert {term.name: term.weight for term in terms} == {"bce": 1, "l1": 0.1, "gated_aux": 1}
    model = ff.Autoencoder(12, 24, "jumprelu", network={"name": "linear", "output": "sigmoid"})
    terms = building.make_terms(sae(k=None, activation="jumprelu", loss="bce"), model)
    assert {term.name: term.weight for term in terms} == {"bce": 1, "l0_penalty": 0.1}


def test_fit_starts_afresh(rows):
    model = sae().partial_fit(rows[:50])
    assert bits(model.fit(rows), rows) == bits(sae().fit(rows), rows)
    assert model._stream is None
    assert model.n_iter_ == 30


def test_a_fitted_model_is_trained_further(rows):
    model = sae(max_epochs=2).fit(rows)
    before = model.score(rows)
    for _ in range(20):
        model.partial_fit(rows)
    assert model.score(rows) > before + 0.05
    assert model.n_iter_ == 22


def test_what_cannot_be_streamed(rows):
    with pytest.raises(ValueError, match="partial_fit takes steps of a few rows, lbfgs needs all of them"):
        sae(optimizer="lbfgs").partial_fit(rows)
    with pytest.raises(ValueError, match="expected validation_fraction=0, got 0.1"):
        sae(validation_fraction=0.1).partial_fit(rows)


def test_a_long_stream_keeps_a_short_history(rows):
    model = sae(n_components=4, k=1)
    for _ in range(MAX_RECORDS + 5):
        model.partial_fit(rows[:4])
    assert len(model.history_) <= MAX_RECORDS
    assert model.history_[-1]["step"] == MAX_RECORDS + 5
    steps = [record["step"] for record in model.history_]
    assert steps == sorted(steps)


@pytest.mark.parametrize("n", [0, 1, 5, 6, 7, 100])
def test_thinned(n):
    records = [{"step": i} for i in range(n)]
    kept = thinned(records, 6)
    assert len(kept) <= 6
    assert kept == records if n <= 6 else kept[-1] == records[-1]
    assert len({b["step"] - a["step"] for a, b in pairwise(kept)}) <= 1, "evenly"


# ---------------------------------------------------------------------------------------------- scikit-learn around it


def test_a_pipeline_for_the_digits(digits):
    """The codes are worth about what the pixels are, with a linear classifier."""
    x, y = digits.data, digits.target
    pipeline = make_pipeline(
        SparseAutoencoder(128, k=16, max_epochs=40, random_state=0), LogisticRegression(max_iter=500)
    )
    assert pipeline.fit(x[:1200], y[:1200]).score(x[1200:], y[1200:]) > 0.85
    assert pipeline[:-1].get_feature_names_out()[0] == "sparseautoencoder0"


def test_a_grid_search_over_k(digits):
    search = GridSearchCV(sae(n_components=64, max_epochs=20), {"k": [1, 4, 16]}, cv=3).fit(digits.data[:600])
    assert search.best_params_ == {"k": 16}, "more latents per row explain more"
    assert sorted(search.cv_results_["mean_test_score"]) == list(search.cv_results_["mean_test_score"])


def test_two_jobs_give_what_one_gives(digits):
    x = digits.data[:300]
    one, two = (cross_val_score(sae(), x, cv=3, n_jobs=n) for n in (1, 2))
    assert np.array_equal(one, two)


def test_beside_other_transformers(rows):
    union = FeatureUnion([("few", sae()), ("many", sae(n_components=32))]).fit(rows)
    assert union.transform(rows).shape == (200, 56)
    assert union.get_feature_names_out()[0] == "few__sparseautoencoder0"
    frame = pd.DataFrame(rows).add_prefix("c")
    columns = ColumnTransformer([("sae", sae(), ["c0", "c1", "c2"])], remainder="passthrough").fit(frame)
    assert columns.transform(frame).shape == (200, 24 + 9)


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_output_with_names(container, rows):
    model = sae().set_output(transform=container).fit(rows)
    codes = model.transform(rows)
    assert type(codes).__module__.startswith(container)
    assert [*codes.columns] == [f"sparseautoencoder{i}" for i in range(24)]
    assert np.array_equal(model.inverse_transform(codes), model.reconstruct(rows))
    with pytest.raises(ValueError, match="sparse"):
        clone(model).set_params(sparse_output=True).set_output(transform=container).fit_transform(rows)


def test_the_history_can_be_drawn(rows):
    assert ff.plot.history(sae(validation_fraction=0.2).fit(rows).history_).get_xlabel() == "step"


# ---------------------------------------------------------------------------------------------- kept and brought back


@pytest.mark.parametrize("through", ["pickle", "joblib", "deepcopy"])
def test_round_trips(through, every, rows, tmp_path):
    if through == "joblib":
        joblib.dump(every, tmp_path / "sae.joblib")
        again = joblib.load(tmp_path / "sae.joblib")
    else:
        again = pickle.loads(pickle.dumps(every)) if through == "pickle" else copy.deepcopy(every)
    assert again.module_ is not every.module_
    for x in (rows, rows.astype(np.float64)):
        assert bits(again, x) == bits(every, x)
        assert np.array_equal(again.reconstruct(x), every.reconstruct(x))
    assert repr(again) == repr(every)


def test_a_model_from_elsewhere_lies_in_its_pickle_on_the_cpu(rows):
    """A stand-in for a GPU: torch's meta device has no numbers, so only the device is looked at."""
    model = sae(batch_size=16).partial_fit(rows)
    seen = []

    class Elsewhere(ff.Autoencoder):
        device = torch.device("meta")

        def cpu(self):
            seen.append("cpu")
            return self

    model.module_.__class__ = Elsewhere
    state = model.__getstate__()
    assert seen == ["cpu"]
    assert state["module_"] is not model.module_
    assert all(t.device.type == "cpu" for t in [*state["_stream"].engine.values(), state["_stream"].since_fired])


def test_no_gradient_is_kept(every):
    assert all(p.grad is None for p in every.module_.parameters())


def test_saved_and_loaded(every, rows, tmp_path):
    every.save(tmp_path / "model")
    again = SparseAutoencoder.load(tmp_path / "model")
    for x in (rows, rows.astype(np.float64)):
        assert bits(again, x) == bits(every, x)
        assert np.array_equal(again.reconstruct(x), every.reconstruct(x))
    assert again.get_params() == every.get_params()
    assert repr(again) == repr(every)
    assert (again.n_iter_, again.n_features_in_) == (every.n_iter_, every.n_features_in_)
    assert again.history_ == every.history_
    assert np.array_equal(again.components_, every.components_)
    assert torch.equal(ff.load(tmp_path / "model").encode(rows), every.module_.encode(rows))
    again.partial_fit(rows) if every.optimizer == "adam" else again.fit(rows)


def test_saved_with_the_names_of_columns(rows, tmp_path):
    frame = pd.DataFrame(rows).add_prefix("c")
    model = sae().fit(frame)
    model.save(tmp_path)
    again = SparseAutoencoder.load(tmp_path)
    assert [*again.feature_names_in_] == [*frame.columns]
    assert np.array_equal(again.transform(frame), model.transform(frame))
    with pytest.raises(ValueError, match="feature names should match"):
        again.transform(frame[frame.columns[::-1]])
    text = (tmp_path / "model.safetensors").read_bytes()
    assert text.count(b'c11\\"') == 1, "said once"
    model.module_.layout = ff.Layout()
    model.save(tmp_path)
    assert [*SparseAutoencoder.load(tmp_path).feature_names_in_] == [*frame.columns]


def test_more_names_than_a_header_holds(rows, tmp_path, monkeypatch):
    monkeypatch.setattr("fewfire.estimators.saving.MAX_NAMES", 60)
    model = sae().fit(pd.DataFrame(rows).add_prefix("gene "))
    with pytest.raises(
        ValueError, match="the names of 12 columns take 111 bytes, a model file has room for 60.*joblib"
    ):
        model.save(tmp_path)
    assert not any(tmp_path.iterdir())


def test_parameters_that_are_no_json(rows, tmp_path):
    state = np.random.RandomState(0)
    preprocess = make_preprocess("minmax")
    model = sae(random_state=state, activation=ff.TopK(3), k=None, n_components=np.int64(24), preprocess=preprocess)
    model.fit(rows).save(tmp_path)
    again = SparseAutoencoder.load(tmp_path)
    assert again.random_state is None
    assert again.n_components == 24
    assert type(again.n_components) is int
    assert bits(again.fit(rows), rows)  # what was loaded can be fitted again


def test_a_history_that_is_not_finite(rows, tmp_path):
    model = sae().fit(rows)
    model.history_ = [{"step": i, "loss": math.nan} for i in range(10 * MAX_RECORDS)]
    model.save(tmp_path)
    kept = SparseAutoencoder.load(tmp_path).history_
    assert len(kept) <= MAX_RECORDS
    assert kept[-1] == {"step": 10 * MAX_RECORDS - 1, "loss": None}


def test_a_run_of_the_command_line(rows, tmp_path):
    """Trained without an estimator, it gets the one that fits it."""
    from fewfire.runs import load_config, train

    np.save(tmp_path / "rows.npy", rows)
    settings = [f"data.path={tmp_path / 'rows.npy'}", "train.epochs=7", "train.batch_size=50"]
    settings += ["model.network={name: mlp, hidden: [9]}", "model.n_latents=20", "data.preprocess=standardize"]
    run = train(load_config(settings=settings), tmp_path / "run", progress=False)
    model = SparseAutoencoder.load(tmp_path / "run")
    assert np.array_equal(model.transform(rows), run.model.encode(rows).numpy())
    assert (model.n_components, model.hidden, model.n_features_in_, model.n_iter_) == (20, (9,), 12, 7)
    assert model.module_.activation.k == 1
    again = clone(model).set_params(max_epochs=2, random_state=0).fit(rows)
    assert again.module_.config() == {**model.module_.config(), "network": again.module_.config()["network"]}


def test_a_model_that_no_estimator_has(rows, tmp_path):
    ff.save(ff.Autoencoder(12, 24, d_out=3), tmp_path)
    with pytest.raises(ff.ModelFileError, match=r"holds a model that no SparseAutoencoder has.*fewfire\.load"):
        SparseAutoencoder.load(tmp_path)


class Another(AutoencoderEstimator):
    pass


def forge(folder, change):
    tensors, metadata = load_tensors(folder / "model.safetensors")
    change(metadata["estimator"])
    save_tensors(folder / "model.safetensors", tensors, metadata)
    (folder / "config.json").unlink(missing_ok=True)


FORGED = {
    "another class": (lambda e: e.update({"class": "Denoiser"}), "holds a Denoiser, not a SparseAutoencoder"),
    "a newer head": (lambda e: e.update(version=2), "version 2, which this fewfire does not know; upgrade"),
    "an unknown parameter": (lambda e: e["parameters"].update(zeta=1), "parameters zeta, which this fewfire"),
    "a wrong parameter": (lambda e: e["parameters"].update(k="many"), "'k' parameter of SparseAutoencoder must be"),
    "no class": (lambda e: e.pop("class"), "without class, version, parameters or fitted values"),
    "no parameters": (lambda e: e.update(parameters=[]), "without class, version, parameters"),
    "other columns": (lambda e: e["fitted"].update(n_features_in=5), "its estimator has 5 columns, its model 12"),
    "no passes": (lambda e: e["fitted"].update(n_iter=0), "missing, unknown or wrong: n_iter"),
    "no history": (lambda e: e["fitted"].pop("history"), "missing, unknown or wrong: history"),
    "a history of numbers": (lambda e: e["fitted"].update(history=[1]), "missing, unknown or wrong: history"),
    "too few names": (lambda e: e["fitted"].update(names=["a"]), "expected 12 names of columns"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_head_that_is_wrong(name, rows, tmp_path):
    change, words = FORGED[name]
    sae().fit(rows).save(tmp_path)
    forge(tmp_path, change)
    with pytest.raises(ff.ModelFileError, match=words) as refusal:
        SparseAutoencoder.load(tmp_path)
    assert len(str(refusal.value)) < 400
    assert "\n" not in str(refusal.value)
    assert ff.load(tmp_path).n_latents == 24, "the model itself is whole"


def test_a_head_without_a_parameter_that_came_later(rows, tmp_path):
    """An older file: what it does not know has its default."""
    sae().fit(rows).save(tmp_path)
    forge(tmp_path, lambda e: e["parameters"].pop("validation_fraction"))
    assert SparseAutoencoder.load(tmp_path).validation_fraction == 0


def test_damaged(rows, tmp_path):
    sae().fit(rows).save(tmp_path)
    file = tmp_path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ff.ModelFileError, match="checksum"):
        SparseAutoencoder.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        SparseAutoencoder.load(tmp_path / "nowhere")


def test_another_estimator_has_a_file_of_its_own(rows, tmp_path):
    """A subclass by itself: its name in the file, and in the columns of its codes."""
    model = Another(n_components=8, k=2, max_epochs=3).fit(rows)
    assert model.get_feature_names_out()[0] == "another0"
    model.save(tmp_path)
    assert isinstance(Another.load(tmp_path), Another)
    with pytest.raises(ff.ModelFileError, match="holds a Another, not a SparseAutoencoder; load it with Another.load"):
        SparseAutoencoder.load(tmp_path)


def test_the_head_is_readable(rows, tmp_path):
    sae(hidden=(5, 3)).fit(rows).save(tmp_path)
    head = json.loads((tmp_path / "config.json").read_text())["estimator"]
    assert head["class"] == "SparseAutoencoder"
    assert head["parameters"]["hidden"] == [5, 3]
    assert set(head["parameters"]) == set(SparseAutoencoder().get_params())


# ---------------------------------------------------------------------------------------------- imports


def test_fewfire_loads_scikit_learn_only_for_an_estimator():
    code = (
        "import sys, fewfire; fewfire.Autoencoder; print('sklearn' in sys.modules)\n"
        "fewfire.SparseAutoencoder; print('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_fewfires_functions_take_a_fitted_estimator(digits):
    source = ff.ArraySource(digits.data[:100], layout=ff.Layout("image", (8, 8)))
    estimator = sae(max_epochs=2).fit(source)
    assert ff.evaluate(estimator, digits.data[:100]) == ff.evaluate(estimator.module_, digits.data[:100])
    assert len(ff.plot.filters(estimator, Figure().subplots(), n=4).images) == 1
    assert ff.plot.reconstructions(estimator, digits.data[:3], Figure().subplots()) is not None
    assert ff.plot.history(estimator, Figure().subplots()).lines
    assert torch.equal(ff.plot.feature_vectors(estimator), ff.plot.feature_vectors(estimator.module_))
    table = sae(max_epochs=2).fit(digits.data[:100])
    assert ff.plot.top_columns(table, 1, Figure().subplots()) is not None
    with pytest.raises(ValueError, match=r'Layout\("image", \(height, width\)\); of an estimator, module_.layout'):
        ff.plot.filters(table)


def test_and_say_what_is_missing(tmp_path, digits):
    for use in (lambda e: ff.evaluate(e, digits.data), ff.plot.filters, ff.plot.history, ff.plot.feature_vectors):
        with pytest.raises(ValueError, match="this SparseAutoencoder has no model yet; call fit"):
            use(sae())
    with pytest.raises(TypeError, match="expected an Autoencoder or a fitted estimator; got a list"):
        ff.evaluate([], digits.data)
    with pytest.raises(TypeError, match="got a SparseAutoencoder; an estimator saves itself: sae.save"):
        ff.save(sae(), tmp_path / "model")
    with pytest.raises(TypeError, match="not by a SparseAutoencoder alone; give their rates"):
        ff.plot.density(sae())
    assert not (tmp_path / "model").exists()


def test_an_unknown_parameter_names_the_class_and_the_nearest():
    with pytest.raises(TypeError, match=r"^SparseAutoencoder has no parameter 'n_component'; did you mean 'n_comp"):
        SparseAutoencoder(n_component=4)
    with pytest.raises(TypeError, match=r"^VariationalAutoencoder has no parameter 'betta'; did you mean 'beta'"):
        ff.VariationalAutoencoder(betta=4)
    for kind in (SparseAutoencoder, ff.VariationalAutoencoder):  # what help and editors show
        assert list(inspect.signature(kind).parameters) == list(inspect.signature(kind.__init__).parameters)[1:]
