"""Synthetic worlds: the published statistics, trees that hold on every row, rows that are functions of their number."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import fewfire as ff
from fewfire.contracts import Source
from fewfire.evaluation import evaluate
from fewfire.sources import open_source, synthetic

SMALL = {"n_features": 60, "d": 20, "roots": 3, "branching": 3, "depth": 2, "seed": 5}
FIRED = [[41], [], [0, 5, 19]]  # by the first three rows of it


@pytest.fixture(scope="module")
def published() -> ff.SyntheticWorld:
    return ff.SyntheticWorld.hierarchical()


@pytest.fixture(params=["whole", "part", "endless", "noisy", "independent"])
def source(request) -> ff.SyntheticWorld:
    if request.param == "independent":
        return ff.SyntheticWorld.independent(60, 20, n_rows=2500)
    if request.param == "endless":
        return ff.SyntheticWorld.hierarchical(**SMALL)
    if request.param == "noisy":
        return ff.SyntheticWorld.hierarchical(**SMALL, n_rows=2500, noise=0.1)
    world = ff.SyntheticWorld.hierarchical(**SMALL, n_rows=2500)
    return world if request.param == "whole" else world.split(0.6)[1].split(0.5)[0]


def first(source: Source, rows: int = 3000, batch_size: int = 700, **options):
    """(row numbers, x) of the beginning of an epoch."""
    batches = itertools.islice(source.batches(batch_size, **options), -(-rows // batch_size))
    pairs = [(batch.rows, batch.x) for batch in batches]
    return (torch.cat(parts)[:rows] for parts in zip(*pairs, strict=True))


# ------------------------------------------------------------------------------------------------- statistics


def test_the_published_small_world(published):
    """Of 1,024 features in 128 columns: how many fire, in the trees' levels and in all, and how far they overlap."""
    f, levels = published.frequencies, published.levels
    assert published.l0 == pytest.approx(7.24, abs=0.08)
    by_level = [float(f[levels == level].sum()) for level in (0, 1, 2, 3, -1)]
    assert by_level == pytest.approx([1.70, 1.68, 1.68, 1.57, 0.62], abs=0.03)
    assert float(f.topk(256).values.sum()) == pytest.approx(5.54, abs=0.08)
    cosines = (published.features @ published.features.T).fill_diagonal_(0).abs()
    assert float(cosines.amax(1).mean()) == pytest.approx(0.280, abs=0.004)
    assert float(published.offset.norm()) == pytest.approx(0.5)
    torch.testing.assert_close(published.features.norm(dim=1), torch.ones(1024))


def test_the_second_small_world():
    world = ff.SyntheticWorld.hierarchical(roots=12, branching=3, seed=43)
    assert int((world.levels >= 0).sum()) == 480
    assert world.l0 == pytest.approx(9.69, abs=0.1)


def test_probabilities_fall_as_zipf_says_and_are_met():
    """Features without trees fire as often as they were told to, correlated or not."""
    for rank in (0, 25):
        world = ff.SyntheticWorld(40, 10, probability=(0.4, 5e-3), rank=rank)
        law = torch.arange(1, 41).double() ** -0.5
        expected = 5e-3 + 0.395 * (law - law[-1]) / (law[0] - law[-1])
        bound = 5 * (expected * (1 - expected) / 65_536).sqrt()
        assert ((world.frequencies - expected).abs() < bound).all()


def test_compensation_lets_children_fire_as_often_as_told(published):
    bare = ff.SyntheticWorld.hierarchical(compensate=False)
    assert bare.l0 < 3.5 < 7 < published.l0
    roots, children = published.levels == 0, published.levels == 1
    assert float(published.frequencies[children].sum()) == pytest.approx(
        float(published.frequencies[roots].sum()), rel=0.05
    )


def test_firing_is_correlated_as_the_copula_says():
    """Two features that fire half of the time agree in 1/2 + asin(r) / pi of the rows (Sheppard 1899)."""
    world = ff.SyntheticWorld(4, 8, probability=0.5, rank=2, correlation=0.6, seed=3)
    loadings = world._coefficients._slope * math.sqrt(2)  # over own; with a variance of 1 each
    covariance = loadings @ loadings.T + torch.eye(4)
    r = covariance / (covariance.diag()[:, None] * covariance.diag()).sqrt()
    fires = world.truth(torch.arange(65_536)) > 0
    agree = (fires[:, :, None] == fires[:, None, :]).double().mean(0)
    torch.testing.assert_close(agree, 0.5 + r.clamp(-1, 1).asin().double() / math.pi, atol=0.01, rtol=0)
    assert r.fill_diagonal_(0).abs().max() > 0.2, "else nothing was tested"


def test_magnitudes():
    world = ff.SyntheticWorld(30, 10, probability=0.3, mean=(5.0, 4.0), std=(0.5, 0.5), seed=2)
    z = world.truth(torch.arange(30_000))
    fires = z > 0
    mean = z.sum(0) / fires.sum(0)
    torch.testing.assert_close(mean, torch.linspace(5, 4, 30), atol=0.12, rtol=0)
    std = ((z - mean).square() * fires).sum(0).div(fires.sum(0)).sqrt()
    assert 0.3 < float(std.mean()) < 1.1
    assert float(std.std()) > 0.15, "each feature has its own"


def test_few_features_are_orthogonal_at_once():
    eye = ff.SyntheticWorld(20, 20).features
    torch.testing.assert_close(eye @ eye.T, torch.eye(20), atol=1e-6, rtol=0)


def test_steps_turn_features_away_from_each_other():
    overlap = [
        (
            ff.SyntheticWorld(200, 40, orthogonal_steps=steps).features
            @ ff.SyntheticWorld(200, 40, orthogonal_steps=steps).features.T
        )
        .square()
        .sum()
        for steps in (0, 100, 300)
    ]
    assert overlap[0] > overlap[1] > overlap[2] > 200 * 200 / 40, "which no 200 directions in 40 columns are below"


# ---------------------------------------------------------------------------------------------------- trees


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_child_fires_only_with_its_parent_and_alone_if_exclusive(exclusive):
    world = ff.SyntheticWorld.hierarchical(**SMALL, exclusive=exclusive)
    fires = world.truth(torch.arange(20_000)) > 0
    child = (world.parents >= 0).nonzero().view(-1)
    assert not (fires[:, child] & ~fires[:, world.parents[child]]).any()
    siblings = torch.zeros(20_000, 60).index_add_(1, world.parents[child], fires[:, child].float())
    assert siblings.max() == 1 if exclusive else siblings.max() == 3


def test_trees_are_numbered_level_by_level():
    world = ff.SyntheticWorld.hierarchical(**SMALL)
    assert world.levels.tolist() == [0] * 3 + [1] * 9 + [2] * 27 + [-1] * 21
    assert world.parents[:12].tolist() == [-1] * 3 + [0] * 3 + [1] * 3 + [2] * 3
    assert world.parents[12:15].tolist() == [3] * 3
    assert world.parents[36:].tolist() == [11] * 3 + [-1] * 21
    assert (world.levels[world.parents[world.parents >= 0]] == world.levels[world.parents >= 0] - 1).all()


def test_a_childs_coefficient_follows_its_parents():
    """Without spread of its own, it is its mean times its parent's over the parent's mean."""
    world = ff.SyntheticWorld(6, 6, probability=0.5, roots=2, branching=2, depth=1, mean=(3.0, 2.0), std=(0.0, 0.0))
    world._coefficients._std[:2] = 0.7  # of the roots only
    z = world.truth(torch.arange(5000))
    mean = torch.linspace(3, 2, 6)
    for child in range(2, 6):
        on = z[:, child] > 0
        root = z[on, world.parents[child]]
        torch.testing.assert_close(z[on, child], mean[child] * root / mean[world.parents[child]])
        assert root.std() > 0.3


# --------------------------------------------------------------------------------------------------- a source


def test_it_is_a_source(source):
    assert isinstance(source, Source)
    assert (source.row_shape, source.target_shape) == ((20,), (20,))
    assert source.n_rows in (None, 2500, 750)
    for batch in itertools.islice(source.batches(100), 2):
        assert batch.x is batch.x_in
        assert batch.x.dtype == torch.float32
        assert batch.rows.dtype == torch.int64


def test_the_truth_reproduces_the_rows(source):
    for batch in itertools.islice(source.batches(900), 3):
        x = source.truth(batch.rows) @ source.features + source.offset
        if source.settings["noise"]:
            assert float((batch.x - x).std()) == pytest.approx(0.1, rel=0.05)
        else:
            torch.testing.assert_close(batch.x, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_row_is_the_same_in_any_batch_order_and_part(source, shuffle):
    rows, x = first(source, shuffle=shuffle)
    for other in ({"batch_size": 33, "epoch": 4}, {"batch_size": 5000, "seed": 9}):
        again, y = first(source, shuffle=shuffle, **other)
        assert shuffle != torch.equal(rows, again)
        if source.n_rows is not None:
            assert torch.equal(x[rows.argsort()], y[again.argsort()])
    bits = dict(zip(rows.tolist(), x, strict=True))
    longer = ff.SyntheticWorld(**source.settings)
    for row, y in zip(*first(longer, shuffle=False), strict=True):
        assert torch.equal(bits.get(int(row), y), y)


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_comes_once(source, shuffle):
    if source.n_rows is None:
        rows, _ = first(source, shuffle=shuffle, rows=5000)
        assert len(set(rows.tolist())) == 5000
        return
    rows, _ = first(source, shuffle=shuffle)
    begin = 1000 if source.n_rows == 750 else 0
    assert sorted(rows.tolist()) == list(range(begin, begin + source.n_rows))
    assert shuffle != (rows.diff() == 1).all()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("start", [0, 1, 3, 7, 100])
def test_resuming_gives_the_tail(source, start, shuffle):
    options = {"seed": 2, "epoch": 7, "shuffle": shuffle}
    full = list(itertools.islice(source.batches(160, **options), 20))
    tail = list(itertools.islice(source.batches(160, start=start, **options), max(20 - start, 0)))
    assert len(tail) == max(len(full) - start, 0)
    for a, b in zip(full[start:], tail, strict=True):
        assert torch.equal(a.rows, b.rows)
        assert torch.equal(a.x, b.x)


def test_only_blocks_that_are_needed_are_drawn(monkeypatch):
    world, drawn = ff.SyntheticWorld.hierarchical(**SMALL), []
    finite = ff.SyntheticWorld.hierarchical(**SMALL, n_rows=4 * synthetic.BLOCK)
    draw = ff.SyntheticWorld._draw
    monkeypatch.setattr(ff.SyntheticWorld, "_draw", lambda self, block: (drawn.append(block), draw(self, block))[1])
    next(world.batches(512, start=10**9))
    assert drawn == [512 * 10**9 // synthetic.BLOCK]
    list(finite.batches(synthetic.BLOCK, start=2))
    assert len(drawn) == 1 + 2


def test_order_depends_on_seed_and_epoch_and_nothing_else(source):
    def order(**options) -> list[int]:
        return next(first(source, **options)).tolist()

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2, batch_size=8)
    assert order(seed=1, epoch=2) != order(seed=1, epoch=3)
    assert order(seed=1, epoch=2) != order(seed=2, epoch=2)


def test_the_global_generator_is_left_alone(source):
    before = torch.get_rng_state()
    next(iter(source.batches(10)))
    assert torch.equal(torch.get_rng_state(), before)


def test_parts_share_no_row_and_miss_none():
    world = ff.SyntheticWorld.hierarchical(**SMALL, n_rows=2500)
    parts = [*world.split(0.3)[0].split(0.5), world.split(0.3)[1]]
    rows = [row for part in parts for row in next(first(part, shuffle=False)).tolist()]
    assert sorted(rows) == list(range(2500))
    assert [part.n_rows for part in parts] == [875, 875, 750]


def test_fresh_rows_are_others():
    world = ff.SyntheticWorld.hierarchical(**SMALL)
    fresh = world.fresh(500)
    (batch,) = fresh.batches(500, shuffle=False)
    assert torch.equal(fresh.features, world.features)
    torch.testing.assert_close(fresh.truth(batch.rows) @ fresh.features + fresh.offset, batch.x, atol=1e-5, rtol=0)
    assert not torch.equal(batch.x, next(world.batches(500, shuffle=False)).x)


def test_fingerprint_follows_settings_and_rows():
    def made(**changes) -> ff.SyntheticWorld:
        return ff.SyntheticWorld.hierarchical(**{**SMALL, "n_rows": 2500, **changes})

    whole = made()
    others = [made(seed=6), made(noise=0.1), made(n_rows=2501), made(rank=3), *whole.split(0.5), whole.fresh(2500)]
    assert len({world.fingerprint for world in [whole, *others]}) == 1 + len(others)
    assert made().fingerprint == whole.fingerprint
    assert made().split(0.5)[1].fingerprint == whole.split(0.5)[1].fingerprint


def test_a_constant_in_the_code_decides_which_rows_are_drawn():
    """Whoever changes what is drawn must raise VERSION, so that an older run refuses to go on with other rows."""
    (batch,) = ff.SyntheticWorld.hierarchical(**SMALL, n_rows=3).batches(3, shuffle=False)
    fired = [row.nonzero().view(-1).tolist() for row in ff.SyntheticWorld.hierarchical(**SMALL).truth([0, 1, 2])]
    assert (synthetic.VERSION, fired) == (1, FIRED)
    assert batch.x.shape == (3, 20)


# ---------------------------------------------------------------------------------------------------- its use


def test_the_truth_as_a_dictionary_explains_the_rows():
    """Encoding with orthogonal features finds the coefficients, so that precision and recall can be computed."""
    world = ff.SyntheticWorld(16, 16, n_rows=2000, mean=2.0, probability=0.1)
    batch = next(world.batches(2000))
    found = (batch.x - world.offset) @ world.features.T > 1e-3
    assert torch.equal(found, world.truth(batch.rows) > 0)


def test_it_trains_and_evaluates():
    world = ff.SyntheticWorld.independent(32, 16, probability=0.1)
    model = ff.Autoencoder(16, 48, ff.TopK(4))
    ff.Trainer(model, world, config=ff.TrainConfig(steps=300, batch_size=128, learning_rate=3e-3), progress=False).fit()
    assert evaluate(model, world.fresh(1000))["explained_variance"] > 0.7


def test_the_built_in_name():
    world = open_source("world", n_rows=2000)
    assert (world.n_rows, world.row_shape) == (2000, (128,))
    assert open_source("world").n_rows == 100_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_features": 0}, "n_features to be a whole number of at least 1; got 0"),
        ({"d": 2.5}, "d to be a whole number"),
        ({"n_rows": 0}, "n_rows to be a whole number of at least 1"),
        ({"probability": 1.2}, "probability to be a number"),
        ({"probability": (0.1, -0.1)}, "probability to be a number"),
        ({"probability": (0.1, 0.2, 0.3)}, "probability to be a number"),
        ({"mean": 0}, "mean to be a number"),
        ({"noise": math.nan}, "noise to be a number"),
        ({"offset": True}, "offset to be a number"),
        ({"roots": 3, "n_features": 20}, "3 roots with 4 children each and 3 levels below are 255 features"),
        ({"seed": "x"}, "seed to be a whole number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        ff.SyntheticWorld(**settings)
    assert "\n" not in str(caught.value)


def test_other_misuse_is_refused():
    world = ff.SyntheticWorld.hierarchical(**SMALL)
    with pytest.raises(ValueError, match=r"fresh\(10_000\)"):
        world.split(0.1)
    with pytest.raises(ValueError, match="stream other than"):
        world.fresh(10, stream=0)
    for rows in ([-1], [0.5], 3):
        with pytest.raises(ValueError, match="row numbers"):
            world.truth(rows)
    for fraction in (0, 1, math.nan):
        with pytest.raises(ValueError, match="fraction"):
            world.fresh(10).split(fraction)
    with pytest.raises(ValueError, match="at least 2 rows"):
        world.fresh(1).split(0.5)
    for arguments in ({"batch_size": 0}, {"batch_size": 2, "start": -1}):
        with pytest.raises(ValueError, match="batch_size"):
            world.batches(**arguments)
