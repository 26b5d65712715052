"""Every engine does the step that a person would work out by hand, or refuses with a sentence."""

import math

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire import engines, rng
from fewfire.contracts import Batch, Engine, Job, Optimizer, TrainState
from fewfire.engines import ENGINES, AutogradEngine, DenseEngine, choose
from fewfire.engines.autograd import labelled
from fewfire.terms import Term

RATE = 0.05
BETAS = (0.9, 0.999)

each_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)


def batch(n=9, width=4, seed=0, first_row=100):
    x = torch.from_numpy(np.random.default_rng(seed).random((n, width)))
    return Batch(x, x, torch.arange(first_row, first_row + n))


def state(n_latents, step=0):
    since = torch.zeros(n_latents, dtype=torch.int64)
    return TrainState(step=step, samples=0, since_fired=since, lr=RATE, dead_after=1000)


def sigmoid_model():
    network = {"name": "linear", "output": "sigmoid"}
    return ff.Autoencoder(4, 5, "sigmoid", network=network, dtype=torch.float64, seed=3)


def topk_model(**more):
    return ff.Autoencoder(4, 6, {"name": "topk", "k": 2}, dtype=torch.float64, **more)


def make(engine, model, terms, **optimizer):
    job = Job(model, tuple(Term.from_config(t) for t in terms), Optimizer(**optimizer))
    refusal = engine.refuses(job)
    if refusal is not None:
        pytest.skip(refusal)
    return engine(job)


def bits(model, engine):
    tensors = {**model.state_dict(), **{f"engine/{k}": v for k, v in engine.state_dict().items()}}
    return {name: t.detach().clone() for name, t in tensors.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def gradient_of(engine, betas=BETAS):
    """What the first step of Adam was given: its average is (1 - beta1) times that."""
    return {
        name.removeprefix("exp_avg."): t.numpy() / (1 - betas[0])
        for name, t in engine.state_dict().items()
        if name.startswith("exp_avg.")
    }


def by_hand(p, x, rho=0.05, beta=3.0, lam=1e-2):
    """Loss and gradients of 1/2 MSE + beta KL + lam weight decay, with the chain rule written out."""

    def logistic(z):
        return 1 / (1 + np.exp(-z))

    n = len(x)
    a = logistic(x @ p["encoder.W_enc"].T + p["encoder.b_enc"])
    y = logistic(a @ p["decoder.W_dec"] + p["decoder.b_dec"])
    mean = a.mean(0)
    kl = (rho * np.log(rho / mean) + (1 - rho) * np.log((1 - rho) / (1 - mean))).sum()
    decay = (p["encoder.W_enc"] ** 2).sum() / 2 + (p["decoder.W_dec"] ** 2).sum() / 2
    mse = ((y - x) ** 2).sum() / n
    delta_out = (y - x) / n * y * (1 - y)
    delta_kl = beta * (-rho / mean + (1 - rho) / (1 - mean)) / n
    delta_in = (delta_out @ p["decoder.W_dec"].T + delta_kl) * a * (1 - a)
    gradients = {
        "encoder.W_enc": delta_in.T @ x + lam * p["encoder.W_enc"],
        "encoder.b_enc": delta_in.sum(0),
        "decoder.W_dec": a.T @ delta_out + lam * p["decoder.W_dec"],
        "decoder.b_dec": delta_out.sum(0),
    }
    return 0.5 * mse + beta * kl + lam * decay, gradients, {"mse": mse, "kl": kl, "weight_decay": decay}


COURSE = [{"name": "mse", "weight": 0.5}, {"name": "kl", "weight": 3.0}, {"name": "weight_decay", "weight": 1e-2}]


@each_engine
def test_the_step_is_the_one_worked_out_by_hand(engine):
    model = sigmoid_model()
    engine = make(engine, model, COURSE)
    p = {n: t.detach().numpy().copy() for n, t in model.named_parameters()}
    m = {n: np.zeros_like(t) for n, t in p.items()}
    v = {n: np.zeros_like(t) for n, t in p.items()}
    for t in range(1, 6):
        b = batch(seed=t)
        loss, gradients, terms = by_hand(p, b.x.numpy())
        report = engine.step(b, state(5, step=t - 1))
        assert report.bad_rows is None
        assert float(report.scalars["loss"]) == pytest.approx(loss, rel=1e-12)
        for name, value in terms.items():
            assert float(report.scalars[name]) == pytest.approx(value, rel=1e-12), "before its weight"
        for name, g in gradients.items():
            m[name] = BETAS[0] * m[name] + (1 - BETAS[0]) * g
            v[name] = BETAS[1] * v[name] + (1 - BETAS[1]) * g * g
            update = (m[name] / (1 - BETAS[0] ** t)) / (np.sqrt(v[name] / (1 - BETAS[1] ** t)) + 1e-8)
            p[name] = p[name] - RATE * update
        for name, parameter in model.named_parameters():
            assert np.abs(parameter.detach().numpy() - p[name]).max() < 1e-11, (t, name)


@each_engine
def test_what_is_reported_as_fired_fired(engine):
    model = topk_model()
    b = batch()
    active = model.activation.active(model.encode(b.x))
    report = make(engine, model, ["mse"]).step(b, state(6))
    assert torch.equal(report.fired, active.any(0))
    assert float(report.scalars["l0"]) == pytest.approx(active.sum().item() / len(b.rows))


@each_engine
def test_weights_k_and_rate_are_read_at_every_step(engine):
    model = topk_model()
    engine = make(engine, model, ["mse", {"name": "l1", "weight": 0.0}])
    s = state(6)
    plain = float(engine.step(batch(), s).scalars["loss"])
    engine.terms["l1"].weight = 10.0 if hasattr(engine, "terms") else pytest.skip("keeps its terms elsewhere")
    model.activation.k = 4
    before = bits(model, engine)
    s.lr = 0.0
    report = engine.step(batch(), s)
    assert float(report.scalars["loss"]) > plain
    assert float(report.scalars["l0"]) > 2
    for name in ("encoder.W_enc", "decoder.b_dec"):
        assert torch.equal(model.state_dict()[name], before[name]), "a rate of 0 must not move anything"


# ------------------------------------------------------------------------------------------ not finite


@each_engine
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ({(2, 1): math.nan}, [102]),
        ({(2, 1): math.inf, (7, 0): -math.inf}, [102, 107]),
        ({(4, 3): 1e200}, list(range(100, 109))),  # each row is finite, their squared error is not
    ],
    ids=["nan", "infinities", "overflow"],
)
def test_a_step_that_is_not_finite_changes_nothing(engine, optimizer, damage, named):
    model = ff.Autoencoder(4, 5, "sigmoid", dtype=torch.float64)
    engine = make(engine, model, COURSE, name=optimizer)
    committed = []
    model.activation.commit = lambda out, state: committed.append(out)
    engine.step(batch(seed=1), state(5))
    assert len(committed) == 1
    before = bits(model, engine)
    assert any(name.startswith("engine/") for name in before)
    x = batch().x.clone()
    for where, value in damage.items():
        x[where] = value
    report = engine.step(Batch(x, x, torch.arange(100, 109)), state(5))
    assert report.bad_rows.tolist() == named
    assert not report.fired.any()
    assert same(bits(model, engine), before)
    assert len(committed) == 1
    engine.step(batch(seed=2), state(5))
    assert all(torch.isfinite(t).all() for t in bits(model, engine).values()), "nor does it linger"


@each_engine
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_a_gradient_that_is_not_finite_under_a_finite_loss(engine, optimizer):
    class Spike:
        name, weight, needs = "spike", 1.0, frozenset()

        def __call__(self, model, out, state):
            return (out.recon - out.recon.detach()).abs().sqrt().sum()  # 0, with a slope of infinity times 0

    model = ff.Autoencoder(4, 5, "sigmoid", dtype=torch.float64)
    job = Job(model, (ff.MSE(), Spike()), Optimizer(optimizer))
    if engine.refuses(job) is not None:
        pytest.skip(engine.refuses(job))
    engine = engine(job)
    before = bits(model, engine)
    report = engine.step(batch(), state(5))
    assert math.isfinite(float(report.scalars["loss"]))
    assert report.bad_rows.tolist() == list(range(100, 109))
    assert same(bits(model, engine), before)


@each_engine
def test_a_bad_target_is_named_too(engine):
    model = topk_model()
    b = batch()
    target = b.x.clone()
    target[3, 0] = math.nan
    report = make(engine, model, ["mse"]).step(Batch(b.x, target, b.rows), state(6))
    assert report.bad_rows.tolist() == [103]


@each_engine
def test_a_bad_row_is_named_alone_though_a_corruption_spread_it(engine):
    x = batch().x.clone()
    x[5, 2] = math.nan
    noise = ff.SaltAndPepper(0.9)(x, rng.generator(0))  # low and high are the batch's: NaN everywhere
    assert torch.isnan(noise).any(1).sum() > 1
    report = make(engine, topk_model(), ["mse"]).step(Batch(noise, x, batch().rows), state(6))
    assert report.bad_rows.tolist() == [105]


# ------------------------------------------------------------------------------------------ the details


@each_engine
def test_clip_norm(engine):
    def norm(clip):
        e = make(engine, sigmoid_model(), COURSE, clip_norm=clip)
        e.step(batch(), state(5))
        return math.sqrt(sum((g**2).sum() for g in gradient_of(e).values())), bits(e.model, e)

    whole, free = norm(None)
    assert norm(whole / 10)[0] == pytest.approx(whole / 10, rel=1e-9)
    assert same(norm(whole * 10)[1], free), "a small gradient is left alone, bit for bit"


@each_engine
def test_unit_norm_rows_stay_at_unit_norm(engine):
    model = topk_model()
    assert model.decoder.unit_norm
    engine = make(engine, model, ["mse"])
    for seed in range(20):
        engine.step(batch(seed=seed), state(6, step=seed))
    assert (model.decoder.W_dec.norm(dim=1) - 1).abs().max() < 1e-12


@each_engine
def test_the_gradient_along_a_unit_norm_row_is_gone(engine):
    model = topk_model()
    model.decoder.constrain()  # drawn in float32: not yet of norm 1 in float64
    rows = model.decoder.W_dec.detach().clone().numpy()
    engine = make(engine, model, ["mse"])
    engine.step(batch(), state(6))
    g = gradient_of(engine)["decoder.W_dec"]
    assert np.abs(g).max() > 1e-3
    assert np.abs((g * rows).sum(1)).max() < 1e-12


@each_engine
def test_an_objective_that_is_constant_at_this_step(engine):
    model = topk_model()
    engine = make(engine, model, ["auxk"])  # nothing is dead yet
    before = {name: t.clone() for name, t in model.state_dict().items()}
    report = engine.step(batch(), state(6))
    assert report.bad_rows is None
    assert float(report.scalars["loss"]) == 0
    for name, t in model.state_dict().items():
        assert torch.allclose(t, before[name], rtol=0, atol=1e-7), name  # rows were drawn at norm 1 in float32


@each_engine
def test_frozen_parameters_stay(engine):
    model = sigmoid_model()
    model.encoder.W_enc.requires_grad_(False)
    before = model.encoder.W_enc.detach().clone()
    engine = make(engine, model, ["mse"])
    engine.step(batch(), state(5))
    assert torch.equal(model.encoder.W_enc, before)
    assert not any("W_enc" in name for name in engine.state_dict())


@each_engine
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_state_round_trip(engine, optimizer):
    def run(e, seeds):
        for seed in seeds:
            # L-BFGS sees one batch; Adam several
            e.step(batch(seed=seed if optimizer == "adam" else 0), state(5, step=seed))

    whole = make(engine, sigmoid_model(), COURSE, name=optimizer)
    run(whole, range(8))
    first = make(engine, sigmoid_model(), COURSE, name=optimizer)
    run(first, range(4))
    second = make(engine, sigmoid_model(), COURSE, name=optimizer)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict({name: t.clone() for name, t in first.state_dict().items()})
    assert second.state_dict(), "an empty state proves nothing"
    run(second, range(4, 8))
    assert same(bits(second.model, second), bits(whole.model, whole))


@each_engine
def test_an_engine_is_an_engine(engine):
    assert isinstance(make(engine, topk_model(), ["mse"]), Engine)


# -------------------------------------------------------------------------------------------- choosing


def job(model=None, **optimizer):
    return Job(model or topk_model(), (ff.MSE(),), Optimizer(**optimizer))


class Picky:
    name = "picky"

    def __init__(self, job):
        pass

    @classmethod
    def refuses(cls, job):
        return "only on Sundays"


def test_choose(monkeypatch):
    deep = ff.Autoencoder(4, 5, "sigmoid", network={"name": "mlp", "hidden": [5]})
    engine, why = choose(job(deep))
    assert isinstance(engine, AutogradEngine)
    assert why.startswith("autograd (")
    assert "dense: only linear networks" in why
    assert isinstance(choose(job(sigmoid_model()))[0], DenseEngine)
    assert choose(job(), "autograd")[1] == "autograd (asked for)"
    monkeypatch.setattr(engines, "ENGINES", (Picky, AutogradEngine))
    engine, why = choose(job())
    assert isinstance(engine, AutogradEngine)
    assert why == "autograd (picky: only on Sundays)"
    with pytest.raises(ValueError, match="picky: only on Sundays"):
        choose(job(), "picky")
    with pytest.raises(ValueError, match="unknown engine 'warp'; choose from: auto, picky, autograd"):
        choose(job(), "warp")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "lbfgs"}, "unit norm; give the network unit_norm: false"),
        ({"name": "lbfgs", "clip_norm": 1.0}, "unit norm|clip_norm"),
    ],
)
def test_lbfgs_refuses_what_it_cannot_do(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        choose(job(**settings))


def test_lbfgs_refuses_clipping():
    free = ff.Autoencoder(4, 5, "sigmoid")
    choose(job(free, name="lbfgs"))
    with pytest.raises(ValueError, match="leave clip_norm out"):
        choose(job(free, name="lbfgs", clip_norm=1.0))


def test_terms_that_appear_twice_are_numbered():
    labels = labelled((ff.MSE(), ff.L1(0.1), ff.L1(0.2, by_decoder_norm=True), ff.L1(0.3)))
    assert list(labels) == ["mse", "l1", "l1#2", "l1#3"]
    assert [t.weight for t in labels.values()] == [1.0, 0.1, 0.2, 0.3]


@each_engine
def test_terms_that_appear_twice_both_count(engine):
    model = topk_model()
    report = make(engine, model, ["mse", {"name": "l1", "weight": 0.5}, {"name": "l1", "weight": 2}]).step(
        batch(), state(6)
    )
    s = {name: float(v) for name, v in report.scalars.items()}
    assert s["l1"] == s["l1#2"] > 0
    assert s["loss"] == pytest.approx(s["mse"] + 2.5 * s["l1"], rel=1e-12)


# ------------------------------------------------------------------------------ dense says what autograd says

each_quick_engine = pytest.mark.parametrize("engine", [DenseEngine], ids=lambda e: e.name)

LOGISTIC = {"output": "sigmoid"}
COMBINATIONS = {
    "relu, l1": ("relu", {}, ["mse", {"name": "l1", "weight": 0.1}]),
    "relu, l1, free rows": ("relu", {"unit_norm": False}, ["mse", {"name": "l1", "weight": 0.1}]),
    "relu, auxk": ("relu", {}, ["mse", {"name": "l1", "weight": 0.1}, "auxk"]),
    "relu, tied": ("relu", {"tied": True}, ["mse", {"name": "l1", "weight": 0.1}, "weight_decay", "auxk"]),
    "relu, tied, unit norm": ("relu", {"tied": True, "unit_norm": True}, ["mse", {"name": "l1", "weight": 0.1}]),
    "relu, cross-entropy": ("relu", LOGISTIC, ["bce", {"name": "l1", "weight": 0.1}]),
    "sigmoid, course": ("sigmoid", LOGISTIC, COURSE),
    "sigmoid, cross-entropy": ("sigmoid", LOGISTIC, ["bce", "kl"]),
    "sigmoid, both errors": (
        "sigmoid",
        LOGISTIC,
        ["bce", {"name": "mse", "weight": 0.3}, {"name": "mse", "weight": 2}],
    ),
    "sigmoid, tied": ("sigmoid", {"tied": True, **LOGISTIC}, COURSE),
    "sigmoid, identity": ("sigmoid", {}, [*COURSE, {"name": "l1", "weight": 0.2}]),
    "sigmoid, strong": ("sigmoid", {}, ["mse", {"name": "kl", "weight": 50.0, "rho": 0.97}]),
    "nothing weighs": ("sigmoid", LOGISTIC, [{"name": "bce", "weight": 0.0}, {"name": "mse", "weight": 0.0}]),
    **{
        f"plain {f}": ({"name": "plain", "function": f}, {}, ["mse", {"name": "l1", "weight": 0.1}, "weight_decay"])
        for f in ff.Plain.FUNCTIONS
    },
}


def pair(engine, combination, *, width=7, latents=11, d_out=None, dtype=torch.float32, **optimizer):
    """The same model twice, for the engine and for autograd; skipped where the engine refuses it."""
    activation, network, terms = COMBINATIONS[combination]
    if d_out is not None and network.get("tied"):
        pytest.skip("tied weights need targets as wide as the inputs")

    def one(kind):
        network_ = {"name": "linear", **network}
        model = ff.Autoencoder(width, latents, activation, network=network_, d_out=d_out, dtype=dtype, seed=5)
        return make(kind, model, terms, **optimizer)

    return one(engine), one(AutogradEngine)


def rows(step, n=13, width=7, d_out=None, dtype=torch.float32, scale=1.0):
    generator = np.random.default_rng(step)
    x_in = torch.from_numpy(generator.random((n, width))).to(dtype) * scale
    x = x_in if d_out is None else torch.from_numpy(generator.random((n, d_out))).to(dtype) * scale
    return Batch(x_in, x, torch.arange(n))


def train_side_by_side(engines, shapes, latents, dead=(), start=0, tolerance=1e-4, dead_after=1000, **data):
    """Each engine's parameters after a step a shape; the reports compared on the way."""
    since = torch.zeros(latents, dtype=torch.int64)
    since[list(dead)] = 10_000
    for step, n in enumerate(shapes, start):
        made = rows(step, n, **data)
        s = [TrainState(step, 0, since.clone(), 1e-2, dead_after=dead_after) for _ in engines]
        ours, truth = (e.step(made, each) for e, each in zip(engines, s, strict=True))
        assert list(ours.scalars) == list(truth.scalars)
        for label, value in truth.scalars.items():
            assert float(ours.scalars[label]) == pytest.approx(float(value), rel=tolerance, abs=tolerance), label
        assert (ours.bad_rows is None) == (truth.bad_rows is None)
        assert ours.fired.dtype == torch.bool
        assert torch.equal(ours.fired, truth.fired)
    return [e.model.state_dict() for e in engines]


def difference(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@each_quick_engine
@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.float64, 1e-10)], ids=str)
def test_twenty_steps_as_autograd_makes_them(engine, combination, dtype, tolerance):
    """Adam divides by the gradient's size: at a rate of 0.01, float32 leaves a tenth of a step's length after 20."""
    both = pair(engine, combination, dtype=dtype)
    shapes = [13] * 10 + [5, 40, 1, 13] + [13] * 6
    own = 1e-3 if dtype == torch.float32 else 1e-10
    ours, truth = train_side_by_side(both, shapes, 11, dead=(2, 7), tolerance=own, dtype=dtype)
    assert difference(ours, truth) < tolerance
    assert difference(*(e.state_dict() for e in both)) < max(tolerance, 1e-9) * 100


@each_quick_engine
@pytest.mark.parametrize("combination", ["relu, auxk", "relu, cross-entropy", "sigmoid, course", "plain tanh"])
@pytest.mark.parametrize(
    ("width", "latents", "n", "d_out"),
    [(1, 1, 1, None), (1, 5, 3, None), (33, 1, 2, None), (17, 9, 1, 3), (3, 65, 31, 5)],
)
def test_awkward_shapes(engine, combination, width, latents, n, d_out):
    both = pair(engine, combination, width=width, latents=latents, d_out=d_out, dtype=torch.float64)
    made = train_side_by_side(
        both, [n] * 5, latents, dead=(0,), tolerance=1e-10, width=width, d_out=d_out, dtype=torch.float64
    )
    assert difference(*made) < 1e-10


@each_quick_engine
@pytest.mark.parametrize("combination", ["relu, l1", "sigmoid, identity", "plain identity"])
@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e6, 1e12])
def test_huge_and_tiny_scales(engine, combination, scale):
    both = pair(engine, combination, dtype=torch.float64)
    assert difference(*train_side_by_side(both, [13] * 5, 11, tolerance=1e-9, dtype=torch.float64, scale=scale)) < 1e-8


@each_quick_engine
@pytest.mark.parametrize("logit", [-10_000, -90, -30, 3, 30, 90, 10_000])
def test_a_saturated_kl_is_finite_and_alive(engine, logit):
    both = pair(engine, "sigmoid, course", dtype=torch.float64)
    for e in both:
        with torch.no_grad():
            e.model.encoder.b_enc[:4] = logit
    before = both[0].model.encoder.b_enc.detach().clone()
    made = train_side_by_side(both, [13] * 5, 11, tolerance=1e-9, dtype=torch.float64)
    assert difference(*made) < 1e-9
    assert (both[0].model.encoder.b_enc != before).all()


@each_quick_engine
def test_other_rows_than_the_ones_before_leave_nothing_behind(engine):
    """The memory of a larger batch, and of one that was not finite, is used again."""
    ours, truth = pair(engine, "sigmoid, tied", dtype=torch.float64)
    bad = rows(0, 64, dtype=torch.float64)
    bad.x[50, 3] = math.nan
    for e in (ours, truth):
        assert e.step(bad, state(11)).bad_rows.tolist() == [50]
    assert difference(*train_side_by_side((ours, truth), [64, 3, 64], 11, tolerance=1e-10, dtype=torch.float64)) < 1e-10


@each_quick_engine
def test_reports_of_earlier_steps_stay_as_they_were(engine):
    e, _ = pair(engine, "relu, auxk")
    first = e.step(rows(0), state(11))
    kept = {label: float(v) for label, v in first.scalars.items()}, first.fired.clone()
    for step in range(1, 4):
        e.step(rows(step, scale=9.0), state(11, step))
    assert {label: float(v) for label, v in first.scalars.items()} == kept[0]
    assert torch.equal(first.fired, kept[1])


@each_quick_engine
def test_engines_resume_each_others_checkpoints(engine):
    whole = pair(engine, "relu, tied", dtype=torch.float64, clip_norm=0.5)
    train_side_by_side(whole, [13] * 8, 11, tolerance=1e-9, dtype=torch.float64)
    crossed = pair(engine, "relu, tied", dtype=torch.float64, clip_norm=0.5)
    train_side_by_side(crossed, [13] * 4, 11, tolerance=1e-9, dtype=torch.float64)
    states = [{n: t.clone() for n, t in e.state_dict().items()} for e in crossed]
    for e, other in zip(crossed, reversed(states), strict=True):
        e.load_state_dict(other)
    train_side_by_side(crossed, [13] * 4, 11, start=4, tolerance=1e-9, dtype=torch.float64)
    for a, b in zip(whole, crossed, strict=True):
        assert difference(a.model.state_dict(), b.model.state_dict()) < 1e-10


def test_dense_goes_the_general_way_when_intact_falls():
    """A schedule may come to ask what the corruption chose, at which the engine was not made to look."""
    both = pair(DenseEngine, "relu, l1", dtype=torch.float64)
    s = state(11)
    for step, intact in enumerate((1.0, 0.5, 0.0, 1.0)):
        made = rows(step, dtype=torch.float64)
        made = Batch(made.x_in, made.x, made.rows, made.x > 0.5)
        for e in both:
            e.terms["mse"].intact = intact
        ours, truth = (e.step(made, s) for e in both)
        assert float(ours.scalars["loss"]) == pytest.approx(float(truth.scalars["loss"]), rel=1e-12)
    assert difference(*(e.model.state_dict() for e in both)) < 1e-12
    assert difference(*(e.state_dict() for e in both)) < 1e-10


class MyReLU(ff.ReLU, name="my_relu"):
    pass


class MyMSE(ff.MSE, name="my_mse"):
    pass


@pytest.mark.parametrize(
    ("model", "terms", "more", "why"),
    [
        ({"activation": "topk"}, ["mse"], {}, "only relu, sigmoid and plain units"),
        ({"activation": MyReLU()}, ["mse"], {}, "only relu, sigmoid and plain units"),
        ({"network": {"name": "mlp", "hidden": [5]}}, ["mse"], {}, "only linear networks"),
        ({"dtype": torch.bfloat16}, ["mse"], {}, "only float32 and float64"),
        ({}, ["mse"], {"dtype": "bfloat16"}, "only float32 and float64"),
        ({}, ["mse"], {"optimizer": Optimizer("lbfgs")}, "only adam"),
        ({}, ["mse", "contractive"], {}, "only the terms mse, bce, l1, kl, weight_decay and auxk"),
        ({}, ["my_mse"], {}, "only the terms mse, bce, l1, kl, weight_decay and auxk"),
        ({}, ["weight_decay"], {}, "only with mse or bce"),
        ({}, [{"name": "mse", "intact": 0.5}], {}, "only with intact at 1"),
        ({}, ["mse", {"name": "l1", "by_decoder_norm": True}], {}, "only l1 without by_decoder_norm"),
        ({}, ["bce"], {}, "only bce of output sigmoid"),
        ({"activation": "relu"}, ["mse", "kl"], {}, "only kl of sigmoid units"),
    ],
)
def test_what_dense_refuses(model, terms, more, why):
    model = ff.Autoencoder(4, 5, **{"activation": "sigmoid", **model})
    assert DenseEngine.refuses(Job(model, tuple(Term.from_config(t) for t in terms), **more)) == why


def test_dense_leaves_what_is_watched_or_frozen_to_autograd():
    def refusal(change):
        model = sigmoid_model()
        change(model)
        return DenseEngine.refuses(job(model))

    hooks = "only models without hooks or replaced methods"
    assert refusal(lambda m: None) is None
    assert refusal(lambda m: m.encoder.register_forward_hook(print)) == hooks
    assert refusal(lambda m: m.decoder.W_dec.register_hook(print)) == hooks
    assert refusal(lambda m: setattr(m.activation, "forward", torch.tanh)) == hooks
    assert "learned" in refusal(lambda m: m.encoder.W_enc.requires_grad_(False))
    assert "weights and biases" in refusal(lambda m: m.activation.register_parameter("gain", m.decoder.b_dec))
