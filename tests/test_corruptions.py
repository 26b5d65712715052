"""Corruptions: as much noise as was asked for, the same noise for the same generator, and the target clean."""

import math

import pytest
import torch

import fewfire as ff
from fewfire import rng
from fewfire.corruptions import Corruption

OURS = [n for n, c in Corruption.registry.items() if c.__module__.startswith("fewfire")]
N = 200_000


def data(dtype=torch.float32, n=N):
    """Values in (1, 2): 0 is none of them, and neither are the ends."""
    return 1.001 + 0.998 * torch.rand(n // 20, 20, generator=torch.Generator().manual_seed(0), dtype=dtype)


def corrupt(name, level, x=None, seed=0, **settings):
    member = Corruption.from_config({"name": name, "level": level, **settings})
    return member(data() if x is None else x, rng.generator(seed, "corruption", 3))


def close(count, p, n=N):
    """Within five standard deviations of a binomial count."""
    return abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1e-9


@pytest.mark.parametrize("level", [0.0, 0.02, 0.25, 0.5, 1.0])
def test_masking(level):
    x, noisy = data(), corrupt("masking", level)
    assert close(int((noisy == 0).sum()), level)
    assert torch.equal(noisy[noisy != 0], x[noisy != 0]), "what is not masked is left alone"


@pytest.mark.parametrize("level", [0.0, 0.02, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("ends", [(None, None), (-3.0, 7.0), (None, 7.0), (-3.0, None)])
def test_salt_and_pepper(level, ends):
    x = data()
    noisy = corrupt("salt_and_pepper", level, low=ends[0], high=ends[1])
    low = float(x.min()) if ends[0] is None else ends[0]
    high = float(x.max()) if ends[1] is None else ends[1]
    own = 1 / N if None in ends else 0  # the extremes themselves are in the data
    peppered, salted = (noisy == low), (noisy == high)
    assert abs(int(peppered.sum()) - N * level / 2) <= 5 * math.sqrt(N * level / 2) + N * own * 2
    assert abs(int(salted.sum()) - N * level / 2) <= 5 * math.sqrt(N * level / 2) + N * own * 2
    untouched = ~peppered & ~salted
    assert torch.equal(noisy[untouched], x[untouched])
    if level == 1:
        assert not untouched.any()


@pytest.mark.parametrize("level", [0.0, 0.02, 0.3, 1.0, 4.0])
def test_gaussian(level):
    x = data(torch.float64)
    noise = corrupt("gaussian", level, x) - x
    assert float(noise.std()) == pytest.approx(level, rel=5 / math.sqrt(2 * N), abs=1e-12)
    assert abs(float(noise.mean())) <= 5 * level / math.sqrt(N) + 1e-12
    if level:
        within = int((noise.abs() < level).sum())
        assert close(within, math.erf(1 / math.sqrt(2))), "not a normal distribution"


@pytest.mark.parametrize("name", OURS)
def test_no_level_is_no_change(name):
    assert torch.equal(corrupt(name, 0.0), data())


@pytest.mark.parametrize("name", OURS)
def test_values_fall_independently(name):
    """Not whole rows, not whole columns: the share touched in each row and column is near the level."""
    touched = (corrupt(name, 0.3) != data()).double()
    expected = 1.0 if name == "gaussian" else 0.3
    columns = touched.mean(0)
    assert (columns - expected).abs().max() < 5 * math.sqrt(0.21 / len(touched))
    if name != "gaussian":
        spread = float(touched.sum(1).var())  # of a binomial count of 20
        assert spread == pytest.approx(20 * 0.21, rel=0.1)


@pytest.mark.parametrize("name", OURS)
def test_the_generator_decides(name):
    once, again, other = (corrupt(name, 0.3, seed=s) for s in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (5, 1, 4, 3), (1, 1), (0, 7)])
@pytest.mark.parametrize("name", OURS)
def test_shape_and_dtype_are_kept_and_the_input_is_not_written(name, shape, dtype):
    if name == "salt_and_pepper" and 0 in shape:
        pytest.skip("no smallest value of nothing")
    x = torch.ones(shape, dtype=dtype)
    noisy = corrupt(name, 0.5, x)
    assert noisy.shape == x.shape
    assert noisy.dtype == dtype
    assert (x == 1).all()


@pytest.mark.parametrize("name", OURS)
def test_config_round_trip(name):
    member = Corruption.from_config({"name": name, "level": 0.125})
    assert Corruption.from_config(member.config()).config() == member.config()
    assert member.config()["level"] == 0.125


@pytest.mark.parametrize("name", OURS)
def test_the_target_stays_clean_and_every_step_is_drawn_anew(name):
    """What Trainer hands to the engine."""
    rows = data(n=640)
    model = ff.Autoencoder(20, 8, "relu", preprocess="standardize")
    seen = []
    config = ff.TrainConfig(steps=6, batch_size=16, validation_fraction=0.0)
    corruption = Corruption.from_config({"name": name, "level": 0.5})
    trainer = ff.Trainer(model, ff.ArraySource(rows), [ff.MSE()], config, corruption=corruption, progress=False)
    step = trainer.engine.step
    trainer.engine.step = lambda batch, state: (seen.append(batch), step(batch, state))[1]
    trainer.fit()
    clean = model.preprocess(rows)
    for batch in seen:
        assert torch.equal(batch.x, clean[batch.rows]), "the target"
        assert not torch.equal(batch.x_in, batch.x)
    if name != "salt_and_pepper":  # its ends depend on the batch
        noise = [(b.x_in - b.x) != 0 if name == "masking" else b.x_in - b.x for b in seen]
        assert not any(torch.equal(a, b) for i, a in enumerate(noise) for b in noise[:i])


@pytest.mark.parametrize("name", OURS)
def test_training_with_noise_is_reproducible(name):
    def weights():
        model = ff.Autoencoder(20, 8, "relu")
        corruption = Corruption.from_config({"name": name, "level": 0.5})
        config = ff.TrainConfig(steps=4, batch_size=16)
        ff.Trainer(model, ff.ArraySource(data(n=640)), [ff.MSE()], config, corruption=corruption, progress=False).fit()
        return model.encoder.W_enc.detach()

    assert torch.equal(weights(), weights())


@pytest.mark.parametrize("level", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("name", ["masking", "salt_and_pepper"])
def test_a_fraction_is_a_fraction(name, level):
    with pytest.raises(ValueError, match=f"fraction of the values: expected 0 to 1, got {level}"):
        Corruption.from_config({"name": name, "level": level})


@pytest.mark.parametrize("level", [-0.1, math.nan, math.inf])
def test_a_deviation_is_at_least_nothing(level):
    with pytest.raises(ValueError, match=f"standard deviation.*got {level}"):
        ff.GaussianNoise(level)


def test_low_is_below_high():
    with pytest.raises(ValueError, match=r"low.*2.*high.*1|high.*1.*low.*2"):
        ff.SaltAndPepper(low=2, high=1)
