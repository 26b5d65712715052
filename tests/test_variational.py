"""Drawing, walking and weighing rows."""

import math

import numpy as np
import pytest
import torch

import fewfire as ff


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def x():
    """(2000, 4): two directions and a little noise, so that the likelihood is known in closed form."""
    directions = torch.tensor([[2.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    return random(2000, 2) @ directions + 0.5 * random(2000, 4, seed=1)


@pytest.fixture(scope="module")
def vae(x):
    model = ff.Autoencoder(4, 2, "gaussian")
    variance = 0.25
    terms = [ff.MSE(weight=1 / (2 * variance)), ff.GaussianKL()]
    ff.Trainer(model, x, terms, ff.TrainConfig(steps=3000, learning_rate=3e-3), progress=False).fit()
    return model


def test_the_likelihood_is_that_of_the_linear_model(vae, x):
    """A linear decoder and Gaussian noise make x normal: log p is known, and importance sampling must find it."""
    W, b = vae.decoder.W_dec.detach().double(), vae.decoder.b_dec.detach().double()
    covariance = W.T @ W + 0.25 * torch.eye(4, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(b, covariance).log_prob(x.double())
    estimate = ff.variational.log_likelihood(vae, x, n_samples=2000, variance=0.25)
    assert estimate.mean() == pytest.approx(float(exact.mean()), abs=0.01)
    assert (estimate - exact).abs().max() < 0.5
    # and the model is near the distribution of the data
    truth = torch.distributions.MultivariateNormal(
        torch.zeros(4, dtype=torch.float64),
        torch.tensor([[4.0, 2, 0, 0], [2, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]], dtype=torch.float64)
        + 0.25 * torch.eye(4, dtype=torch.float64),
    ).log_prob(x.double())
    assert exact.mean() == pytest.approx(float(truth.mean()), abs=0.05)


def test_more_samples_raise_the_bound(vae, x):
    few, many = (ff.variational.log_likelihood(vae, x[:500], n_samples=k, variance=0.25).mean() for k in (1, 100))
    assert few < many


def test_the_same_whatever_is_done_at_once(vae, x, monkeypatch):
    whole = ff.variational.log_likelihood(vae, x[:50], n_samples=500, variance=0.25)
    for most in (4000, 300):  # two rows at a time; a part of the draws of one row
        monkeypatch.setattr("fewfire.variational.MAX_VALUES_AT_ONCE", most)
        parts = ff.variational.log_likelihood(vae, x[:50], n_samples=500, variance=0.25)
        assert whole.mean() == pytest.approx(float(parts.mean()), abs=0.1)
        again = ff.variational.log_likelihood(vae, x[:50], n_samples=500, variance=0.25)
        assert torch.equal(parts, again)


@pytest.mark.parametrize("most", [10_000, 1000])
def test_no_more_columns_than_allowed_are_decoded_at_once(monkeypatch, most):
    """Of pictures with few latents, it is the columns that fill the memory."""
    model = ff.Autoencoder(50, 2, "gaussian")
    decoded = []
    model.decoder.register_forward_hook(lambda module, args, out: decoded.append(out.numel()))
    monkeypatch.setattr("fewfire.variational.MAX_VALUES_AT_ONCE", most)
    ff.variational.log_likelihood(model, random(30, 50), n_samples=40)
    assert max(decoded) <= most and sum(decoded) == 30 * 40 * 50
    assert len(ff.variational.log_likelihood(model, random(0, 50))) == 0


def test_the_likelihood_is_of_targets_in_their_own_space(x):
    model = ff.Autoencoder(4, 2, "gaussian", preprocess_out="standardize", dtype=torch.float64)
    model.preprocess_out.fit(lambda: [3 * x + 5])
    W, b = model.decoder.W_dec.detach(), model.decoder.b_dec.detach()
    covariance = W.T @ W + torch.eye(4, dtype=torch.float64)
    rows = x[:20].double()
    exact = torch.distributions.MultivariateNormal(b, covariance).log_prob(model.target_to_model_space(rows))
    found = ff.variational.log_likelihood(model, rows, n_samples=20_000)
    assert (found - exact).abs().median() < 0.05  # an untrained encoder draws badly for some of the rows
    with pytest.raises(ValueError, match=r"its own inputs; got rows of shape \(2000, 4\) and targets of \(5,\)"):
        ff.variational.log_likelihood(ff.Autoencoder(4, 2, "gaussian", d_out=5), x)


def test_bernoulli():
    """Latents that say nothing: p(x) is the product of the biases' probabilities, whatever is drawn."""
    model = ff.Autoencoder(3, 2, "gaussian", network={"name": "linear", "output": "sigmoid"})
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.decoder.b_dec.copy_(torch.tensor([0.0, 1.0, -2.0]))
    x = torch.tensor([[1.0, 0.0, 1.0]])
    p = torch.sigmoid(model.decoder.b_dec.detach())
    expected = float((p[0] * (1 - p[1]) * p[2]).log())
    assert float(ff.variational.log_likelihood(model, x, n_samples=7)) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="between 0 and 1"):
        ff.variational.log_likelihood(model, x * 2)


def test_samples_look_like_the_data(vae, x):
    drawn = ff.variational.sample(vae, 5000, seed=3)
    assert drawn.shape == (5000, 4)
    signal = x.T.cov() - 0.25 * torch.eye(4)
    assert (drawn.T.cov() - signal).abs().max() < 0.15 * signal.abs().max()
    assert torch.equal(drawn, ff.variational.sample(vae, 5000, seed=3))
    assert not torch.equal(drawn, ff.variational.sample(vae, 5000, seed=4))


def test_a_line_from_one_row_to_the_other(vae, x):
    line = ff.variational.interpolate(vae, x[0], x[1], steps=5)
    assert torch.allclose(line[[0, -1]], vae.reconstruct(x[:2]), atol=1e-6)
    assert torch.allclose(line[2], line[[0, -1]].mean(0), atol=1e-5)  # the decoder is linear
    assert torch.equal(ff.variational.interpolate(vae, np.asarray(x[0]), x[1].tolist(), steps=5), line)


def test_a_line_keeps_what_was_removed_from_its_ends(x):
    model = ff.Autoencoder(4, 2, "gaussian", preprocess="row_mean")
    line = ff.variational.interpolate(model, x[0] + 100, x[1] + 300, steps=3)
    assert torch.allclose(line[[0, -1]], model.reconstruct(torch.stack([x[0] + 100, x[1] + 300])), atol=1e-4)
    assert line[1].mean() == pytest.approx(float(line[[0, -1]].mean()), rel=1e-5)


def test_what_is_refused(vae, x):
    with pytest.raises(ValueError, match="Gaussian latents"):
        ff.variational.sample(ff.Autoencoder(4, 2), 3)
    with pytest.raises(ValueError, match="Gaussian latents"):
        ff.variational.log_likelihood(ff.Autoencoder(4, 2), x)
    with pytest.raises(ValueError, match="at least 2"):
        ff.variational.interpolate(vae, x[0], x[1], steps=1)
    with pytest.raises(ValueError, match="n to be a whole number of at least 1; got 0"):
        ff.variational.sample(vae, 0)
    with pytest.raises(ValueError, match="row 1"):
        ff.variational.log_likelihood(vae, [[0.0] * 4, [math.nan] * 4])
    for call in (
        lambda: ff.variational.sample(vae, 2.5),
        lambda: ff.variational.interpolate(vae, x[0], x[1], steps=2.5),
        lambda: ff.variational.log_likelihood(vae, x[:2], n_samples=2.5),
    ):
        with pytest.raises(ValueError, match=r"to be a whole number of at least \d; got 2.5"):
            call()
    with pytest.raises(ValueError, match=r"rows \(n, 4\), .*; got rows of shape \(4,\)"):
        ff.variational.log_likelihood(vae, x[0])
    estimator = ff.VariationalAutoencoder(2)
    for call in (ff.variational.sample, ff.variational.log_likelihood):
        with pytest.raises(TypeError, match="got a VariationalAutoencoder; a fitted estimator's is estimator.module_"):
            call(estimator, 3)


def test_values_that_rounding_took_past_one():
    """scikit-learn's MinMaxScaler gives them."""
    model = ff.Autoencoder(2, 1, "gaussian", network={"name": "linear", "output": "sigmoid"}, dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    past, exact = (ff.variational.log_likelihood(model, rows) for rows in (x + 4e-16, x))
    assert float(past) == pytest.approx(float(exact))
    with pytest.raises(ValueError, match=r"the rows that the preprocessing was fitted to; got -1 to 2"):
        ff.variational.log_likelihood(model, 3 * x - 1)
