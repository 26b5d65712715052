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


# ------------------------------------------------------------------------------------- what was chosen


def drawn(name, x, level=0.3, seed=0, **settings):
    """(what comes out, what was chosen)."""
    member = Corruption.from_config({"name": name, "level": level, **settings})
    return tuple(f(x, rng.generator(seed, "corruption", 3)) for f in (member, member.chosen))


@pytest.mark.parametrize("name", OURS)
def test_what_was_chosen_is_what_was_changed(name):
    x = data()
    noisy, chosen = drawn(name, x, low=0.0, high=3.0) if name == "salt_and_pepper" else drawn(name, x)
    assert chosen.dtype == torch.bool
    assert chosen.shape == x.shape
    assert not (noisy != x)[~chosen].any()
    assert close(int((noisy != x).sum()), 1.0 if name == "gaussian" else 0.3)
    assert float((noisy != x)[chosen].double().mean()) > 0.999


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("name", OURS)
def test_an_entry_that_stayed_what_it_was_was_chosen_all_the_same(name, value):
    settings = {"low": 0.0, "high": 1.0} if name == "salt_and_pepper" else {}
    x = torch.full((N // 20, 20), value)
    noisy, chosen = drawn(name, x, **settings)
    assert close(int(chosen.sum()), 1.0 if name == "gaussian" else 0.3)
    assert torch.equal(chosen, drawn(name, data(), **settings)[1]), "whatever the values are"
    if name == "masking" and value == 0:
        assert torch.equal(noisy, x)


def test_noise_too_small_for_the_digits_chose_everything():
    x = torch.full((50, 20), 1e6)
    noisy, chosen = drawn("gaussian", x, level=1e-6)
    assert torch.equal(noisy, x)
    assert chosen.all()


def test_the_draws_are_those_of_the_first_release():
    """A run that was begun before must go on with the same noise, to the sign of a masked 0."""
    x = data() - 1.5
    u = torch.rand(x.shape, generator=rng.generator(0, "corruption", 3), dtype=x.dtype)
    normal = torch.randn(x.shape, generator=rng.generator(0, "corruption", 3), dtype=x.dtype)
    masked, salted = x * (u >= 0.3), torch.where(u < 0.15, x.min(), torch.where(u < 0.3, x.max(), x))
    for name, expected in (("masking", masked), ("salt_and_pepper", salted), ("gaussian", x + 0.3 * normal)):
        noisy = corrupt(name, 0.3, x)
        assert torch.equal(noisy.view(torch.int32), expected.view(torch.int32)), name


@pytest.fixture
def halving(monkeypatch):
    """A corruption as a user writes it: the rows come back, and that is all."""
    monkeypatch.setattr(Corruption, "registry", dict(Corruption.registry))

    class Halving(Corruption):
        def __init__(self, level: float = 0.5):
            self.level = level

        def __call__(self, x, generator):
            return torch.where(torch.rand(x.shape, generator=generator) < self.level, x / 2, x)

    return Halving()


def handed_over(trainer):
    """The batches that the engine and the validation get."""
    seen, step, prepare = [], trainer.engine.step, trainer._prepare
    trainer.engine.step = lambda batch, state: (seen.append(batch), step(batch, state))[1]
    held_out = []

    def prepared(batch, *noise):
        held_out.append(prepare(batch, *noise))
        return held_out[-1]

    trainer._prepare = prepared
    trainer.fit()
    return seen, [batch for batch in held_out if not any(batch is other for other in seen)]


def emphasising(rows, corruption, intact=0.5, **settings):
    model = ff.Autoencoder(20, 8, "relu")
    config = ff.TrainConfig(steps=4, batch_size=16, **settings)
    return ff.Trainer(model, rows, [ff.MSE(intact=intact)], config, corruption=corruption, progress=False)


def test_a_users_corruption_chose_what_it_changed(halving):
    for part in handed_over(emphasising(data(n=640), halving, validation_fraction=0.5)):
        assert part
        assert all(torch.equal(batch.chosen, batch.x_in != batch.x) for batch in part)


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
@pytest.mark.parametrize("intact", [0.5, 1.0])
def test_what_was_chosen_reaches_the_terms(intact):
    """Of rows full of zeros, where it cannot be told from the values; and only if a term asks."""
    for part in handed_over(emphasising(torch.zeros(32, 20), ff.Masking(0.5), intact, validation_fraction=0.5)):
        assert part
        for batch in part:
            if intact == 1:
                assert batch.chosen is None
            else:
                assert close(int(batch.chosen.sum()), 0.5, n=batch.x.numel())


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
def test_a_masked_zero_is_learned_too():
    """With full emphasis every reconstruction came out as 1: the masked entries that counted had all been 1."""
    half = (torch.rand(500, 8, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    rows = torch.cat([half, half], dim=1)
    model = ff.Autoencoder(16, 32, "relu", network={"name": "linear", "output": "sigmoid", "unit_norm": False})
    config = ff.TrainConfig(steps=400, batch_size=100, learning_rate=0.01)
    ff.Trainer(model, rows, [ff.BCE(intact=0)], config, corruption=ff.Masking(0.5), progress=False).fit()
    recon = model.reconstruct(rows)
    assert recon[rows == 0].mean() < 0.3
    assert recon[rows == 1].mean() > 0.6


def test_emphasis_on_nothing_is_refused():
    rows = data(n=640)
    clean = ff.ArraySource(rows)
    with pytest.raises(ValueError, match="term 'mse' has intact below 1.*expected a corruption, or pairs.*got neither"):
        emphasising(clean, None, 0)
    with pytest.raises(ValueError, match="got neither"):
        emphasising(clean, None, 1, schedules={"mse.intact": [(0, 1), (0.5, 0.2)]})
    emphasising(clean, None, 1, schedules={"mse.intact": [(0, 1)]})
    narrow = ff.ArraySource(rows, rows[:, :5])
    with pytest.raises(
        ValueError, match=r"expected targets of the inputs' shape \(20,\), got \(5,\); leave intact at 1"
    ):
        ff.Trainer(ff.Autoencoder(20, 8, d_out=5), narrow, [ff.MSE(intact=0.5)], corruption=ff.Masking())


def test_of_pairs_the_columns_that_differ_were_chosen():
    rows = data(n=640)
    noisy = rows.clone()
    noisy[:, :7] = 0
    batches, _ = handed_over(emphasising(ff.ArraySource(noisy, rows), None))
    for batch in batches:
        assert torch.equal(batch.chosen, (torch.arange(20) < 7).expand(len(batch.x), 20))


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
def test_a_schedule_may_bring_emphasis_in():
    schedules = {"mse.intact": [(0, 1), (1, 0)]}
    batches, _ = handed_over(emphasising(torch.zeros(32, 20), ff.Masking(0.5), 1, schedules=schedules))
    assert all(batch.chosen.any() for batch in batches)
