"""The engines that step on sparse codes do what autograd does, or refuse with a sentence."""

import math

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire.activations import Activation
from fewfire.contracts import Batch, Job, Optimizer, TrainState
from fewfire.engines import AutogradEngine, FusedEngine, NativeEngine, choose, sparse
from fewfire.kernels import loading, native_missing
from fewfire.terms import Term

needs_native = pytest.mark.skipif(native_missing() is not None, reason=str(native_missing()))
NATIVE = pytest.param(NativeEngine, marks=needs_native, id="native")
each_engine = pytest.mark.parametrize("engine", [NATIVE, pytest.param(FusedEngine, id="fused")])

LATENTS, WIDTH, N_ROWS, LR = 64, 24, 50, 1e-3
TOLERANCE = 2e-5
"""of parameters after 20 steps, each of up to 1e-3"""
DEAD = (3, 17, 18, 60)

TOPK = {"name": "topk", "k": 5}
BATCHTOPK = {"name": "batchtopk", "k": 4.5}
JUMPRELU = {"name": "jumprelu", "threshold": 0.6, "bandwidth": 0.4}
ACTIVATIONS = {"topk": TOPK, "batchtopk": BATCHTOPK, "jumprelu": JUMPRELU, "relu": "relu"}
each_activation = pytest.mark.parametrize("activation", ["topk", "batchtopk", "jumprelu"])

L1 = {"name": "l1", "weight": 0.05}
L0 = {"name": "l0_penalty", "weight": 0.1}
MATRYOSHKA = {"name": "matryoshka_mse", "prefixes": [4, 32]}
OBJECTIVES = {
    "mse": ["mse"],
    "weighed": [{"name": "mse", "weight": 0.3}, L1],
    "matryoshka": [MATRYOSHKA],
    "auxk": ["mse", "auxk"],
    "auxk of 3": ["mse", {"name": "auxk", "k_aux": 3, "weight": 2.0}],
    "everything": [L1, MATRYOSHKA, "auxk"],
    "l0": ["mse", L0],
    "l0 and everything": [L0, "auxk", MATRYOSHKA, L1],
}
COMBINATIONS = [
    (activation, objective)
    for activation in ("topk", "batchtopk", "jumprelu")
    for objective in OBJECTIVES
    if activation == "jumprelu" or not objective.startswith("l0")
]


def make(kind, activation, objective=("mse",), *, d_out=None, unit_norm=True, **optimizer):
    """An engine and its model. The encoder is not the decoder's copy: many a gradient would be 0 but for rounding."""
    network = {"name": "linear", "unit_norm": unit_norm}
    model = ff.Autoencoder(WIDTH, LATENTS, ACTIVATIONS[activation], network=network, d_out=d_out, seed=5)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for p in (model.encoder.W_enc, model.encoder.b_enc, model.decoder.b_dec):
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    terms = OBJECTIVES[objective] if isinstance(objective, str) else objective
    job = Job(model, tuple(Term.from_config(t) for t in terms), Optimizer(**optimizer))
    assert kind.refuses(job) is None
    return kind(job)


def batch(step, n=N_ROWS, d_out=None):
    generator = np.random.default_rng(step)
    x_in = torch.from_numpy(generator.normal(size=(n, WIDTH)).astype(np.float32)) * 0.5
    x = x_in if d_out is None else torch.from_numpy(generator.normal(size=(n, d_out)).astype(np.float32))
    return Batch(x_in, x, torch.arange(100, 100 + n))


def state(step=0, lr=LR):
    since = torch.zeros(LATENTS, dtype=torch.int64)
    since[list(DEAD)] = 10_000
    return TrainState(step, 0, since, lr, dead_after=1000)


def side_by_side(ours, truth, steps, **data):
    """Both take the steps, and report the same; then how far their parameters are apart, and their moments."""
    for step, n in enumerate(steps):
        made = batch(step, n, **data)
        here, there = (e.step(made, state(step)) for e in (ours, truth))
        assert here.bad_rows is None
        assert here.fired.dtype == torch.bool
        assert torch.equal(here.fired, there.fired)
        assert list(here.scalars) == list(there.scalars)
        for name, value in there.scalars.items():
            assert float(here.scalars[name]) == pytest.approx(float(value), rel=1e-4), name
            assert here.scalars[name].dtype == value.dtype
    return difference(ours, truth)


def difference(a, b):
    a, b = a.model.state_dict(), b.model.state_dict()
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def bits(engine):
    tensors = {**engine.model.state_dict(), **{f"engine/{k}": v for k, v in engine.state_dict().items()}}
    return {name: t.detach().clone() for name, t in tensors.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------ as autograd


@each_engine
@pytest.mark.parametrize(("activation", "objective"), COMBINATIONS)
@pytest.mark.parametrize("more", [{}, {"clip_norm": 0.05}, {"d_out": 9}, {"unit_norm": False}], ids=str)
def test_twenty_steps_as_autograd_makes_them(engine, activation, objective, more):
    ours, truth = (make(kind, activation, objective, **more) for kind in (engine, AutogradEngine))
    before = bits(truth)
    data = {"d_out": more["d_out"]} if "d_out" in more else {}
    assert side_by_side(ours, truth, [N_ROWS] * 15 + [1, 7, 200, 33, 32], **data) < TOLERANCE
    after = bits(truth)
    moved = [name for name, _ in truth.model.named_parameters()]
    assert all((before[name] != after[name]).any() for name in moved), "else nothing is compared"


@each_engine
@pytest.mark.parametrize("objective", ["auxk", "auxk of 3", "everything"])
@pytest.mark.parametrize("smallest", [0, 1 << 60], ids=["by products", "by codes"])
def test_dead_latents_revive_either_way(engine, objective, smallest, monkeypatch):
    monkeypatch.setattr(sparse, "SMALL_PRODUCT", smallest)
    ours, truth = (make(kind, "topk", objective) for kind in (engine, AutogradEngine))
    assert side_by_side(ours, truth, [N_ROWS] * 10) < TOLERANCE
    alive = state()
    alive.since_fired.zero_()
    for e in (ours, truth):  # nothing of the last step's revival may join this one
        e.step(batch(11), alive)
    assert difference(ours, truth) < TOLERANCE


@each_engine
@each_activation
def test_the_first_gradient_is_autograds(engine, activation):
    """Adam hides how large a gradient is; its first average is a tenth of it."""
    ours, truth = (make(kind, activation, ["mse", L1, "auxk"]) for kind in (engine, AutogradEngine))
    side_by_side(ours, truth, [N_ROWS])
    for name, average in truth.state_dict().items():
        assert (ours.state_dict()[name] - average).abs().max() <= 1e-5 * average.abs().max(), name


@each_engine
@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
@pytest.mark.parametrize("k", [1, 2, LATENTS])
def test_few_and_all(engine, activation, k):
    ours, truth = (make(kind, activation, "everything") for kind in (engine, AutogradEngine))
    for e in (ours, truth):
        e.model.activation.k = k
    assert side_by_side(ours, truth, [N_ROWS] * 10) < TOLERANCE


@each_engine
@pytest.mark.parametrize("objective", ["mse", "weighed", "matryoshka"])
@pytest.mark.parametrize("less", [0.0, 1.1], ids=["crowded", "few fire"])
def test_relu(engine, objective, less):
    ours, truth = (make(kind, "relu", objective) for kind in (engine, AutogradEngine))
    for e in (ours, truth):
        with torch.no_grad():
            e.model.encoder.b_enc.sub_(less)
    assert side_by_side(ours, truth, [N_ROWS] * 15 + [1, 7, 200, 33, 32]) < TOLERANCE
    assert (truth.step(batch(99), state()).scalars["l0"] < 0.1 * LATENTS) == (less > 0)


@each_engine
@each_activation
def test_hardly_anything_fires(engine, activation):
    """Fewer than k of a row are above 0, and nothing of some batches."""
    less = 0.9 if activation == "jumprelu" else 1.4
    ours, truth = (make(kind, activation, "everything") for kind in (engine, AutogradEngine))
    for e in (ours, truth):
        with torch.no_grad():
            e.model.encoder.b_enc.sub_(less)
    assert side_by_side(ours, truth, [N_ROWS] * 5 + [1] * 10) < TOLERANCE
    assert 0 < truth.step(batch(99), state()).scalars["l0"] < 4


@each_engine
def test_thresholds_stay_at_0_or_above(engine):
    ours, truth = (make(kind, "jumprelu", ["mse"]) for kind in (engine, AutogradEngine))
    for e in (ours, truth):
        e.model.activation.threshold.data.fill_(1e-4)
    assert side_by_side(ours, truth, [N_ROWS] * 5) < TOLERANCE
    threshold = ours.model.activation.threshold.detach()
    assert (threshold >= 0).all()
    assert (threshold == 0).any()


@each_engine
@each_activation
def test_whatever_changes_between_steps_is_read_again(engine, activation):
    ours, truth = (make(kind, activation, [MATRYOSHKA, L1]) for kind in (engine, AutogradEngine))
    for k, weight, prefixes in ((5, 0.05, [4]), (9, 0.3, [0.1, 0.5]), (2, 0.0, [64]), (3.0, 0.1, [1, 2, 3])):
        for e in (ours, truth):
            e.terms["l1"].weight, e.terms["matryoshka_mse"].prefixes = weight, prefixes
            with torch.no_grad():
                e.model.encoder.b_enc[list(DEAD)] += 0.1
            if activation == "jumprelu":
                e.model.activation.threshold.data += 0.05
            else:
                e.model.activation.k = k
        assert side_by_side(ours, truth, [N_ROWS] * 2) < TOLERANCE
    rested = bits(ours)
    ours.step(batch(0), state(lr=0.0))
    assert all(torch.equal(rested[name], t) for name, t in ours.model.named_parameters() if "W_dec" not in name)


@each_engine
def test_terms_that_weigh_nothing_or_look_at_the_corruption(engine):
    ours, truth = (make(kind, "topk", ["mse", L1, "auxk"]) for kind in (engine, AutogradEngine))
    for weight, intact in ((1.0, 0.5), (0.0, 1.0), (1.0, 1.0)):
        made = batch(0)
        made = Batch(made.x_in, made.x, made.rows, made.x > 0.1)
        for e in (ours, truth):
            e.terms["mse"].weight, e.terms["mse"].intact = weight, intact
        here, there = (e.step(made, state()) for e in (ours, truth))
        assert float(here.scalars["loss"]) == pytest.approx(float(there.scalars["loss"]), rel=1e-5)
    assert difference(ours, truth) < TOLERANCE


@each_engine
def test_rows_of_any_shape(engine):
    """As of pictures."""

    def made(kind):
        model = ff.Autoencoder((2, 3, 4), LATENTS, TOPK, seed=5)
        return kind(Job(model, (ff.MSE(), ff.AuxK())))

    ours, truth = made(engine), made(AutogradEngine)
    for step in range(3):
        x = batch(step).x.unflatten(1, (2, 3, 4))
        reports = [e.step(Batch(x, x, torch.arange(N_ROWS)), state(step)) for e in (ours, truth)]
        assert torch.equal(reports[0].fired, reports[1].fired)
    assert difference(ours, truth) < TOLERANCE


@each_engine
def test_reports_of_earlier_steps_stay_as_they_were(engine):
    e = make(engine, "batchtopk", "everything")
    first = e.step(batch(0), state())
    kept = {name: float(v) for name, v in first.scalars.items()}, first.fired.clone()
    for step in range(1, 4):
        e.step(batch(step), state(step))
    assert {name: float(v) for name, v in first.scalars.items()} == kept[0]
    assert torch.equal(first.fired, kept[1])


@needs_native
@each_activation
def test_threads_change_no_bit(activation):
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            e = make(NativeEngine, activation, "everything", clip_norm=0.05)
            for step in range(5):
                e.step(batch(step, 300), state(step))
            runs.append(bits(e))
    finally:
        torch.set_num_threads(before)
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])


# ------------------------------------------------------------------------------------------ not finite


DAMAGE = {
    "nan": {(2, 1): math.nan},
    "infinities": {(2, 1): math.inf, (7, 0): -math.inf},
    "overflow": {(4, 3): 1e25},  # each row is finite, their squared error is not
}


@each_engine
@each_activation
@pytest.mark.parametrize("where", ["x_in", "x", "both"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_step_that_is_not_finite_changes_nothing(engine, activation, where, damage):
    ours, truth = (make(kind, activation, "everything") for kind in (engine, AutogradEngine))
    assert side_by_side(ours, truth, [N_ROWS] * 2) < TOLERANCE
    before = bits(ours)
    parts = {name: batch(5).x.clone() for name in ("x_in", "x")}
    for name, x in parts.items():
        for at, value in DAMAGE[damage].items() if where in (name, "both") else ():
            x[at] = value
    bad = Batch(parts["x_in"], parts["x"], batch(5).rows)
    named = truth.step(bad, state()).bad_rows
    report = ours.step(bad, state())
    assert report.bad_rows is not None
    assert torch.equal(report.bad_rows, named)
    assert damage == "overflow" or named.tolist() == [100 + row for row, _ in DAMAGE[damage]]
    assert not report.fired.any()
    assert same(bits(ours), before)
    if activation == "batchtopk":
        assert {"activation.threshold", "activation.seen"} <= before.keys()
        assert int(before["activation.seen"]) == 2
    assert side_by_side(ours, truth, [N_ROWS] * 2) < TOLERANCE, "nor does it linger"


@each_engine
@each_activation
def test_pre_activations_that_overflow(engine, activation):
    """Of a finite row, with products of both signs: infinity less infinity. The target is another, and finite."""
    e = make(engine, activation, d_out=3)
    with torch.no_grad():
        e.model.encoder.W_enc.mul_(20)
    made = batch(0, d_out=3)
    made.x_in[2] = made.x_in[2].sign() * 3e38
    before = bits(e)
    assert e.step(made, state()).bad_rows.tolist() == [102]
    assert same(bits(e), before)


@each_engine
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_gradients_whose_squares_overflow_under_a_finite_loss(engine, clip_norm):
    ours, truth = (
        make(kind, "topk", d_out=3, unit_norm=False, clip_norm=clip_norm) for kind in (engine, AutogradEngine)
    )
    made = batch(0, d_out=3)
    made.x_in.mul_(1e37), made.x.mul_(1e17)
    for e in (ours, truth):
        with torch.no_grad():
            e.model.encoder.W_enc.mul_(1e-17), e.model.decoder.W_dec.mul_(1e-20)
        before = bits(e)
        report = e.step(made, state())
        assert math.isfinite(report.scalars["loss"])
        assert same(bits(e), before)
        assert torch.equal(report.bad_rows, made.rows)


# ------------------------------------------------------------------------------------------ resuming


def run(engine, steps):
    for step in steps:
        engine.step(batch(step), state(step))
    return engine


def resumed(kind, engine, *how, **more):
    """A new engine with the parameters and the state of another."""
    new = make(kind, *how, **more)
    new.model.load_state_dict(engine.model.state_dict())
    new.load_state_dict({name: t.clone() for name, t in engine.state_dict().items()})
    return new


@pytest.mark.parametrize(
    "kinds",
    [(NativeEngine, AutogradEngine), (FusedEngine, AutogradEngine), (NativeEngine, FusedEngine)],
    ids=lambda k: "-".join(e.name for e in k),
)
@pytest.mark.parametrize("turned", [False, True])
@each_activation
def test_one_engine_goes_on_from_another(kinds, turned, activation):
    if NativeEngine in kinds and native_missing():
        pytest.skip(native_missing())
    first, second = reversed(kinds) if turned else kinds
    how = (activation, ["mse", "auxk", L1])
    whole = run(make(first, *how), range(20))
    half = run(make(first, *how), range(10))
    crossed = run(resumed(second, half, *how), range(10, 20))
    assert difference(whole, crossed) < TOLERANCE
    assert crossed.state_dict().keys() == whole.state_dict().keys()
    assert {int(t) for name, t in crossed.state_dict().items() if name.startswith("step.")} == {20}


@each_engine
@each_activation
def test_a_new_engine_goes_on_with_the_same_bits(engine, activation):
    how = (activation, ["mse", "auxk", L1])
    whole = run(make(engine, *how, clip_norm=0.5), range(12))
    half = run(make(engine, *how, clip_norm=0.5), range(6))
    assert same(bits(run(resumed(engine, half, *how, clip_norm=0.5), range(6, 12))), bits(whole))


@each_engine
@pytest.mark.parametrize("hint", [None, 0.0, 1e-30, 0.01, 2.0, 1e30])
def test_no_bit_depends_on_the_hint(engine, hint):
    usual, other = (run(make(engine, "batchtopk", ["mse", "auxk"]), range(2)) for _ in range(2))
    assert usual.hint > 0
    other.hint = hint
    assert torch.equal(usual.step(batch(2), state()).fired, other.step(batch(2), state()).fired)
    assert same(bits(usual), bits(other))


# ------------------------------------------------------------------------------------------ choosing


def job(activation=TOPK, terms=("mse",), *, change=None, optimizer="adam", products="float32", **more):
    model = ff.Autoencoder(4, 6, activation, **more)
    if change is not None:
        change(model)
    return Job(model, tuple(Term.from_config(t) for t in terms), Optimizer(optimizer), products)


def strided(model):
    model.encoder.W_enc = torch.nn.Parameter(torch.randn(4, 6, generator=torch.Generator()).T)


ONE_FIT = "only with one of mse and matryoshka_mse, and one term of a kind"
LEARNED = "only weights, biases and thresholds, all of them learned"
WATCHED = "only models without hooks or replaced methods"
REFUSED = {
    "deep": ({"network": {"name": "mlp", "hidden": [5]}}, "only linear networks"),
    "output": ({"network": {"name": "linear", "output": "sigmoid"}}, "only linear networks"),
    "tied": ({"network": {"name": "linear", "tied": True}}, "only linear networks whose weights are not tied"),
    "sigmoid": ({"activation": "sigmoid"}, "only topk, batchtopk, jumprelu and relu"),
    "gated": ({"activation": "gated"}, "only topk, batchtopk, jumprelu and relu"),
    "relu, revived": ({"activation": "relu", "terms": ["mse", "auxk"]}, "only relu without auxk"),
    "frozen": ({"change": lambda m: m.encoder.W_enc.requires_grad_(False)}, LEARNED),
    "frozen threshold": ({"activation": JUMPRELU, "change": lambda m: m.activation.requires_grad_(False)}, LEARNED),
    "more": ({"change": lambda m: m.activation.register_parameter("gain", m.decoder.b_dec)}, LEARNED),
    "strided": ({"change": strided}, LEARNED),
    "float64": ({"dtype": torch.float64}, "only float32 on the CPU"),
    "bfloat16": ({"dtype": torch.bfloat16}, "only float32 on the CPU"),
    "elsewhere": ({"change": lambda m: m.to("meta")}, "only float32 on the CPU"),
    "hook": ({"change": lambda m: m.encoder.register_forward_hook(print)}, WATCHED),
    "hook of a parameter": ({"change": lambda m: m.decoder.W_dec.register_hook(print)}, WATCHED),
    "method": ({"change": lambda m: setattr(m.activation, "forward", torch.relu)}, WATCHED),
    "lbfgs": ({"optimizer": "lbfgs"}, "only adam"),
    "products in bfloat16": ({"products": "bfloat16"}, "only float32"),
    "no fit": ({"terms": ["l1"]}, ONE_FIT),
    "two fits": ({"terms": ["mse", "matryoshka_mse"]}, ONE_FIT),
    "two of a kind": ({"terms": ["mse", "l1", "l1"]}, ONE_FIT),
    "decay": ({"terms": ["mse", "weight_decay"]}, "only the terms mse, matryoshka_mse, auxk and l1"),
    "l0 of topk": ({"terms": ["mse", "l0_penalty"]}, "only the terms mse, matryoshka_mse, auxk and l1"),
    "kl of jumprelu": (
        {"activation": JUMPRELU, "terms": ["mse", "kl"]},
        "only the terms mse, matryoshka_mse, auxk and l0_penalty, l1",
    ),
    "norms": ({"terms": ["mse", {"name": "l1", "by_decoder_norm": True}]}, "only l1 without by_decoder_norm"),
    "target": (
        {"activation": JUMPRELU, "terms": ["mse", {"name": "l0_penalty", "target": 2.0}]},
        "only l0_penalty without target",
    ),
}


@each_engine
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(engine, case):
    how, why = REFUSED[case]
    assert engine.refuses(job(**how)) == why


@pytest.fixture
def families(monkeypatch):
    """What a test adds to them is gone afterwards."""
    for family in (Activation, Term):
        monkeypatch.setattr(family, "registry", dict(family.registry))


def test_subclasses_go_to_another_engine(families):
    class Quieter(ff.TopK, name="quieter"):
        pass

    class Half(ff.MSE, name="half"):
        pass

    class Aux(ff.AuxK, name="aux"):
        pass

    assert isinstance(choose(job(Quieter(2)))[0], AutogradEngine)
    assert FusedEngine.refuses(job(terms=[Half()])) == ONE_FIT
    assert "only the terms" in FusedEngine.refuses(job(terms=["mse", Aux()]))


def trainer(rows, activation=TOPK, n_latents=LATENTS, **settings):
    model = ff.Autoencoder(rows.shape[1], n_latents, activation)
    config = ff.TrainConfig(**{"steps": 20, "batch_size": 32, "log_every": 1, **settings})
    return ff.Trainer(model, rows, config=config, progress=False)


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
@needs_native
@each_activation
def test_auto_is_native(rows, activation):
    chosen = trainer(rows, ACTIVATIONS[activation])
    assert isinstance(chosen.engine, NativeEngine)
    assert chosen.fit()[0]["engine"] == f"native {loading.isa()} (the fastest for this model)"


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
def test_without_a_library_the_log_says_so(rows, monkeypatch):
    monkeypatch.setenv("FEWFIRE_ISA", "none")
    chosen = trainer(rows, n_latents=4096, steps=2)
    assert isinstance(chosen.engine, FusedEngine)
    assert chosen.fit()[0]["engine"] == "fused (native: FEWFIRE_ISA is none)"
    small = trainer(rows)
    assert isinstance(small.engine, AutogradEngine)
    assert "fused: only encoders of 32,768 weights or more" in small.fit()[0]["engine"]
    with pytest.raises(ValueError, match="asked for does not take this job. native: FEWFIRE_ISA is none"):
        trainer(rows, engine="native")


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
@each_engine
@each_activation
def test_training_by_name_is_training_by_autograd(rows, engine, activation):
    """With everything that Trainer does between steps: schedules, lifted biases, a corruption, a validation."""
    settings = {"validation_fraction": 0.1, "dead_after": 64, "clip_norm": 1.0}
    if activation != "jumprelu":
        settings["schedules"] = {"activation.k": [[0, 12], [0.5, 4]]}
    logs = {}
    for name in (engine.name, "autograd"):
        logs[name] = trainer(rows, ACTIVATIONS[activation], engine=name, **settings).fit()
        said = f"{name} {loading.isa()}" if name == "native" else name
        assert logs[name][0]["engine"] == f"{said} (asked for)"
    ours, truth = logs.values()
    assert [record.keys() for record in ours] == [record.keys() for record in truth]
    for here, there in zip(ours[1:], truth[1:], strict=True):
        for name in here.keys() & {"loss", "l0", "mse", "auxk", "l0_penalty", "dead", "validation/loss"}:
            assert here[name] == pytest.approx(there[name], rel=1e-3, abs=1e-6), name


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
@needs_native
def test_a_run_resumed_with_another_engine_says_so_in_its_log(rows, tmp_path, capsys):
    class Cut(Exception):
        pass

    def run(engine, stop=None, **kept):
        model = ff.Autoencoder(rows.shape[1], 64, ff.TopK(4))
        config = ff.TrainConfig(steps=20, batch_size=32, checkpoint_every=5, log_every=5, engine=engine)
        trained = ff.Trainer(model, rows, config=config, folder=tmp_path, **kept)
        if stop is None:
            return trained.fit(resume=True)
        step = trained.engine.step

        def cut(batch, state):
            if state.step == stop:
                raise Cut
            return step(batch, state)

        trained.engine.step = cut
        with pytest.raises(Cut):
            trained.fit(resume=True)
        return trained

    run("auto", stop=7, progress=False)
    run("auto", stop=12, progress=False)
    lines = run("autograd")
    native = f"native {loading.isa()} (the fastest for this model)"
    said = [(line["step"], line["engine"]) for line in lines if "engine" in line]
    assert said == [(0, native), (10, "autograd (asked for)")]
    assert f"from step 10 on the engine is autograd (asked for); before, it was {native}" in capsys.readouterr().err
    finished = run("fused", progress=False)
    assert [line for line in finished if "engine" in line] == [line for line in lines if "engine" in line]


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
@each_engine
def test_a_weight_that_nobody_read_and_that_is_not_finite_is_named(rows, engine):
    """A decoder row of a latent that never fires takes part in no sum."""
    model = ff.Autoencoder(rows.shape[1], 64, ff.TopK(4))
    model.encoder.b_enc.data[17] = -1e6
    model.decoder.W_dec.data[17, 2] = math.nan
    config = ff.TrainConfig(steps=3, batch_size=32, engine=engine.name)
    with pytest.raises(ff.TrainingError, match=r"not finite after step 3 \(decoder.W_dec\[17, \d+\] is nan\)"):
        ff.Trainer(model, rows, config=config, progress=False).fit()
