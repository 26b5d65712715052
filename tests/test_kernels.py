"""Compiled and plain kernels against the same sums written out in float64."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fewfire as ff
from fewfire.kernels import AdamStep, Loss, NativeKernels, ReferenceKernels, Weights, loading

ISAS = loading.choices()[:-1] if loading.library() is not None else ()
NATIVE = [
    pytest.param(partial(NativeKernels, isa, round_to_bytes=rounds), id=f"{isa}-{'bytes' if rounds else 'floats'}")
    for isa in ISAS
    for rounds in (True, False)
] or [pytest.param(None, id="native", marks=pytest.mark.skip(reason=loading.why_not()))]


@pytest.fixture(params=NATIVE)
def native(request):
    return request.param()


@pytest.fixture(params=[pytest.param(ReferenceKernels, id="reference"), *NATIVE])
def kernels(request):
    return request.param()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ---------------------------------------------------------------------------------------------- codes


def drawn(n_rows=40, d=200, n=300, k=7, seed=0):
    """x (B, D), W (L, D), b (L,), k: as float64, of numbers that float32 holds."""
    generator = np.random.default_rng(seed)
    parts = (generator.normal(size=shape) for shape in ((n_rows, d), (n, d), n))
    return *(part.astype(np.float32).astype(float) for part in parts), k


def scaled(rows=1.0, weights=1.0, biases=1.0, **shape):
    x, W, b, k = drawn(**shape)
    return x * rows, W * weights, b * biases, k


def with_outliers():
    x, W, b, k = drawn()
    x[:, ::37] *= 50
    W[:, 5::41] *= 50
    return x, W, b, k


def like_hidden_states():
    """Of a language model: a mean far from 0, two columns that are far from it in every row, tokens that come again."""
    generator = np.random.default_rng(0)
    tokens = generator.normal(size=(30, 384)) * generator.lognormal(0, 0.5, size=384)
    x = tokens[generator.integers(30, size=80)] + 0.3 * generator.normal(size=(80, 384)) + generator.normal(size=384)
    x[:, 127] += 40
    x[:, 300] -= 25 * generator.lognormal(0, 0.3, size=80)
    W = generator.normal(size=(1500, 384))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    return x, W, -W @ x.mean(0), 32


def with_a_column_that_hides_the_others():
    """8 bits leave nothing of them, and latents look for just these."""
    x, W, b, k = drawn()
    W[:40] = x
    W[:, 0] *= 0.01
    b[50:70] = 120
    x[:, 0] = 1000
    return x, W, b, k


def one_hot(**shape):
    x, W, b, k = drawn(**shape)
    return np.eye(*x.shape), W, b, k


def some_rows_zero():
    x, W, b, k = drawn()
    x[::3] = 0
    W[::7] = 0
    return x, W, b, k


def integers(d):
    x, W, b, k = drawn(d=d)
    return np.round(2 * x), np.round(W), np.round(b), k


def repeated():
    x, W, b, k = drawn(n=60)
    return x, np.repeat(W, 5, axis=0), np.repeat(b, 5), k


def two_levels():
    """As of pictures: a background, a shape, a spot. Rounded to steps of the spot, all of a shape errs to one side."""
    generator = np.random.default_rng(0)
    x = np.where(generator.random((64, 784)) < 0.5, 0.31, 0.0)
    x[:, 0] = 1.0
    W = np.abs(generator.normal(size=(512, 784)))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    return x, W, np.zeros(512), 16


def aligned_with_what_rounding_loses():
    """Of each row, a latent along what 8 bits lose of it, and one along the row that is a little weaker there."""
    x = drawn(n_rows=64, d=1024)[0].astype(np.float32)
    step = np.abs(x).max(1, keepdims=True) / np.float32(127)
    lost = x - np.rint(x / step) * step
    lost /= np.linalg.norm(lost, axis=1, keepdims=True)
    along = x * (0.9 * (x * lost).sum(1) / (x * x).sum(1))[:, None]
    return x, np.concatenate([lost, along]), np.zeros(128), 4


TIES = {"integers": lambda: integers(30), "integers, bytes": lambda: integers(200), "repeated latents": repeated}
CASES = {
    "no multiples": partial(drawn, n_rows=13, d=131, n=77, k=5),
    "k is 1": partial(drawn, k=1),
    "k is n": partial(drawn, n=77, k=77),
    "k is n, in whole panels": partial(drawn, n=64, k=64),
    "one row": partial(drawn, n_rows=1),
    "odd and few columns": partial(drawn, d=37),
    "one column": partial(drawn, d=1, k=3),
    "one latent": partial(drawn, n=1, k=1),
    "one of everything": partial(drawn, n_rows=1, d=1, n=1, k=1),
    "two buckets and more": partial(drawn, n=1100, k=3),
    "several chunks": partial(drawn, n_rows=300, d=129, n=9000, k=20),
    "huge rows": partial(scaled, rows=1e15),
    "tiny rows": partial(scaled, rows=1e-20, biases=0.0),
    "rows too small to round": partial(scaled, rows=1e-35, biases=0.0),
    "huge weights": partial(scaled, weights=1e15),
    "tiny weights": partial(scaled, weights=1e-20, biases=0.0),
    "weights too small to round": partial(scaled, weights=1e-35, biases=0.0),
    "rows of all sizes": partial(scaled, rows=np.logspace(-20, 15, 40)[:, None], biases=0.0),
    "latents of all sizes": partial(scaled, weights=np.logspace(-20, 15, 300)[:, None]),
    "huge biases": partial(scaled, biases=1e6),
    "nothing is positive": partial(scaled, rows=0.01, weights=0.01, biases=-np.abs(drawn()[2]) - 1),
    "outlier columns": with_outliers,
    "hidden states": like_hidden_states,
    "a column that hides the others": with_a_column_that_hides_the_others,
    "one-hot": partial(one_hot, n_rows=40, d=200),
    "zero rows, zero latents": some_rows_zero,
    **TIES,
}
each_case = pytest.mark.parametrize("case", CASES)


def ready(kernels, case):
    """(rows, k) for kernels that have read the weights; float64 pre-activations, and how far float32 may be off."""
    *parts, k = case
    x, W, b = (torch.from_numpy(np.asarray(part, dtype=np.float32)) for part in parts)
    kernels.pack(W, b)
    x64, W64, b64 = (t.double().numpy() for t in (x, W, b))
    size = np.linalg.norm(x64, axis=1)[:, None] * np.linalg.norm(W64, axis=1) + np.abs(b64)
    return x, k, x64 @ W64.T + b64, size


def dense(codes, shape):
    """z (B, L) where there is an entry, else NaN; every entry by rising latent."""
    row = np.repeat(np.arange(len(codes.start) - 1), np.diff(codes.start.numpy()))
    latent = codes.latent.numpy()
    assert codes.latent.dtype == torch.int32
    assert (np.diff(row * shape[1] + latent) > 0).all()
    z = np.full(shape, np.nan)
    z[row, latent] = codes.z.numpy()
    return z


def check_values(z, truth, size):
    there = ~np.isnan(z)
    assert (np.abs(z - truth)[there] <= 1e-6 * size[there]).all()


def check_largest(z, k, truth, size):
    """Those that are there are right; none that is not there is larger than float32 can tell."""
    there = ~np.isnan(z)
    check_values(z, truth, size)
    assert (z[there] > 0).all()
    assert (there.sum(1) <= k).all()
    smallest = np.finfo(np.float32).tiny  # below, a pre-activation may count as 0
    least = np.where(there.sum(1) == k, np.where(there, truth, np.inf).min(1), smallest)
    assert (there | (truth <= least[:, None] + 1e-7 * size)).all()


@each_case
def test_largest(kernels, case):
    x, k, truth, size = ready(kernels, CASES[case]())
    kernels.largest(x, k)
    check_largest(dense(kernels.codes(), truth.shape), k, truth, size)


@each_case
def test_above_and_keep(kernels, case):
    x, k, truth, size = ready(kernels, CASES[case]())
    thresholds = np.quantile(truth, 0.9, axis=0) * np.linspace(-0.2, 1, truth.shape[1])
    thresholds = thresholds.astype(np.float32)
    kernels.above(x, torch.from_numpy(thresholds))
    z = dense(kernels.codes(), truth.shape)
    there = ~np.isnan(z)
    check_values(z, truth, size)
    assert (z > thresholds)[there].all()
    assert (there | (truth <= thresholds + 1e-7 * size)).all()

    n = min(len(x) * k, there.sum() // 2)
    lowest = kernels.keep(n)
    if there.sum() == 0:
        assert lowest is None
        return
    assert lowest == np.sort(z[there])[-1 - n]
    assert np.array_equal(dense(kernels.codes(), truth.shape), np.where(z > lowest, z, np.nan), equal_nan=True)


@pytest.mark.parametrize("n", [0, 1, 99])
def test_keep_leaves_too_few_as_they_are(kernels, n):
    x, _, truth, _ = ready(kernels, drawn(n_rows=1, n=99))
    kernels.above(x, torch.full((99,), -1e9))
    assert kernels.codes().start.tolist() == [0, 99]
    assert kernels.keep(n) == (None if n == 99 else pytest.approx(np.sort(truth[0])[-1 - n], rel=1e-5))
    assert kernels.codes().start.tolist() == [0, n]


@pytest.mark.parametrize("case", TIES)
def test_of_equals_the_first_latents_fire(native, case):
    x, k, truth, _ = ready(native, TIES[case]())
    native.largest(x, k)
    z = native.codes()
    tied = 0
    for r, row in enumerate(truth.round(5)):
        fires = [j for j in np.argsort(-row, kind="stable")[:k] if row[j] > 0]
        tied += row[fires[-1]] in np.delete(row, fires)
        assert z.latent[z.start[r] : z.start[r + 1]].tolist() == sorted(fires)
    assert tied > 5


BAD = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("d", [20, 200])
def test_rows_that_are_not_finite_have_no_entries(kernels, d):
    case = drawn(d=d, n_rows=30)
    spoilt = case[0].copy()
    for r, value in zip((0, 13, 29), BAD, strict=True):
        spoilt[r, d - 1 - r // 2] = value
    x, k, truth, _ = ready(kernels, case)
    bad = torch.from_numpy(np.isin(np.arange(30), (0, 13, 29)))
    for find in (lambda x: kernels.largest(x, k), lambda x: kernels.above(x, torch.zeros(300))):
        find(x)
        sound = dense(kernels.codes(), truth.shape)
        find(torch.from_numpy(spoilt).float())
        codes = kernels.codes()
        assert torch.equal(codes.finite, ~bad)
        z = dense(codes, truth.shape)
        assert np.isnan(z[bad]).all()
        assert np.array_equal(z[~bad], sound[~bad], equal_nan=True)


@pytest.fixture(scope="module")
def trained():
    """A dictionary after 100 steps, and rows of the world that it learned."""
    world = ff.SyntheticWorld(400, 160, seed=1, orthogonal_steps=0)
    model = ff.Autoencoder(160, 640, {"name": "topk", "k": 12})
    config = ff.TrainConfig(steps=100, batch_size=128, learning_rate=3e-3)
    ff.Trainer(model, world, config=config, progress=False).fit()
    x = next(iter(world.fresh(400).batches(400))).x
    W, b = model.encoder.W_enc.detach(), model.encoder.b_enc.detach()
    return *(t.double().numpy() for t in (model.to_model_space(x), W, b)), 12


def sets(latents):
    return [sorted(row) for row in latents]


@pytest.mark.parametrize("case", ["normal numbers", "a trained dictionary"])
def test_the_sets_are_those_of_float64(kernels, case, trained):
    x, k, truth, _ = ready(kernels, drawn(n_rows=400, d=256, n=2000, k=16) if case == "normal numbers" else trained)
    best = np.argsort(-truth, axis=1)[:, :k]
    kernels.largest(x, k)
    codes = kernels.codes()
    found = [codes.latent[a:b].tolist() for a, b in zip(codes.start[:-1], codes.start[1:], strict=True)]
    assert sets(found) == [sorted(j for j in row if truth[r, j] > 0) for r, row in enumerate(best)]
    assert len(codes.z) > 0.9 * k * len(x)
    assert getattr(kernels, "audit", 0) < 1


@pytest.mark.parametrize("case", [two_levels, aligned_with_what_rounding_loses])
def test_rounding_errors_that_are_not_independent(kernels, case):
    x, k, truth, size = ready(kernels, case())
    kernels.largest(x, k)
    check_largest(dense(kernels.codes(), truth.shape), k, truth, size)
    assert getattr(kernels, "audit", 0) < 1


@pytest.mark.skipif(not ISAS, reason=loading.why_not())
@given(
    n_rows=st.integers(1, 30),
    d=st.one_of(st.integers(1, 70), st.integers(127, 145)),
    n=st.integers(1, 140),
    k=st.integers(1, 140),
    seed=st.integers(0, 1 << 32),
    coarse=st.sampled_from([0.0, 0.1, 1.0]),
    sizes=st.tuples(*3 * [st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 1e4, 1e15])]),
)
@example(n_rows=1, d=128, n=1, k=1, seed=2, coarse=0.0, sizes=(1e15, 0.0, 1e-20))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_largest_of_anything(n_rows, d, n, k, seed, coarse, sizes):
    parts = drawn(n_rows, d, n, seed=seed)[:3]
    x, W, b = ((np.round(part / coarse) if coarse else part) * size for part, size in zip(parts, sizes, strict=True))
    kernels = NativeKernels()
    x, k, truth, size = ready(kernels, (x, W, b, min(k, n)))
    kernels.largest(x, k)
    check_largest(dense(kernels.codes(), truth.shape), k, truth, size)


# ---------------------------------------------------------------------------------------------- the step


D, N, ROWS = 37, 90, 70
STEPS = (1.0, 2.0, 5.0, 400.0)
BETAS, EPS, LR = (0.9, 0.999), 1e-8, 0.01

JOBS = {
    "plain": {},
    "free rows": {"unit_norm": False},
    "another target": {"d_out": 53},
    "a target of one column": {"d_out": 1},
    "l1": {"l1": 0.3},
    "prefixes": {"prefixes": (1, 10, 33, N)},
    "prefixes, another target": {"prefixes": (64, N), "d_out": 5, "l1": 0.1},
    "thresholds": {"threshold": 1.5, "width": 0.8, "step_slope": 0.2},
    "thresholds, prefixes": {"threshold": 1.5, "width": 0.8, "prefixes": (7, N), "l1": 0.1},
    "thresholds of 0": {"threshold": 0.0, "width": 0.8, "step_slope": 0.2},
    "revived": {"dead": (0, 5, 6, 63, 64, 89), "k": 2},
    "all of one": {"dead": (17,), "k": 1},
    "revived, prefixes": {"dead": tuple(range(0, N, 3)), "k": 30, "prefixes": (20, N), "d_out": 11},
    "revived, thresholds": {"dead": tuple(range(40)), "k": 9, "threshold": 1.5, "width": 0.8, "unit_norm": False},
    "many columns": {"d": 300, "d_out": 257, "dead": tuple(range(50)), "k": 3},
    "one row": {"rows": 1},
    "nothing fires": {"bias": -1e3},
}
each_job = pytest.mark.parametrize("job", JOBS)


class Step:
    """Kernels that have taken rows up to ``reconstruct`` and ``revive``, and what they said."""

    def __init__(
        self,
        kernels,
        *,
        d=D,
        d_out=None,
        n=N,
        rows=ROWS,
        prefixes=None,
        threshold=None,
        width=1.0,
        l1=0.0,
        step_slope=0.0,
        dead=(),
        k=0,
        bias=0.0,
        unit_norm=True,
        damage=None,
    ):
        generator = np.random.default_rng(3)

        def normal(*shape):
            return torch.from_numpy(generator.normal(size=shape).astype(np.float32))

        d_out = d_out or d
        W_dec = normal(n, d_out)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        self.weights = Weights(normal(n, d) / math.sqrt(d), normal(n) + bias, W_dec, normal(d_out), unit_norm)
        self.x_in, self.x = normal(rows, d), normal(rows, d_out)
        if damage is not None:
            damage(self)
        thresholds = None if threshold is None else threshold * torch.linspace(0.5, 1, n)
        prefixes = prefixes or (n,)
        self.loss = Loss(prefixes, tuple(np.linspace(0.02, 0.05, len(prefixes))), l1, thresholds, width, step_slope)
        self.dead, self.k, self.slope = torch.tensor(dead, dtype=torch.int32), k, 0.03
        self.kernels = kernels
        kernels.pack(self.weights.W_enc, self.weights.b_enc)
        if thresholds is None:
            kernels.largest(self.x_in, 6)
        else:
            kernels.above(self.x_in, thresholds - width / 2)
        self.codes = kernels.codes()
        self.outcome = kernels.reconstruct(self.weights, self.x_in, self.x, self.loss)
        self.revival, self.bound = 0.0, self.outcome.largest
        if dead:
            self.revival, self.bound = kernels.revive(self.dead, k, self.slope)

    def move(self, factor=1.0):
        """Parameters, averages and squares after ``update``, and the thresholds' gradient."""
        generator = np.random.default_rng(4)
        average = tuple(torch.from_numpy(1e-3 * generator.normal(size=w.shape)).float() for w in self.weights[:4])
        square = tuple(torch.from_numpy(1e-6 * generator.uniform(0.5, 1.5, w.shape)).float() for w in self.weights[:4])
        thresholds = None if self.loss.threshold is None else torch.full((len(self.weights.W_enc),), math.nan)
        before = [[t.double().numpy() for t in part] for part in (self.weights[:4], average, square)]
        self.kernels.update(AdamStep(average, square, STEPS, LR, *BETAS, EPS), factor, thresholds)
        return before, (self.weights[:4], average, square), thresholds


def expected(step):
    """(errors, latents, revival, gradients of W_enc, b_enc, W_dec, b_dec, thresholds), all in float64."""
    W_enc, b_enc, W_dec, b_dec = (t.double().numpy() for t in step.weights[:4])
    x_in, x, loss = step.x_in.double().numpy(), step.x.double().numpy(), step.loss
    z = np.nan_to_num(dense(step.codes, (len(x), len(W_enc))), nan=-np.inf)
    t = np.zeros(len(W_enc)) if loss.threshold is None else loss.threshold.double().numpy()
    a = np.where(z > t, z, 0.0)
    errors, by_latent, gW_dec, gb_dec = [], np.zeros_like(a), np.zeros_like(W_dec), np.zeros_like(b_dec)
    for p, slope in zip(loss.prefixes, loss.slopes, strict=True):
        error = a[:, :p] @ W_dec[:p] + b_dec - x
        errors.append((error**2).sum())
        by_latent[:, :p] += slope * error @ W_dec[:p].T
        gW_dec[:p] += slope * a[:, :p].T @ error
        gb_dec += slope * error.sum(0)
    by_latent += loss.l1 * (a > 0)
    window = np.abs(z - t) < loss.width / 2
    thresholds = -(window * (t * by_latent + loss.step_slope)).sum(0) / loss.width
    reaching = by_latent * (a > 0)
    revival = 0.0
    if step.k:
        dead = step.dead.numpy()
        among = x_in @ W_enc[dead].T + b_enc[dead]
        least = np.sort(among, axis=1)[:, -step.k][:, None]
        again = np.zeros_like(a)
        again[:, dead] = np.where(among >= least, among.clip(0), 0)
        left = again @ W_dec + error
        revival = (left**2).sum()
        reaching += step.slope * (left @ W_dec.T) * (again > 0)
        gW_dec += step.slope * again.T @ left
    if step.weights.unit_norm:
        gW_dec -= (gW_dec * W_dec).sum(1, keepdims=True) * W_dec
    return errors, a, revival, (reaching.T @ x_in, reaching.sum(0), gW_dec, gb_dec), thresholds


def close(ours, truth, tolerance=2e-6):
    ours, truth = np.asarray(ours, dtype=float), np.asarray(truth, dtype=float)
    assert ours.shape == truth.shape
    return np.abs(ours - truth).max() <= tolerance * max(np.abs(truth).max(), 1e-30)


@each_job
def test_reconstruct_and_revive(kernels, job):
    step = Step(kernels, **JOBS[job])
    errors, latents, revival, gradients, _ = expected(step)
    assert close(step.outcome.errors, errors)
    assert np.array_equal(step.outcome.fired.numpy(), (latents > 0).any(0))
    assert step.outcome.active == (latents > 0).sum()
    assert step.outcome.total == pytest.approx(latents.sum(), rel=1e-6)
    assert step.revival == pytest.approx(revival, rel=1e-6)
    assert max(np.abs(g).max() for g in gradients) <= step.bound < 1e6


@each_job
def test_norm(kernels, job):
    step = Step(kernels, **JOBS[job])
    *_, gradients, thresholds = expected(step)
    whole = math.sqrt(sum((g**2).sum() for g in (*gradients, *([] if step.loss.threshold is None else [thresholds]))))
    assert kernels.norm() == pytest.approx(whole, rel=1e-6)


@each_job
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_update(kernels, job, factor):
    step = Step(kernels, **JOBS[job])
    *_, gradients, thresholds = expected(step)
    before, after, threshold_gradient = step.move(factor)
    for i, (w, m, v, g, t) in enumerate(zip(*before, gradients, STEPS, strict=True)):
        m_, v_ = BETAS[0] * m + (1 - BETAS[0]) * factor * g, BETAS[1] * v + (1 - BETAS[1]) * (factor * g) ** 2
        w_ = w - LR * m_ / (1 - BETAS[0] ** t) / (np.sqrt(v_ / (1 - BETAS[1] ** t)) + EPS)
        if i == 2 and step.weights.unit_norm:
            w_ /= np.linalg.norm(w_, axis=1, keepdims=True)
        assert all(close(part[i], truth) for part, truth in zip(after, (w_, m_, v_), strict=True))
    if threshold_gradient is not None:
        assert close(threshold_gradient, factor * thresholds)


@each_job
def test_native_says_what_the_reference_says(native, job):
    ours, theirs = (Step(kernels, **JOBS[job]) for kernels in (native, ReferenceKernels()))
    for name in ("start", "latent", "finite"):
        assert torch.equal(getattr(ours.codes, name), getattr(theirs.codes, name))
    assert torch.equal(ours.outcome.fired, theirs.outcome.fired)
    assert ours.outcome.active == theirs.outcome.active
    for part in ("errors", "total"):
        assert getattr(ours.outcome, part) == pytest.approx(getattr(theirs.outcome, part), rel=1e-6)
    assert ours.revival == pytest.approx(theirs.revival, rel=1e-6)
    assert native.norm() == pytest.approx(theirs.kernels.norm(), rel=1e-6)
    for a, b in zip(ours.move(0.5)[1], theirs.move(0.5)[1], strict=True):
        assert all(close(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("where", ["x_in", "x", "W_enc", "b_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("value", BAD)
def test_what_is_not_finite_has_no_largest_gradient(kernels, where, value):
    def damage(step):
        whole = getattr(step, where) if where.startswith("x") else getattr(step.weights, where)
        whole[-1] = value

    assert not Step(kernels, damage=damage, threshold=-9.0).outcome.largest < math.inf


def test_rows_of_norm_1_stay_so(kernels):
    step = Step(kernels)
    step.move()
    assert (step.weights.W_dec.double().norm(dim=1) - 1).abs().max() < 2e-7


def test_a_step_leaves_nothing_behind(kernels):
    """The memory of a larger batch, of more prefixes and of a revival is used again."""
    settings = {"isa": kernels.isa, "round_to_bytes": kernels.round_to_bytes} if hasattr(kernels, "isa") else {}
    alone = Step(type(kernels)(**settings), **JOBS["one row"])
    for job in ("revived, prefixes", "many columns"):
        Step(kernels, **JOBS[job]).move()
    after = Step(kernels, **JOBS["one row"])
    assert after.outcome[0] == alone.outcome[0]
    assert all(torch.equal(a, b) for a, b in zip(after.move()[1][0], alone.move()[1][0], strict=True))


# ------------------------------------------------------------------------------------------ the same bits


WIDE = {"d": 150, "n": 700, "rows": 500, "prefixes": (40, 700), "dead": tuple(range(0, 700, 2)), "k": 5}


@pytest.mark.parametrize("more", [{}, {"threshold": 1.5, "width": 0.8, "step_slope": 0.2}], ids=["largest", "above"])
def test_threads_change_no_bit(native, threads, more):
    def run(n):
        threads(n)
        step = Step(native, **WIDE, **more)
        numbers = (*step.outcome.errors, *step.outcome[2:], step.revival, step.bound, native.norm())
        _, after, gradient = step.move(0.5)
        tensors = [*step.codes, step.outcome.fired, *after[0], *after[1], *after[2]]
        return numbers, tensors + ([] if gradient is None else [gradient])

    numbers, tensors = run(1)
    for n in (2, 3):
        again = run(n)
        assert again[0] == numbers
        assert all(torch.equal(a, b) for a, b in zip(again[1], tensors, strict=True))


@pytest.mark.parametrize("d", [37, 150])
@pytest.mark.parametrize("find", ["largest", "above"])
def test_a_row_alone_has_the_bits_it_has_among_others(native, d, find):
    x, k, _, _ = ready(native, drawn(n_rows=500, d=d, n=333))
    asked = k if find == "largest" else torch.full((333,), float(math.sqrt(d)))
    getattr(native, find)(x, asked)
    whole = native.codes()
    assert len(whole.z) > len(x)
    for r in (0, 1, 23, 239, 240, 499):
        getattr(native, find)(x[r : r + 1], asked)
        alone, here = native.codes(), slice(whole.start[r], whole.start[r + 1])
        assert torch.equal(alone.latent, whole.latent[here])
        assert torch.equal(alone.z, whole.z[here])


def test_without_a_library_there_is_a_sentence(monkeypatch):
    monkeypatch.setenv("FEWFIRE_ISA", "none")
    with pytest.raises(RuntimeError, match="there are no compiled kernels: FEWFIRE_ISA is none"):
        NativeKernels()
