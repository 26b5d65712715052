"""The estimators besides SparseAutoencoder: what each is for, and that each keeps what all of them promise.

scikit-learn's own checks are in test_estimator_checks.py.
"""

import inspect
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import fewfire as ff
from fewfire.disk import ModelFileError
from fewfire.preprocess import Standardize
from fewfire.terms import Contractive, GaussianKL

pytestmark = pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")  # many train for two epochs only

SETTINGS = {
    "denoising": (ff.DenoisingAutoencoder, {"k": 3}),
    "denoising, masking": (ff.DenoisingAutoencoder, {"k": 3, "noise": "masking", "noise_level": 0.5}),
    "denoising, own noise": (ff.DenoisingAutoencoder, {"k": 3, "noise": ff.SaltAndPepper(0.1, low=-1.0, high=1.0)}),
    "denoising kl": (ff.DenoisingAutoencoder, {"activation": "sigmoid", "hidden": (9,)}),
    "contractive": (ff.ContractiveAutoencoder, {"k": 3}),
    "contractive kl": (ff.ContractiveAutoencoder, {"activation": "sigmoid", "tied": True}),
    "contractive l1, deep": (ff.ContractiveAutoencoder, {"activation": "relu", "hidden": (9,)}),
    "variational": (ff.VariationalAutoencoder, {}),
    "variational, linear": (ff.VariationalAutoencoder, {"hidden": (), "beta": 0.5}),
    "variational kl": (ff.VariationalAutoencoder, {"penalty": "kl", "rho": 0.3}),
    "variational l1": (ff.VariationalAutoencoder, {"penalty": "l1", "penalty_weight": 0.1}),
    "convolutional": (ff.ConvolutionalAutoencoder, {"k": 3}),
    "convolutional kl": (ff.ConvolutionalAutoencoder, {"activation": "sigmoid", "input_shape": (1, 3, 4)}),
    "convolutional, series": (ff.ConvolutionalAutoencoder, {"activation": "relu", "input_shape": (2, 6)}),
}


def made(name, **changes):
    kind, settings = SETTINGS[name]
    return kind(**{"n_components": 24, "max_epochs": 60, "random_state": 0, **settings, **changes})


@pytest.fixture(scope="module")
def rows():
    """(200, 12) float32: a few directions, sparsely mixed, with noise and an offset."""
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(20, 12))
    weights = generator.exponential(size=(200, 20)) * (generator.random((200, 20)) < 0.15)
    return (weights @ directions + 0.05 * generator.normal(size=(200, 12)) + 1.0).astype(np.float32)


@pytest.fixture(scope="module", params=SETTINGS)
def every(request, rows):
    """Each setting, fitted."""
    return made(request.param).fit(rows)


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def shaped(estimator, x):
    return x.reshape(-1, *estimator.module_.input_shape)


# ---------------------------------------------------------------------------------------------- all of them


def test_it_is_the_model_inside(every, rows):
    codes, module = every.transform(rows), every.module_
    assert np.array_equal(codes, module.encode(shaped(every, rows)).numpy())
    assert np.array_equal(every.reconstruct(rows), module.reconstruct(shaped(every, rows)).flatten(1).numpy())
    assert np.array_equal(every.inverse_transform(codes), every.reconstruct(rows))
    assert every.score(rows) == ff.evaluate(module, shaped(every, rows))["explained_variance"]
    assert every.components_.shape == (24, 12)


def test_it_learned(every, rows):
    assert every.score(rows) > 0.25
    losses = [record["loss"] for record in every.history_]
    assert np.isfinite(losses).all()


def test_a_row_alone_has_the_bits_it_has_in_a_batch(every, rows):
    for x in (rows, rows.astype(np.float64)):
        codes = every.transform(x)
        for i in (0, 63, 199):
            assert np.array_equal(every.transform(x[i : i + 1])[0], codes[i])


def test_the_same_seed_gives_the_same_bits(every, rows):
    assert np.array_equal(clone(every).fit(rows).transform(rows), every.transform(rows))


def test_saved_and_loaded(every, rows, tmp_path):
    every.save(tmp_path / "model")
    loaded = type(every).load(tmp_path / "model")
    assert np.array_equal(loaded.transform(rows), every.transform(rows))
    mine, theirs = ({**e.get_params(), "noise": None} for e in (every, loaded))
    assert mine == theirs
    assert isinstance(ff.load(tmp_path / "model"), ff.Autoencoder)
    with pytest.raises(ModelFileError, match=f"load it with {type(every).__name__}"):
        ff.SparseAutoencoder.load(tmp_path / "model")
    again = loaded.fit(rows)
    assert np.array_equal(again.transform(rows), every.transform(rows)), "every parameter came back"


def test_pickled_between_two_calls_of_partial_fit(rows):
    for name in SETTINGS:
        one, two = made(name), made(name)
        one.partial_fit(rows).partial_fit(rows)
        two = pickle.loads(pickle.dumps(two.partial_fit(rows))).partial_fit(rows)
        assert np.array_equal(one.transform(rows), two.transform(rows)), name


def test_every_parameter_is_in_the_signature():
    """scikit-learn, help() and editors see them all, first those that are shared."""
    shared = list(inspect.signature(ff.SparseAutoencoder).parameters)
    for kind, own in [
        (ff.DenoisingAutoencoder, ["noise", "noise_level"]),
        (ff.ContractiveAutoencoder, ["contraction"]),
        (ff.VariationalAutoencoder, ["beta"]),
        (ff.ConvolutionalAutoencoder, ["input_shape"]),
    ]:
        assert list(inspect.signature(kind).parameters) == [*shared, *own]
        assert set(kind().get_params()) == {*shared, *own}
        with pytest.raises(TypeError, match="Autoencoder has no parameter 'n_latents'"):
            kind(n_latents=5)
    assert ff.VariationalAutoencoder().activation == "gaussian"


def test_in_a_pipeline(digits):
    x, y = digits.data, digits.target
    for kind in (ff.DenoisingAutoencoder, ff.ContractiveAutoencoder):
        pipeline = make_pipeline(kind(96, k=8, max_epochs=40, random_state=0), LogisticRegression(max_iter=500))
        assert pipeline.fit(x[:900], y[:900]).score(x[900:], y[900:]) > 0.85


# ---------------------------------------------------------------------------------------------- denoising


def test_it_takes_noise_away(digits):
    """And better than one that never saw noise."""
    x, held_out = digits.data[:1200], digits.data[1200:]
    noise = 4 * np.random.default_rng(0).normal(size=held_out.shape)
    settings = {"n_components": 64, "k": 12, "preprocess": "center", "max_epochs": 120, "random_state": 0}
    denoiser = ff.DenoisingAutoencoder(noise_level=0.9, **settings).fit(x)
    plain = ff.SparseAutoencoder(**settings).fit(x)
    before, after, without = (
        np.mean((made_of_it - held_out) ** 2)
        for made_of_it in (
            held_out + noise,
            denoiser.reconstruct(held_out + noise),
            plain.reconstruct(held_out + noise),
        )
    )
    assert after < 0.6 * before
    assert after < 0.9 * without
    assert denoiser.score(held_out + noise, clean=held_out) > plain.score(held_out + noise) - 1
    expected = 1 - after / held_out.var(0).mean()
    assert denoiser.score(held_out + noise, clean=held_out) == pytest.approx(expected, rel=1e-6)


def test_pairs_teach_what_the_noise_is(digits):
    """A stripe over every picture: no made-up noise is like it, pairs show it."""
    clean = digits.data
    noisy = clean + 8.0 * np.tile([1, 0], 32)
    settings = {"n_components": 64, "k": 12, "max_epochs": 60, "random_state": 0}
    paired = ff.DenoisingAutoencoder(**settings).fit(noisy[:1200], clean=clean[:1200])
    assert np.mean((paired.reconstruct(noisy[1200:]) - clean[1200:]) ** 2) < 6, "of 35 before"
    assert paired.score(noisy[1200:], clean=clean[1200:]) > 0.6
    source = ff.DenoisingAutoencoder(**settings).fit(ff.ArraySource(noisy[:1200], clean[:1200]))
    assert np.array_equal(source.transform(noisy), paired.transform(noisy)), "a Source of pairs is the same"
    with warnings.catch_warnings(action="error"):  # of memory that torch may not write to
        paired.score(noisy, clean=pd.DataFrame(clean))
    frames = ff.DenoisingAutoencoder(**settings).fit(pd.DataFrame(noisy[:1200]), clean=pd.DataFrame(clean[:1200]))
    assert np.allclose(frames.reconstruct(pd.DataFrame(noisy)), paired.reconstruct(noisy), atol=0.5), "up to roundings"


def test_pairs_get_no_other_noise(rows):
    """The very same rows as pairs train the same model as no noise at all, but for roundings."""
    paired = made("denoising", max_epochs=1).fit(rows, clean=rows.copy())
    still = made("denoising", max_epochs=1, noise_level=0.0).fit(rows)
    noisy = made("denoising", max_epochs=1).fit(rows)
    assert np.allclose(paired.components_, still.components_, atol=1e-6)
    assert not np.allclose(noisy.components_, still.components_, atol=1e-3)


def test_each_side_of_pairs_has_statistics_of_its_own(rows):
    noisy = rows + 10 * np.random.default_rng(0).normal(size=rows.shape).astype(np.float32)
    module = made("denoising").fit(noisy, clean=rows).module_
    assert np.allclose(module.preprocess.mean, noisy.mean(0), atol=1e-5)
    assert np.allclose(module.preprocess_out.mean, rows.mean(0), atol=1e-5)


def test_what_clean_may_not_be(rows, tmp_path):
    estimator = made("denoising")
    frame = pd.DataFrame(rows, columns=[f"c{i}" for i in range(12)])
    np.save(tmp_path / "rows.npy", rows)
    holed = rows.copy()
    holed[7, 3] = np.nan
    for given, clean, message in [
        (rows, rows[:100], r"a row for each of X, \(200, 12\); got \(100, 12\)"),
        (rows, holed, "clean holds NaN, first in row 7, column 3"),
        (frame, frame[frame.columns[::-1]], "another order"),
        (tmp_path / "rows.npy", rows, "give a Source of pairs"),
        (rows, np.ma.masked_greater(rows, 2), "masked"),
        (rows, rows.astype(str), "clean"),
        (rows, str(tmp_path / "rows.npy"), "expected clean to be rows in memory, got a str"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            estimator.fit(given, clean=clean)
    assert not hasattr(estimator, "module_")
    with pytest.raises(ValueError, match=r"noise_level=0.3 is of noise that is made up.*leave it out"):
        made("denoising", noise_level=0.3).fit(rows, clean=rows)
    with pytest.raises(ValueError, match="unknown corruption 'salt'"):
        made("denoising", noise="salt").fit(rows)


def test_noise_level_goes_to_the_noise(rows):
    source = ff.ArraySource(rows)
    for noise, level, expected in [
        ("gaussian", None, 0.3),
        ("masking", None, 0.25),
        ("masking", 0.5, 0.5),
        (ff.SaltAndPepper(0.1, low=0.0, high=2.0), None, 0.1),
    ]:
        corruption = ff.DenoisingAutoencoder(noise=noise, noise_level=level)._make_corruption(source)
        assert corruption.level == expected
    assert corruption.high == 2.0


# ---------------------------------------------------------------------------------------------- contractive


def test_contraction_makes_codes_stiffer(rows):
    def stiffness(estimator):
        module = estimator.fit(rows).module_
        out = module(module.to_model_space(torch.from_numpy(rows)))
        return Contractive(method="exact")(module, out).item()

    for name in ("contractive kl", "contractive l1, deep"):
        free, held = (stiffness(made(name, contraction=weight)) for weight in (0.0, 10.0))
        assert held < 0.7 * free, name


# ---------------------------------------------------------------------------------------------- variational


def test_new_rows_are_like_the_old(digits):
    vae = ff.VariationalAutoencoder(16, loss="bce", max_epochs=60, random_state=0).fit(digits.data)
    new = vae.sample(500, random_state=1)
    assert new.shape == (500, 64)
    assert new.dtype == np.float32
    assert np.array_equal(new, vae.sample(500, random_state=1))
    assert not np.array_equal(new, vae.sample(500, random_state=2))
    assert np.abs(new.mean(0) - digits.data.mean(0)).mean() < 1.0, "of values up to 16"
    assert vae.sample().shape == (1, 64)
    with pytest.raises(ValueError, match="n to be a whole number of at least 1; got 0"):
        vae.sample(0)


def test_what_lies_between(every, rows):
    if not isinstance(every, ff.VariationalAutoencoder):
        pytest.skip("there is nothing between")
    line = every.interpolate(rows[0], rows[1], steps=5)
    assert line.shape == (5, 12)
    assert np.allclose(line[[0, -1]], every.reconstruct(rows[:2]), atol=1e-5)


def test_likelihood(rows):
    vae = made("variational", n_components=4).fit(rows)
    told = vae.log_likelihood(rows, n_samples=50)
    assert told.shape == (200,)
    assert np.array_equal(told, vae.log_likelihood(rows, n_samples=50)), "the same each time"
    assert told.mean() > vae.log_likelihood(rows + 3).mean() + 10, "rows that are unlike are unlikely"
    for verb in (vae.log_likelihood, lambda x: ff.VariationalAutoencoder().log_likelihood(x)):
        with pytest.raises((ValueError, NotFittedError)):
            verb(rows[:, :5])


def test_likelihood_of_a_file(rows, tmp_path, monkeypatch):
    vae = made("variational", n_components=4).fit(rows)
    np.save(tmp_path / "rows.npy", rows)
    told = vae.log_likelihood(rows, n_samples=20)
    assert np.array_equal(vae.log_likelihood(tmp_path / "rows.npy", n_samples=20), told)
    assert np.array_equal(vae.log_likelihood(sparse.csr_array(rows), n_samples=20), told)
    monkeypatch.setattr(type(vae), "_rows_at_once", lambda self: 64)
    parts = vae.log_likelihood(np.tile(rows[:64], (2, 1)), n_samples=20)
    assert not np.array_equal(parts[:64], parts[64:]), "every block has draws of its own"


def test_rows_of_a_frame_are_walked_between(rows, recwarn):
    frame = pd.DataFrame(rows, columns=[f"c{i}" for i in range(12)])
    vae = made("variational", max_epochs=2).fit(frame)
    line = vae.interpolate(rows[0], rows[1], steps=3)
    assert np.array_equal(vae.interpolate(frame.iloc[0], frame.iloc[1], steps=3), line)
    assert np.array_equal(vae.interpolate(frame.iloc[[0]], frame.iloc[[1]], steps=3), line)
    assert not [w for w in recwarn if "feature names" in str(w.message)]
    for first, message in [
        (frame[frame.columns[::-1]].iloc[[0]], "another order"),
        (rows[0, :5], r"expected first to be one row of 12 columns; got shape \(5,\)"),
        (rows[:2], r"got shape \(2, 12\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            vae.interpolate(first, rows[1])
    with pytest.raises(ValueError, match="expected random_state to be a whole number, a RandomState or None; got 'x'"):
        vae.sample(2, random_state="x")


def test_codes_are_the_means(rows):
    vae = made("variational").fit(rows)
    assert np.array_equal(vae.transform(rows), vae.transform(rows))
    pre_acts = vae.module_.encoder(vae.module_.to_model_space(torch.from_numpy(rows)))
    assert np.allclose(vae.transform(rows), pre_acts[:, :24].detach(), atol=1e-5)


def test_beta_weighs_the_divergence(rows):
    """And comes up from 0."""

    def divergence(beta):
        module = made("variational", beta=beta).fit(rows).module_
        return GaussianKL()(module, module(module.to_model_space(torch.from_numpy(rows)))).item()

    assert divergence(0.1) > 1.5 * divergence(1.0)
    vae = made("variational")
    model = vae._make_model(ff.ArraySource(rows), 0)
    assert vae._fit_config(ff.ArraySource(rows), model, 0).schedules == {"gaussian_kl.weight": [(0, 0), (0.1, 1)]}


@pytest.mark.parametrize(("penalty", "less"), [("kl", 0.8), ("l1", 0.8)])
def test_a_penalty_on_the_means(rows, penalty, less):
    def size(**settings):
        z = made("variational", **settings).fit(rows).transform(rows)
        return np.mean(1 / (1 + np.exp(-z))) if penalty == "kl" else np.abs(z).mean()

    assert size(penalty=penalty, penalty_weight=10.0) < less * size()


def test_what_cannot_be_variational(rows):
    for settings, message in [
        ({"activation": "topk"}, "expected activation='gaussian'.*got 'topk', for which there is SparseAutoencoder"),
        ({"optimizer": "lbfgs"}, "drawn anew each step"),
        ({"tied": True}, "tied weights need one pre-activation per latent"),
        ({"penalty_weight": 3.0}, "has nothing to weigh"),
    ]:
        with pytest.raises(ValueError, match=message):
            made("variational", **settings).fit(rows)


# ---------------------------------------------------------------------------------------------- convolutional


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_pictures_come_as_they_are(digits, kind):
    images = kind(digits.images[:300].astype(np.float32))
    settings = {"n_components": 16, "max_epochs": 10, "random_state": 0}
    cae = ff.ConvolutionalAutoencoder(**settings).fit(images)
    flat = digits.data[:300].astype(np.float32)
    assert cae.n_features_in_ == 64
    assert cae.module_.layout == ff.Layout("image", (8, 8))
    assert np.array_equal(cae.transform(images), cae.transform(flat))
    assert cae.reconstruct(images).shape == (300, 8, 8)
    assert cae.reconstruct(flat).shape == (300, 64)
    assert cae.score(images) == cae.score(flat)
    same = ff.ConvolutionalAutoencoder(input_shape=(1, 8, 8), **settings).fit(flat)
    assert np.array_equal(same.transform(flat), cae.transform(flat))


def test_how_a_row_is_read(rows):
    for settings, shape, kind in [
        ({}, (1, 12), "table"),
        ({"input_shape": (2, 6)}, (2, 6), "series"),
        ({"input_shape": (3, 2, 2)}, (3, 2, 2), "image"),
    ]:
        module = ff.ConvolutionalAutoencoder(8, max_epochs=2, random_state=0, **settings).fit(rows).module_
        assert module.network.input_shape == shape
        assert module.layout.kind == kind
    wide = ff.ConvolutionalAutoencoder(8, input_shape=(1, 3, 4), max_epochs=2)
    with pytest.raises(ValueError, match=r"expected X with 12 columns, as input_shape \(1, 3, 4\) says; got 5"):
        wide.fit(rows[:, :5])
    with pytest.raises(ValueError, match="leave tied out"):
        ff.ConvolutionalAutoencoder(tied=True).fit(rows)


def test_files_and_sources_are_read_as_input_shape_says(digits, tmp_path):
    x = digits.data[:200].astype(np.float32)
    np.save(tmp_path / "rows.npy", x)
    settings = {"n_components": 8, "input_shape": (1, 8, 8), "max_epochs": 2, "random_state": 0}
    expected = ff.ConvolutionalAutoencoder(**settings).fit(x)
    for given in (tmp_path / "rows.npy", ff.ArraySource(x)):
        cae = ff.ConvolutionalAutoencoder(**settings).fit(given)
        assert cae.module_.network.input_shape == (1, 8, 8)
        assert cae.module_.layout == ff.Layout("image", (1, 8, 8))
        assert np.array_equal(cae.transform(x), expected.transform(x))
        assert np.array_equal(cae.transform(digits.images[:200].astype(np.float32)), expected.transform(x))
        assert cae.score(given) == pytest.approx(expected.score(x), abs=1e-6)
        with pytest.raises(ValueError, match=r"expected X with 63 columns, as input_shape \(1, 7, 9\) says; got 64"):
            ff.ConvolutionalAutoencoder(input_shape=(1, 7, 9)).fit(given)
    with pytest.raises(ValueError, match=r"pictures of shape \(4, 16\), as the model reads them; got \(8, 8\)"):
        ff.ConvolutionalAutoencoder(input_shape=(1, 4, 16)).fit(ff.ArraySource(digits.images))
    drawn = ff.ConvolutionalAutoencoder(8, max_epochs=1, random_state=0).fit("digits").module_
    assert drawn.network.channels == (16,), "layers for 8 x 8 places, not for 64"


def test_pictures_of_another_shape_are_refused(digits):
    images = digits.images[:100]
    cae = ff.ConvolutionalAutoencoder(8, max_epochs=1, random_state=0).fit(images)
    for verb in (cae.transform, cae.reconstruct, cae.score, cae.partial_fit):
        with pytest.raises(ValueError, match=r"expected pictures of shape \(8, 8\).*got \(4, 16\)"):
            verb(images.reshape(100, 4, 16))
    assert np.array_equal(cae.transform(images[:, None]), cae.transform(images)), "one channel, or none"
    with pytest.raises(ValueError, match=r"expected pictures of shape \(2, 32\)"):
        ff.ConvolutionalAutoencoder(input_shape=(2, 32)).fit(images)


def test_a_list_of_pictures(digits):
    cae = ff.ConvolutionalAutoencoder(8, max_epochs=1, random_state=0)
    codes = cae.fit(list(digits.images[:100])).transform(digits.images[:100])
    assert np.array_equal(cae.transform(digits.images[:100].tolist()), codes)
    assert cae.reconstruct(list(digits.images[:100])).shape == (100, 8, 8)


def test_what_cannot_be_convolved(digits):
    x = np.random.default_rng(0).random((20, 9, 9, 3))
    for settings, given, message in [
        ({}, x, r"looks like \(n, h, w, channels\). Move the channels with np.moveaxis\(X, 3, 1\)"),
        ({}, x[..., None], r"of shape \(n, h, w\) or \(n, channels, h, w\); got \(20, 9, 9, 3, 1\)"),
        ({}, x[:0], "looks like|0 sample"),
        ({}, digits.images[:0], "0 sample"),
        ({"hidden": ()}, digits.images, r"maps of at least one convolution, such as \(16, 32\); got \(\)"),
        ({"input_shape": (1, "a", 8)}, digits.data, r"expected input_shape to be \(channels, h, w\)"),
        ({"input_shape": (-1, -8, 8)}, digits.data, r"whole numbers from 1; got \(-1, -8, 8\)"),
        ({"input_shape": (64,)}, digits.data, r"got \(64,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            ff.ConvolutionalAutoencoder(8, max_epochs=1, **settings).fit(given)
    odd = ff.ConvolutionalAutoencoder(8, max_epochs=1, input_shape=(9, 9, 3), random_state=0).fit(x)
    assert odd.module_.network.input_shape == (9, 9, 3), "asked for, it is what it is"


def test_names_of_columns_stay(rows):
    frame = pd.DataFrame(rows, columns=[f"c{i}" for i in range(12)])
    cae = made("convolutional").fit(frame)
    assert [*cae.feature_names_in_] == [*frame.columns]
    assert cae.module_.layout.columns == tuple(frame.columns)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((1,), [16]), ((3,), [16]), ((8,), [16]), ((1, 28, 28), [16, 32]), ((3, 64, 64), [16, 32, 64])],
)
def test_layers_for_every_size(shape, channels):
    x = np.random.default_rng(0).normal(size=(20, *shape)).astype(np.float32)
    cae = ff.ConvolutionalAutoencoder(8, max_epochs=1, random_state=0).fit(x)
    assert cae.module_.network.channels == tuple(channels)
    assert cae.reconstruct(x).shape == x.shape


def test_values_that_share_a_unit_are_scaled_together(digits):
    images = digits.images[:100]
    for settings, expected in [({}, "center"), ({"loss": "bce"}, "minmax"), ({"preprocess": "whiten"}, "whiten")]:
        module = ff.ConvolutionalAutoencoder(8, max_epochs=1, random_state=0, **settings).fit(images).module_
        assert module.preprocess.config()["name"] == expected
    assert (
        ff.ConvolutionalAutoencoder(8, max_epochs=1, random_state=0).fit(digits.data).module_.preprocess.name
        == "standardize"
    )


# ---------------------------------------------------------------------------------------------- found in review


def test_a_users_own_preprocess_is_not_written_to(rows):
    own = Standardize()
    first = ff.SparseAutoencoder(8, preprocess=own, max_epochs=2, random_state=0).fit(rows)
    assert not own.fitted
    second = clone(first).fit(rows * 100 + 1000)
    assert not np.allclose(first.module_.preprocess.mean, second.module_.preprocess.mean)
    narrow = ff.SparseAutoencoder(8, preprocess=first.module_.preprocess, max_epochs=2, random_state=0).fit(rows[:, :3])
    assert narrow.module_.preprocess.mean.shape == (3,)


def test_a_failed_call_of_partial_fit_leaves_no_trace(rows):
    wild = rows.copy()
    wild[-1] = 1e30
    model = ff.SparseAutoencoder(24, k=3, batch_size=32, random_state=0).partial_fit(rows)
    before = model.transform(rows)
    with pytest.raises(ff.TrainingError):
        model.partial_fit(wild)
    assert np.array_equal(model.transform(rows), before)


def test_lbfgs_holds_rows_out(rows):
    model = ff.SparseAutoencoder(24, activation="sigmoid", optimizer="lbfgs", validation_fraction=0.3, random_state=0)
    assert any("val_loss" in record for record in model.fit(rows).history_)


def test_tied_weights_with_a_constant_column(rows):
    constant = np.column_stack([rows, np.full(200, 1000.0, np.float32)])
    model = ff.SparseAutoencoder(24, k=3, tied=True, preprocess=None, random_state=0).fit(constant)
    varying = model.reconstruct(constant)[:, :12]
    assert 1 - ((varying - rows) ** 2).mean() / rows.var(0).mean() > 0.5


def test_rows_that_are_held_out_teach_nothing(rows):
    """Not even the preprocessing."""
    model = ff.SparseAutoencoder(24, validation_fraction=0.5, max_epochs=2, random_state=0).fit(rows)
    kept = model.module_.preprocess.mean.numpy().ravel()
    assert not np.allclose(kept, rows.mean(0), atol=1e-4)


def test_sparse_rows_of_an_estimator_of_pictures(digits):
    images = digits.images[:200]
    cae = ff.ConvolutionalAutoencoder(8, max_epochs=2, random_state=0).fit(images)
    codes = cae.transform(sparse.csr_array(digits.data[:200]))
    assert np.array_equal(codes, cae.transform(digits.data[:200]))


def test_flat_rows_that_are_drawn_as_pictures(digits):
    """A model of the built-in digits: rows of 64 columns, a layout of 8 x 8."""
    model = ff.SparseAutoencoder(16, max_epochs=2, random_state=0).fit("digits")
    assert model.module_.layout.shape == (8, 8)
    assert model.module_.input_shape == (64,)
    assert model.score(digits.data) == pytest.approx(model.score("digits"), abs=1e-6)
    assert model.partial_fit(digits.data).transform(digits.data).shape == (1797, 16)
