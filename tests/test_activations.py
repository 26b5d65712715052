"""Mechanisms: what fires, in training and at inference."""

import pytest
import torch

import fewfire as ff
from fewfire.contracts import TrainState


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(activation, n_latents=8):
    activation.build(n_latents)
    return activation


def training(step=1, seed=0):
    return TrainState(step=step, samples=0, since_fired=torch.zeros(8, dtype=torch.int64), lr=0.1, seed=seed)


# ------------------------------------------------------------------------------------------- topk


@pytest.mark.parametrize(("alpha", "kept"), [(1.0, 3), (2.0, 6), (1.5, 4), (0.1, 1), (99.0, 8)])
def test_alpha_keeps_more_at_inference_only(alpha, kept):
    topk, z = ff.TopK(k=3, alpha=alpha), random(5, 8).abs() + 1
    assert ((topk(z, training()) != 0).sum(1) == 3).all()
    assert ((topk(z) != 0).sum(1) == kept).all()


@pytest.mark.parametrize("alpha", [0, -1, float("nan")])
def test_alpha_is_above_0(alpha):
    with pytest.raises(ValueError, match="alpha"):
        ff.TopK(alpha=alpha)


def test_topk_over_a_feature_map_counts_units():
    z = random(4, 3, 5, 5)
    kept = ff.TopK(k=7)(z)
    assert kept.shape == z.shape
    assert ((kept != 0).flatten(1).sum(1) == 7).all()
    assert torch.equal(kept[kept != 0], z[kept != 0])


def test_k_is_annealed():
    """From 12 of 12 to 2, over the first half: the k of every step is that of its schedule."""
    model = ff.Autoencoder(6, 12, ff.TopK(k=2))
    config = ff.TrainConfig(steps=9, schedules={"activation.k": [(0, 12), (0.5, 2)]})
    seen = []
    forward = model.activation.forward
    model.activation.forward = lambda z, state=None: (state and seen.append(model.activation.k), forward(z, state))[1]
    ff.Trainer(model, random(40, 6), [ff.MSE()], config, progress=False).fit()
    assert seen == [12, 10, 7, 4, 2, 2, 2, 2, 2]


# ------------------------------------------------------------------------------------------- winner-take-all


def test_each_unit_keeps_its_share_of_the_batch():
    z = random(100, 8) + torch.linspace(-1, 3, 8)  # some units are far larger: top-k would give them everything
    kept = built(ff.WinnerTakeAll(rate=0.05))(z, training())
    assert ((kept != 0).sum(0) == 5).all()
    for j in range(8):
        assert torch.equal(kept[:, j].sort().values[-5:], z[:, j].relu().sort().values[-5:])


def test_at_least_one_row_wins_in_a_small_batch():
    kept = built(ff.WinnerTakeAll(rate=0.05))(random(6, 8).abs() + 0.1, training())
    assert ((kept != 0).sum(0) == 1).all()


def test_in_a_feature_map_one_place_of_a_row_competes():
    z = random(40, 3, 4, 4).abs() + 0.1
    kept = built(ff.WinnerTakeAll(rate=0.1), 3)(z, training())
    places = (kept != 0).flatten(2).sum(2)
    assert places.max() == 1
    assert (places.sum(0) == 4).all()
    assert torch.equal(kept.flatten(2).amax(2).amax(0), z.flatten(2).amax(2).amax(0)), "the largest of all won"
    every = built(ff.WinnerTakeAll(rate=0.1, spatial=False), 3)(z, training())
    assert (every != 0).flatten(2).sum(2).max() == 16


def test_at_inference_a_unit_fires_as_often_as_in_training():
    """On the rows it was trained on, whatever stands beside a row; the paper's way lets everything positive pass."""
    x = random(2000, 6)
    codes = {}
    for sparse in (True, False):
        model = ff.Autoencoder(6, 40, ff.WinnerTakeAll(rate=0.05, sparse_inference=sparse))
        ff.Trainer(model, x, config=ff.TrainConfig(steps=400, batch_size=200), progress=False).fit()
        codes[sparse] = model.encode(x)
        assert torch.equal(model.encode(x[5:6])[0], codes[sparse][5])
    rates = (codes[True] != 0).float().mean(0)
    assert (rates > 0).all(), "every unit lives"
    assert rates.mean() == pytest.approx(0.05, abs=0.02)
    assert (codes[False] != 0).float().mean() > 0.3


def test_thresholds_are_averages_and_saved(tmp_path):
    model = ff.Autoencoder(6, 8, ff.WinnerTakeAll(rate=0.5))
    ff.Trainer(model, random(64, 6), config=ff.TrainConfig(steps=20), progress=False).fit()
    assert int(model.activation.seen) == 20
    assert (model.activation.threshold > 0).all()
    ff.save(model, tmp_path / "m")
    again = ff.load(tmp_path / "m")
    assert torch.equal(again.activation.threshold, model.activation.threshold)
    assert torch.equal(again.encode(random(9, 6)), model.encode(random(9, 6)))


def test_the_first_steps_count_in_full():
    wta = built(ff.WinnerTakeAll(rate=0.5))
    for value in (2.0, 4.0):
        z = torch.full((4, 8), value)
        wta.commit(ff.ForwardOutput(z, z, z, z, z, z), training())
    assert torch.equal(wta.threshold, torch.full((8,), 3.0))


@pytest.mark.parametrize("rate", [0, -0.1, 1.1, float("nan")])
def test_rate_is_a_share(rate):
    with pytest.raises(ValueError, match="rate"):
        ff.WinnerTakeAll(rate=rate)


# ------------------------------------------------------------------------------------------- gaussian


def test_drawn_in_training_and_the_mean_at_inference():
    gaussian, pre = ff.Gaussian(), random(20_000, 4)
    mean, logvar = pre[:, :2], pre[:, 2:]
    assert torch.equal(gaussian(pre), mean)
    noise = (gaussian(pre, training()) - mean) / (logvar / 2).exp()
    assert noise.mean().abs() < 0.02
    assert noise.std() == pytest.approx(1, abs=0.02)


def test_draws_depend_on_seed_and_step_alone():
    gaussian, pre = ff.Gaussian(), random(5, 8)
    first = gaussian(pre, training(step=3, seed=7))
    assert torch.equal(first, gaussian(pre, training(step=3, seed=7)))
    assert not torch.equal(first, gaussian(pre, training(step=4, seed=7)))
    assert not torch.equal(first, gaussian(pre, training(step=3, seed=8)))


def test_an_absurd_variance_stays_finite():
    pre = torch.tensor([[0.0, 1e6], [0.0, -1e6]])
    assert ff.Gaussian()(pre, training()).isfinite().all()
    model = ff.Autoencoder(1, 1, "gaussian")
    out = model(torch.zeros(2, 1))._replace(pre_acts=pre)
    assert ff.GaussianKL()(model, out).isfinite()
