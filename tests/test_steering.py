"""Asked for so many latents per row, training gets there; a penalty's weight alone moves the number one way."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire.disk import load_tensors
from fewfire.terms import Term
from fewfire.trainer.steering import Steering
from nursery import children, needs_fork, start

pytestmark = pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")

D_IN, N_LATENTS, STEPS = 24, 64, 400


def make_rows(n=4000, seed=0):
    """(n, 24): about four of 64 directions each, with noise."""
    generator = np.random.default_rng(seed)
    directions = generator.normal(size=(N_LATENTS, D_IN))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = generator.exponential(size=(n, N_LATENTS)) * (generator.random((n, N_LATENTS)) < 0.06)
    return (weights @ directions + 0.02 * generator.normal(size=(n, D_IN))).astype(np.float32)


ROWS = make_rows()


def make(activation, terms=None, folder=None, rows=ROWS, network="linear", **train):
    model = ff.Autoencoder(D_IN, N_LATENTS, activation, network=network, preprocess="standardize")
    settings = {
        "steps": STEPS,
        "batch_size": 128,
        "learning_rate": 3e-3,
        "log_every": 50,
        "checkpoint_every": 0,
        **train,
    }
    return ff.Trainer(model, rows, terms, ff.TrainConfig(**settings), folder=folder, progress=False)


def fires(trainer):
    """What ``target_l0`` counts, of all training rows."""
    if trainer.model.activation.counts == "sum":
        return float(trainer.model.encode(ROWS).sum(1).mean())
    return ff.evaluate(trainer.model, ROWS)["l0"]


CASES = [
    *((a, target, "float32") for a in ("relu", "gated", "jumprelu") for target in (3, 20)),
    *((a, 8, "bfloat16") for a in ("relu", "gated", "jumprelu")),
    *(("sigmoid", target, "float32") for target in (3, 8)),
]


@pytest.mark.parametrize(("activation", "target", "dtype"), CASES)
def test_as_many_fire_as_were_asked_for(activation, target, dtype):
    trainer = make(activation, target_l0=target, dtype=dtype)
    trainer.fit()
    assert fires(trainer) == pytest.approx(target, rel=0.05)
    found = ff.evaluate(trainer.model, ROWS)
    assert found["explained_variance"] > (0.8 if target > 3 else 0.65), "and they say something"
    if activation == "sigmoid":
        assert trainer.terms["kl"].rho != target / N_LATENTS, "the setting moved"
    else:
        assert found["dead_fraction"] < 0.1


def test_the_penalty_holds_the_number_at_the_end():
    """Nothing is left to push: trained further with that weight and without steering, the number stays."""
    trainer = make("relu", target_l0=8)
    trainer.fit()
    more = ff.TrainConfig(steps=200, batch_size=128, learning_rate=1e-3, checkpoint_every=0)
    terms = [ff.MSE(), ff.L1(weight=trainer.terms["l1"].weight)]
    ff.Trainer(trainer.model, ROWS, terms, more, progress=False).fit()
    assert fires(trainer) == pytest.approx(8, rel=0.15)


@pytest.mark.parametrize("weight", [0.05, 30.0])
def test_it_does_not_matter_where_the_weight_starts(weight):
    trainer = make("relu", [ff.MSE(), ff.L1(weight=weight)], target_l0=8)
    trainer.fit()
    assert fires(trainer) == pytest.approx(8, rel=0.06)


def test_of_feature_maps_every_place_counts():
    """A latent at two places of a map is two that fire; the logistic target is shared among all places."""
    network = {"name": "conv", "channels": [6], "kernel": 3, "stride": [2, 1], "latents": "maps"}
    for activation, target in (("relu", 10), ("sigmoid", 20)):
        model = ff.Autoencoder((1, 4, 6), 8, activation, network=network, preprocess="center")
        config = ff.TrainConfig(steps=300, batch_size=64, learning_rate=3e-3, checkpoint_every=0, target_l0=target)
        rows = ROWS[:640].reshape(-1, 1, 4, 6)
        trainer = ff.Trainer(model, rows, config=config, progress=False)
        trainer.fit()
        latents = model.encode(rows).flatten(1)
        assert latents.shape[1] > target > 8
        count = latents.sum(1) if activation == "sigmoid" else (latents != 0).float().sum(1)
        assert float(count.mean()) == pytest.approx(target, rel=0.25), "of places, not of maps"


# ------------------------------------------------------------------------------------------- without it


@pytest.mark.parametrize(
    ("activation", "terms", "weights"),
    [
        ("relu", lambda w: [ff.MSE(), ff.L1(weight=w)], (0.1, 0.3, 1, 3)),
        ("gated", lambda w: [ff.MSE(), ff.L1(weight=w), ff.GatedAux()], (0.1, 0.3, 1, 3)),
        ("jumprelu", lambda w: [ff.MSE(), ff.L0Penalty(weight=w)], (0.1, 1, 3, 10)),
    ],
)
def test_more_weight_fewer_latents(activation, terms, weights):
    found = []
    for weight in weights:
        trainer = make(activation, terms(weight), steps=250)
        trainer.fit()
        found.append(fires(trainer))
    assert all(after < 0.95 * before for before, after in pairwise(found)), found


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("activation", "terms", "train", "words"),
    [
        ("topk", None, {}, "target_l0=8 steers a penalty, and activation 'topk' fires k latents .*; set its k to 8"),
        ("batchtopk", None, {}, "activation 'batchtopk' fires k latents"),
        ("matching_pursuit", None, {}, "activation 'matching_pursuit' fires k latents"),
        ("wta", [ff.MSE(), ff.L1()], {}, "moves thresholds, and activation 'wta' has none .*; use relu, jumprelu or"),
        ("gaussian", [ff.MSE(), ff.KLSparsity()], {}, "moves thresholds, and activation 'gaussian' has none"),
        ("relu", [ff.MSE()], {}, "target_l0 steers one penalty, l1, l0_penalty or kl: .*; got none in mse"),
        ("relu", [ff.MSE(), ff.L1(), ff.L1()], {}, r"steers one penalty.*; got 2 \(l1, l1#2\)"),
        ("jumprelu", [ff.MSE(), ff.L1(), ff.L0Penalty()], {}, r"got 2 \(l1, l0_penalty\)"),
        ("relu", None, {"schedules": {"l1.weight": [(0, 0), (1, 1)]}}, "l1.weight is steered by target_l0; leave it"),
        ("relu", None, {"target_l0": 64}, "target_l0 above 0 and below 64 latents, got 64"),
        ("relu", None, {"target_l0": 100.0}, "target_l0 above 0 and below 64 latents, got 100"),
        ("relu", None, {"target_l0": 0}, "target_l0"),
    ],
)
def test_what_cannot_be_steered_is_refused_in_a_line(activation, terms, train, words):
    with pytest.raises(ValueError, match=words) as refusal:
        make(activation, terms, **{"target_l0": 8, **train})
    assert "\n" not in str(refusal.value)


def test_a_target_that_was_not_reached_is_said():
    """Behind gates, half of the magnitudes are 0 whatever the threshold."""
    trainer = make("gated", target_l0=31, steps=10, learning_rate=0.0)
    with torch.no_grad():
        trainer.model.activation.b_mag.fill_(-1)
    with pytest.warns(ff.SparsityWarning, match=r"target_l0=31 was not reached: it is .* of 64; train longer \(now 10"):
        trainer.fit()
    trainer = make("sigmoid", target_l0=8, steps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit()
    trainer.summary["mean_activation"] = 0.2
    assert "target_l0=8 was not reached: it is 12.8 of 64" in next(trainer.objections())


def test_every_penalty_that_steers_is_here():
    assert {n: t.steers for n, t in Term.registry.items() if t.steers and t.__module__.startswith("fewfire")} == {
        "l1": "weight",
        "l0_penalty": "weight",
        "kl": "rho",
    }


# ------------------------------------------------------------------------------------------- steps


def test_a_step_that_was_skipped_steers_nothing():
    rows = ROWS[:1280].copy()
    rows[5] = np.nan  # one bad batch of ten an epoch
    trainer = make("relu", rows=rows, target_l0=8, steps=20, on_nonfinite="skip")
    seen, inner = [], trainer._step

    def step(batch):
        before = trainer.steering.state(), trainer.model.encoder.b_enc.detach().clone()
        report = inner(batch)
        same = trainer.steering.state() == before[0] and torch.equal(trainer.model.encoder.b_enc, before[1])
        seen.append((report.bad_rows is not None, same))
        return report

    trainer._step = step
    trainer.fit()
    assert trainer.skipped == 2
    assert seen.count((True, True)) == 2
    assert seen.count((False, False)) == 18
    assert fires(trainer) < 20


def test_when_nothing_fires_thresholds_come_down():
    """No margin is above 0 then, and how far to come down is remembered."""
    trainer = make("relu", target_l0=8, steps=120)
    bias, inner, highest = trainer.model.encoder.b_enc, trainer.steering.after, []

    def after(report, batch, state):
        if state.step == 10:
            bias.data.sub_(50)
        inner(report, batch, state)
        highest.append(float(bias.detach().max()))

    trainer.steering.after = after
    trainer.fit()
    assert trainer.steering.reach > 0
    assert highest[60] > highest[11] + 0.1, "a first look came at step 50"
    assert highest[-1] > highest[60] + 0.1


def test_terms_may_be_handed_on_to_the_trainer_that_resumes(tmp_path):
    """Their weight has moved by then; what it was at first is what steering goes from."""
    terms = [ff.MSE(), ff.L1(weight=0.5)]
    whole = make("relu", terms, tmp_path / "whole", target_l0=8, steps=40, checkpoint_every=20)
    whole.fit()
    (tmp_path / "whole" / "checkpoints" / "step-000000040.safetensors").unlink()
    again = make("relu", terms, tmp_path / "whole", target_l0=8, steps=40, checkpoint_every=20)
    again.fit(resume=True)
    assert again.steering.state() == whole.steering.state()


# ------------------------------------------------------------------------------------------- resuming


def steered(activation, folder):
    """Steering and AuxK at work in every part of the run."""
    penalty = ff.L0Penalty(weight=0.05) if activation == "jumprelu" else ff.L1(weight=0.05)
    helpers = [ff.GatedAux()] if activation == "gated" else []
    terms = [ff.MSE(), penalty, ff.AuxK(), *helpers]
    made = make(activation, terms, folder, target_l0=3, steps=60, checkpoint_every=7, log_every=1, dead_after=300)
    inner = made._step

    def step(batch):
        if made.state.step == 2:
            made.model.encoder.b_enc.data[::4] -= 3  # these hardly ever win from here on
        return inner(batch)

    made._step = step
    return made


def killed(tell, activation, folder):
    """Tells when it has made 33 steps, five past a checkpoint, and waits to be killed."""
    made = steered(activation, folder)
    inner = made._step

    def step(batch):
        if made.state.step == 33:
            tell("now")
            while True:
                pass
        return inner(batch)

    made._step = step
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.SparsityWarning)
        made.fit()


@needs_fork
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "gated"])
def test_killed_between_checkpoints_it_goes_on_to_the_same_bits(activation, tmp_path):
    whole = steered(activation, tmp_path / "whole")
    history = whole.fit()
    assert any(record.get("auxk", 0) > 0 for record in history[35:]), "AuxK is alive"
    with children(start(killed, activation, str(tmp_path / "run"))) as (child,):
        assert child.answer() == "now"
    again = steered(activation, tmp_path / "run")
    again.fit(resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    assert again.steering.state() == whole.steering.state()
    last = "checkpoints/step-000000060.safetensors"
    ours, theirs = (load_tensors(tmp_path / run / last)[0] for run in ("whole", "run"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    weights = {r["step"]: r["l1"] for r in history if "l1" in r}
    assert len(set(weights.values())) > 50 or activation == "jumprelu"


def test_a_run_is_not_resumed_with_another_target(tmp_path):
    make("relu", None, tmp_path, target_l0=8, steps=4, checkpoint_every=2).fit()
    (tmp_path / "checkpoints" / "step-000000004.safetensors").unlink()
    with pytest.raises(ValueError, match=r"train.target_l0 was 8.0 and is 9.0"):
        make("relu", None, tmp_path, target_l0=9, steps=4, checkpoint_every=2).fit(resume=True)


@pytest.mark.parametrize(
    "state", [None, [], {}, {"first": 1.0}, {"first": 1, "moved": 0, "push": 0, "reach": math.nan, "value": 1},
              {"first": 1, "moved": 0, "push": 0, "reach": "0", "value": 1}]
)  # fmt: skip
def test_a_state_that_is_none_is_refused(state):
    steering = make("relu", target_l0=8).steering
    before = steering.state()
    with pytest.raises(ValueError, match="expected the state of steering to be numbers first, moved, push, reach, val"):
        steering.restore(state)
    assert steering.state() == before


def test_steering_has_its_own_state():
    """What is saved is all there is."""
    trainer = make("relu", target_l0=8, steps=30)
    trainer.fit()
    state = trainer.steering.state()
    assert all(map(math.isfinite, state.values()))
    fresh = make("relu", target_l0=8, steps=30).steering
    before = {k: v for k, v in vars(fresh).items() if isinstance(v, float)}
    fresh.restore(state)
    after = {k: v for k, v in vars(fresh).items() if isinstance(v, float)}
    assert fresh.state() == state
    assert {k for k in before if before[k] != after[k]} == {"reach", "push", "moved"}
    assert isinstance(fresh, Steering)


# ------------------------------------------------------------------------------------------- bfloat16


@pytest.mark.parametrize(
    "activation", ["topk", "batchtopk", "jumprelu", "gated", "matching_pursuit", "relu", "sigmoid"]
)
def test_products_in_bfloat16_give_nearly_the_same(activation, tmp_path):
    """Parameters, sums and files stay float32."""
    losses, models = {}, {}
    for dtype in ("float32", "bfloat16"):
        trainer = make(activation, dtype=dtype, steps=150)
        seen, inner = [], trainer.engine.step
        trainer.engine.step = lambda b, s, inner=inner, seen=seen: (seen.append(inner(b, s)), seen[-1])[1]
        trainer.fit()
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        assert {t.dtype for t in trainer.engine.state_dict().values()} == {torch.float32}
        losses[dtype] = np.mean([float(report.scalars["loss"]) for report in seen[-30:]])
        models[dtype] = trainer.model
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.04)
    assert losses["bfloat16"] != losses["float32"], "it is another arithmetic"
    ff.save(models["bfloat16"], tmp_path / "model")
    saved, _ = load_tensors(tmp_path / "model" / "model.safetensors")
    floats = {t.dtype for n, t in saved.items() if t.is_floating_point() and not n.startswith("preprocess")}
    assert floats == {torch.float32}
    assert ff.load(tmp_path / "model").dtype == torch.float32
