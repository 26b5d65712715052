"""The loop: what a step does, what is logged, what a resumed run shares with one that was never interrupted."""

from __future__ import annotations

import json
import math
import sys
import warnings
from itertools import chain, pairwise

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire.corruptions import Corruption
from fewfire.disk import load_tensors, save_tensors
from fewfire.terms import Term
from fewfire.tracking import read_metrics
from fewfire.trainer import checkpoint, progress
from fewfire.trainer.schedules import piecewise_linear

quiet = pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")  # a few steps are no training


def make(
    rows, folder=None, *, activation="topk", terms=None, corruption=None, network="linear", preprocess=None, **settings
):
    source = rows if hasattr(rows, "batches") else ff.ArraySource(rows)
    model = ff.Autoencoder(source.row_shape, 24, activation, network=network, preprocess=preprocess)
    terms = None if terms is None else [Term.from_config(t) for t in terms]
    corruption = None if corruption is None else Corruption.from_config(corruption)
    config = ff.TrainConfig(**{"steps": 30, "batch_size": 32, **settings})
    return ff.Trainer(model, source, terms, config, corruption=corruption, folder=folder, progress=False)


def watch(trainer):
    """Every step from now on: (step, row numbers, learning rate)."""
    seen, step = [], trainer.engine.step

    def watched(batch, state):
        seen.append((state.step, batch.rows.tolist(), state.lr))
        return step(batch, state)

    trainer.engine.step = watched
    return seen


def bits(trainer):
    parts = {"model": trainer.model.state_dict(), "engine": trainer.engine.state_dict()}
    tensors = {f"{part}/{name}": t.clone() for part, named in parts.items() for name, t in named.items()}
    return {**tensors, "since_fired": trainer.state.since_fired.clone()}


def same(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different
    return True


def timeless(history):
    return [{k: v for k, v in record.items() if k not in ("seconds", "rows_per_second")} for record in history]


class Killed(Exception):
    pass


def kill_at(trainer, step):
    inner = trainer._step

    def step_until(batch):
        if trainer.state.step == step:
            raise Killed
        return inner(batch)

    trainer._step = step_until
    with pytest.raises(Killed):
        trainer.fit()


# ------------------------------------------------------------------------------------------ settings


def config(**settings):
    return ff.TrainConfig(**settings).resolve(1000)


def test_defaults_depend_on_the_data():
    c = config()
    assert (c.batch_size, c.steps, c.epochs, c.learning_rate) == (256, 3000, None, 1e-3)
    assert (c.log_every, c.checkpoint_every, c.validate_every) == (30, 300, 4)
    assert c.dead_after == 3000 * 256 // 10
    assert c.resolve(1000) == c, "resolving twice changes nothing"
    assert ff.TrainConfig(epochs=3, batch_size=300).resolve(1000).steps == 12, "the last, smaller batch counts"
    assert ff.TrainConfig(batch_size=5000).resolve(1000).batch_size == 1000
    lbfgs = config(optimizer="lbfgs")
    assert (lbfgs.batch_size, lbfgs.steps, lbfgs.learning_rate) == (1000, 400, 1.0)
    assert ff.TrainConfig(optimizer="lbfgs", batch_size=1000).resolve(1000).batch_size == 1000
    assert config(learning_rate=0).learning_rate == 0
    assert config(checkpoint_every=0).checkpoint_every == 0


@pytest.mark.parametrize(
    ("settings", "n_rows", "sentence"),
    [
        ({"steps": 3, "epochs": 3}, 10, "steps or epochs, got both"),
        ({"patience": 3}, 10, "patience needs held-out rows"),
        ({"optimizer": "lbfgs", "batch_size": 5}, 10, "whole data as one batch.*batch_size=5 of 10"),
        ({"optimizer": "lbfgs"}, None, "endless"),
        ({}, None, "endless source has no epochs; set train.steps"),
        ({"epochs": 3}, None, "endless"),
        ({"learning_rate": math.inf}, 10, "finite"),
        ({"learning_rate": math.nan}, 10, "learning_rate"),
        ({"clip_norm": math.inf}, 10, "finite"),
        ({"learning_rat": 1}, 10, "learning_rat"),
        ({"betas": (0.9, 1.0)}, 10, r"(?s)betas\.1.*less than 1"),
        ({"betas": (-0.1, 0.9)}, 10, r"(?s)betas\.0.*greater than or equal to 0"),
        ({"lr_warmup": 0.9, "lr_decay": 0.5}, 10, "rise and fall at once"),
        ({"schedules": {"mse.weight": [(0.5, 1), (0.2, 3)]}}, 10, "fractions rising from 0 to 1"),
        ({"schedules": {"mse.weight": [(0, 1), (1.5, 3)]}}, 10, "fractions rising from 0 to 1"),
        ({"schedules": {"mse.weight": []}}, 10, "fractions rising from 0 to 1"),
    ],
)
def test_settings_that_cannot_be(settings, n_rows, sentence):
    with pytest.raises(ValueError, match=sentence):
        ff.TrainConfig(**settings).resolve(n_rows)


def test_devices():
    assert ff.TrainConfig(device="cpu").resolved_device().type == "cpu"
    assert ff.TrainConfig().resolved_device().type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="unknown device 'gpu0'; expected auto, cpu, cuda"):
        ff.TrainConfig(device="gpu0").resolved_device()
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no GPU"):
            ff.TrainConfig(device="cuda").resolved_device()


def rates(**settings):
    c = ff.TrainConfig(steps=100, learning_rate=2.0, **settings).resolve(1000)
    return [c.learning_rate_at(step) for step in range(100)]


def test_learning_rate_linear():
    r = rates()
    assert r[:81] == [2.0] * 81
    assert r[90] == pytest.approx(1.0)
    assert r[99] == pytest.approx(2.0 * 0.01 / 0.2), "the last step still moves"
    assert all(a > b for a, b in pairwise(r[80:]))


def test_learning_rate_warmup():
    r = rates(lr_warmup=0.1)
    assert r[0] == pytest.approx(2 / 11), "the first step moves"
    assert r[:11] == pytest.approx([2.0 * i / 11 for i in range(1, 12)])
    assert r[10] == 2.0


def test_learning_rate_cosine():
    r = rates(lr_schedule="cosine", lr_warmup=0.2)
    assert r[20] == 2.0
    assert r[60] == pytest.approx(1.0)
    assert 0 < r[99] < 0.01


def test_learning_rate_constant_and_edges():
    assert rates(lr_schedule="constant") == [2.0] * 100
    assert rates(lr_decay=0) == [2.0] * 100
    assert rates(lr_decay=1)[50] == pytest.approx(1.0)
    assert rates(optimizer="lbfgs", lr_warmup=0.5) == [2.0] * 100
    for schedule in ("constant", "linear", "cosine"):
        one = ff.TrainConfig(steps=1, lr_schedule=schedule, lr_warmup=0.5, learning_rate=2.0).resolve(10)
        assert 0 < one.learning_rate_at(0) <= 2.0
    with pytest.raises(ValueError, match="resolve"):
        ff.TrainConfig().learning_rate_at(0)


@quiet
def test_the_engine_gets_the_scheduled_rate(rows):
    trainer = make(rows, lr_warmup=0.5, lr_decay=0.5, learning_rate=1.0)
    seen = watch(trainer)
    trainer.fit()
    assert [lr for _, _, lr in seen] == [trainer.config.learning_rate_at(i) for i in range(30)]


# ------------------------------------------------------------------------------------------- schedules


def test_piecewise_linear():
    points = [(0.2, 1.0), (0.4, 3.0), (0.4, 5.0), (0.8, 5.0)]
    at = [piecewise_linear(points, x) for x in (0.0, 0.2, 0.3, 0.41, 0.8, 1.0)]
    assert at == pytest.approx([1, 1, 2, 5, 5, 5])


@quiet
def test_values_change_between_steps_and_arrive(rows):
    seen = []
    trainer = make(
        rows,
        activation={"name": "topk", "k": 9},
        # an int, as YAML gives it: a weight is not a count, whatever it was written as
        terms=["mse", {"name": "l1", "weight": 1}],
        schedules={"activation.k": [(0, 9), (1, 2)], "l1.weight": [(0, 0), (0.5, 1)]},
        steps=11,
    )
    trainer.engine.step = lambda batch, state, step=trainer.engine.step: (
        seen.append((trainer.model.activation.k, trainer.terms["l1"].weight)),
        step(batch, state),
    )[1]
    trainer.fit()
    assert [k for k, _ in seen] == [9, 8, 8, 7, 6, 6, 5, 4, 3, 3, 2]
    assert all(isinstance(k, int) for k, _ in seen)
    assert [w for _, w in seen] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])
    assert trainer.model.config()["activation"]["k"] == 2, "the model that is saved has the last value"


@pytest.mark.parametrize("target", ["l1.weight", "mse.wait", "activation", "activation.name", "weight"])
def test_a_schedule_of_nothing(rows, target):
    with pytest.raises(ValueError, match=r"to schedule; there is: .*mse.weight.*activation.k"):
        make(rows, schedules={target: [(0, 1)]})


# ------------------------------------------------------------------------------------------- the batches


def test_epochs_see_every_row_once_the_last_batch_is_smaller(rows):
    trainer = make(rows[:70], steps=None, epochs=3)  # 32 + 32 + 6
    seen = watch(trainer)
    trainer.fit()
    assert [len(r) for _, r, _ in seen] == [32, 32, 6] * 3
    epochs = [list(chain(*(r for _, r, _ in seen[i : i + 3]))) for i in (0, 3, 6)]
    assert all(sorted(e) == list(range(70)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert trainer.state.samples == 210
    assert [s for s, _, _ in seen] == list(range(9))


def test_a_last_batch_of_one_row_is_logged(rows):
    trainer = make(rows[:33], steps=4, log_every=1)
    history = trainer.fit()
    assert [r["samples"] for r in history if "samples" in r] == [32, 33, 65, 66]
    assert all(r["loss"] is not None for r in history if "loss" in r)


class Counting(ff.ArraySource):
    calls = 0

    def batches(self, *args, **kwargs):
        self.calls += 1
        return super().batches(*args, **kwargs)


def test_a_full_batch_is_read_once_and_in_order(rows):
    source = Counting(rows)
    trainer = make(source, batch_size=200, steps=20)
    seen = watch(trainer)
    trainer.fit()
    assert all(r == list(range(200)) for _, r, _ in seen)
    assert len(seen) == 20
    assert source.calls == 3, "once to start from, once to train and once for the summary"


def test_a_full_batch_gets_fresh_noise(rows):
    trainer = make(rows, corruption="gaussian", batch_size=200, steps=5)
    inputs = []
    trainer.engine.step = lambda b, s, step=trainer.engine.step: (inputs.append(b), step(b, s))[1]
    trainer.fit()
    noise = [(b.x_in - b.x)[b.rows.argsort()] for b in inputs]
    by_place = [b.x_in - b.x for b in inputs]
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in chain(pairwise(noise), pairwise(by_place)))
    assert all(b.x.sort(0).values.equal(inputs[0].x.sort(0).values) for b in inputs), "the target stays clean"


@pytest.mark.parametrize("n_rows", [None, 500])
def test_a_source_that_runs_dry_is_no_endless_loop(rows, n_rows):
    source = ff.ArraySource(rows)
    source.n_rows = n_rows
    with pytest.raises(ff.TrainingError, match="gave no batch"):
        make(source, steps=100).fit()


def test_shapes_are_checked_before_anything_else(rows):
    model = ff.Autoencoder(5, 24)
    with pytest.raises(ValueError, match=r"rows of shape \(5,\).*\(12,\)"):
        ff.Trainer(model, ff.ArraySource(rows))
    model = ff.Autoencoder(12, 24)
    with pytest.raises(ValueError, match=r"targets of shape \(12,\).*\(3,\)"):
        ff.Trainer(model, ff.ArraySource(rows, rows[:, :3]))
    with pytest.raises(ValueError, match=r"rows of shape \(12,\).*\(3,\)"):
        ff.Trainer(model, ff.ArraySource(rows), validation=ff.ArraySource(rows[:, :3]))
    endless = ff.ArraySource(rows)
    endless.n_rows = None
    with pytest.raises(ValueError, match="never end"):
        ff.Trainer(model, ff.ArraySource(rows), validation=endless)


def test_columns_are_checked_before_anything_else(rows):
    """They used to be compared after the last step."""
    names, reverse = [tuple(order) for order in ("abcdefghijkl", "lkjihgfedcba")]

    def source(columns):
        made = ff.ArraySource(rows)
        made.layout = ff.Layout(columns=columns)
        return made

    def model(columns=()):
        return ff.Autoencoder(12, 24, layout=ff.Layout(columns=columns))

    refused = pytest.raises(ValueError, match="columns that the model was trained on.*another order: column 0")
    with refused:
        ff.Trainer(model(), source(names), validation=source(reverse))
    with refused:
        ff.Trainer(model(reverse), source(names))
    with refused:
        ff.Trainer(model(names), source(()), validation=source(reverse))
    ff.Trainer(model(names), source(()), validation=source(names))


def test_objectives_that_cannot_be(rows):
    with pytest.raises(ValueError, match="at least one term"):
        make(rows, terms=[])
    with pytest.raises(ValueError, match=r"term 'kl' needs logits.*activation 'topk'.*given by: activation sigmoid"):
        make(rows, terms=["mse", "kl"])
    with pytest.raises(ValueError, match="between 0 and 1, the preprocessed data between .* use preprocess minmax"):
        make(rows, activation="sigmoid", network={"name": "linear", "output": "sigmoid"}).fit()


# --------------------------------------------------------------------------------------------- the log


def test_log_content(rows, tmp_path):
    activation = {"name": "topk", "k": 2}
    trainer = make(rows, tmp_path, activation=activation, steps=25, log_every=10, dead_after=64, engine="autograd")
    history = trainer.fit()
    assert read_metrics(tmp_path) == history == trainer._log.history
    first, *lines, last = history
    assert first == {
        "step": 0,
        "engine": "autograd (asked for)",
        "total_steps": 25,
        "batch_size": 32,
        "rows": 200,
    }
    assert [line["step"] for line in lines] == [10, 20, 25]
    keys = "step samples loss mse auxk l0 fvu dead lr seconds rows_per_second"
    assert all(set(line) == set(keys.split()) for line in lines)
    assert [line["samples"] for line in lines] == [200 + 3 * 32, 400 + 6 * 32, 600 + 4 * 32]
    assert all(math.isfinite(v) for line in lines for v in line.values())
    assert all(line["l0"] <= 2 for line in lines)
    assert last["summary"] == trainer.summary
    assert last["skipped"] == 0
    assert last["step"] == 25
    assert set(last["summary"]) >= {"n_rows", "mse", "fvu", "explained_variance", "l0", "dead_fraction"}


def test_fvu_of_the_log_is_the_batchs(rows):
    trainer = make(rows, batch_size=200, steps=1, learning_rate=0)
    line = trainer.fit()[1]
    out = trainer.model(torch.from_numpy(rows))
    error = (out.recon - out.x).square().sum().item()
    spread = ((rows - rows.mean(0)) ** 2).sum()
    assert line["fvu"] == pytest.approx(error / spread, rel=1e-4)
    assert line["mse"] == pytest.approx(error / 200, rel=1e-5)
    assert line["l0"] == pytest.approx((out.latents != 0).sum().item() / 200)


@quiet
def test_dead_latents_are_counted_in_rows(rows):
    trainer = make(rows, steps=6, dead_after=3 * 32, learning_rate=0, activation={"name": "topk", "k": 1})
    with torch.no_grad():
        trainer.model.encoder.b_enc[0] = -1e6  # never fires
        trainer.model.encoder.b_enc[1] = 1e6  # always fires
    history = trainer.fit()
    assert trainer.state.since_fired[0] == 6 * 32 == trainer.state.samples
    assert trainer.state.since_fired[1] == 0
    assert trainer.state.dead[0]
    assert [r["dead"] for r in history if "dead" in r] == [0, 0, 23, 23, 23, 23]


# ------------------------------------------------------------------------------------------- not finite


def damaged(rows, row=17):
    rows = rows.copy()
    rows[row, 3] = np.nan
    return rows


def test_nan_stops_names_the_row_and_changes_nothing(rows):
    trainer = make(damaged(rows), terms=["mse"])
    before, inner = {}, trainer.engine.step

    def step(batch, state):
        before.update(bits(trainer))
        return inner(batch, state)

    trainer.engine.step = step
    with pytest.raises(
        ff.TrainingError, match=r"step \d+: the data holds NaN, first in row 17, column 3, .*'skip'"
    ) as caught:
        trainer.fit()
    assert f"step {trainer.state.step}:" in str(caught.value)
    assert trainer.state.step <= 6, "in the first epoch"
    assert trainer.state.samples == 32 * trainer.state.step
    assert same(bits(trainer), before)


def test_skipping_counts_and_goes_on(rows, tmp_path):
    trainer = make(damaged(rows), tmp_path, terms=["mse"], steps=21, on_nonfinite="skip", log_every=1)
    seen = watch(trainer)
    history = trainer.fit()
    assert len(seen) == 21
    bad = [step for step, r, _ in seen if 17 in r]
    assert len(bad) == trainer.skipped == 3
    assert trainer.state.step == 21
    assert trainer.state.samples == sum(len(r) for step, r, _ in seen if step not in bad)
    assert [r["step"] - 1 for r in history if "loss" in r] == [s for s in range(21) if s not in bad]
    assert history[-1]["skipped"] == 3
    assert [r.get("skipped", 0) for r in history if "loss" in r] == [
        sum(b < s for b in bad) for s in range(21) if s not in bad
    ]
    assert "3 steps were not finite and were skipped" in trainer.describe()
    assert all(torch.isfinite(t).all() for t in bits(trainer).values())
    resumed = make(damaged(rows), tmp_path, terms=["mse"], steps=21, on_nonfinite="skip", log_every=1)
    resumed.fit(resume=True)
    assert resumed.skipped == 3


@quiet
@pytest.mark.parametrize(
    "preprocess", ["standardize", "center", "minmax", ["row_mean", "clip_scale"], "whiten"], ids=str
)
def test_skipping_goes_for_the_preprocess_as_well(rows, preprocess):
    """It is fitted on the rows that will be trained on."""
    settings = {"preprocess": preprocess, "terms": ["mse"], "on_nonfinite": "skip", "batch_size": 10, "steps": 40}
    trainer = make(damaged(rows), **settings)
    trainer.fit()
    assert trainer.skipped == 2
    reference = make(np.delete(rows, 17, 0), **{**settings, "on_nonfinite": "stop"})
    reference.fit()
    for name, value in trainer.model.preprocess.state_dict().items():
        assert torch.allclose(value, reference.model.preprocess.state_dict()[name], rtol=1e-12)
    assert all(torch.isfinite(t).all() for t in bits(trainer).values())


@pytest.mark.parametrize("side", ["input", "target"])
def test_nan_found_by_the_preprocess_is_named_with_its_true_row_and_column(rows, side):
    columns = tuple(f"f{i}" for i in range(12))
    layout = ff.Layout("table", columns=columns)
    data = [damaged(rows), rows] if side == "input" else [rows, damaged(rows)]
    source = ff.ArraySource(*data, layout=layout)
    model = ff.Autoencoder(12, 24, preprocess="standardize", preprocess_out="minmax")
    config = ff.TrainConfig(validation_fraction=0.5, seed=0 if 17 in held_in(source, 0) else 1)
    what = "the data" if side == "input" else "the target"
    with pytest.raises(ValueError, match=rf"{what} holds NaN, first in row 17, column 3 \('f3'\).*'skip'"):
        ff.Trainer(model, source, config=config, progress=False).fit()


def held_in(source, seed):
    return next(source.split(0.5, seed)[0].batches(200, shuffle=False)).rows.tolist()


@quiet
def test_a_bad_row_among_those_held_out_is_told_before_the_first_step(rows):
    """It would be found by the first validation: after an epoch, which may be long."""
    held_out = ff.ArraySource(damaged(rows)[:30])

    def trainer(**settings):
        config = ff.TrainConfig(steps=20, batch_size=32, validate_every=5, **settings)
        return ff.Trainer(ff.Autoencoder(12, 24), rows, config=config, validation=held_out, progress=False)

    stopping = trainer()
    seen = watch(stopping)
    with pytest.raises(ValueError, match=r"what is held out holds NaN, first in row 17, column 3.*'skip'"):
        stopping.fit()
    assert seen == []
    skipping = trainer(on_nonfinite="skip")
    history = skipping.fit()
    assert [math.isfinite(r["val_loss"]) for r in history if "val_loss" in r] == [True] * 4
    assert skipping.summary["n_rows"] == 29
    held_out = ff.ArraySource(rows[:5] * np.nan)
    with pytest.raises(ValueError, match="every row that is held out holds NaN"):
        trainer(on_nonfinite="skip").fit()


@quiet
def test_a_bad_row_that_training_never_met_does_not_cost_the_result(rows):
    order = np.concatenate([r for _, r, _ in see(make(rows, steps=2))])
    row = next(i for i in range(200) if i not in order)
    trainer = make(damaged(rows, row), steps=2)
    trainer.fit()
    assert trainer.summary["n_rows"] == 199


@quiet
def test_a_run_that_a_bad_row_stopped_can_do_what_it_is_told(rows, tmp_path):
    """'... or set on_nonfinite to skip': and go on from the last checkpoint."""
    settings = {"checkpoint_every": 1, "terms": ["mse"], "batch_size": 20}
    with pytest.raises(ff.TrainingError, match="'skip'"):
        make(damaged(rows), tmp_path / "part", **settings).fit()
    make(damaged(rows), tmp_path / "part", **settings, on_nonfinite="skip").fit(resume=True)
    make(damaged(rows), tmp_path / "whole", **settings, on_nonfinite="skip").fit()
    assert timeless(read_metrics(tmp_path / "part")) == timeless(read_metrics(tmp_path / "whole"))


@quiet
def test_a_validation_that_is_no_number_is_no_best(rows):
    trainer = make(rows, validation_fraction=0.2, validate_every=1, patience=4, steps=20)
    numbers = iter([3.0, math.nan, 2.0, math.nan, 2.5, 2.0, math.nan])
    inner, losses = trainer.best.compare, []
    trainer.best.compare = lambda loss, *a, **k: (losses.append(next(numbers)), inner(losses[-1], *a, **k))[1]
    trainer.fit()
    assert trainer.best.loss == 2.0
    assert trainer.state.step == 7, "four misses in a row"


NONFINITE = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf, "too large": 1e30}


@pytest.mark.parametrize("value", NONFINITE.values(), ids=NONFINITE)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clip_norm": 0.5},
        {"activation": "relu"},
        {"activation": "sigmoid", "terms": ["mse", "kl"]},
        {"optimizer": "lbfgs", "batch_size": None, "activation": "sigmoid", "terms": ["mse"], "steps": 3},
        {"corruption": "gaussian"},
        {"validation_fraction": 0.2, "validate_every": 3},
    ],
    ids=str,
)
def test_a_bad_step_pollutes_nothing_whenever_it_comes(rows, settings, value, tmp_path):
    """Not the log, not the counters, not the moments, not a checkpoint; on steps that are not logged too."""
    bad = rows.copy()
    bad[17, 3] = value
    trainer = make(bad, tmp_path, **{"log_every": 7, "checkpoint_every": 1, **settings})
    before, inner = {}, trainer.engine.step

    def step(batch, state):
        before.clear()
        before.update(bits(trainer))
        return inner(batch, state)

    trainer.engine.step = step
    with pytest.raises(ff.TrainingError, match="row 17"):
        trainer.fit()
    assert same(bits(trainer), before)
    assert all(torch.isfinite(t).all() for t in before.values())
    for path in (tmp_path / "checkpoints").glob("*"):
        tensors, metadata = load_tensors(path)
        assert metadata["step"] <= trainer.state.step
        assert all(torch.isfinite(t).all() for t in tensors.values())
    assert all(v is not None for r in read_metrics(tmp_path) for v in r.values())


@quiet
@pytest.mark.parametrize("step", [0, 3, 29])
@pytest.mark.parametrize("value", [1.5, -0.5])
def test_a_value_that_a_sigmoid_cannot_reach_is_told_on_every_batch(rows, step, value):
    """Cross-entropy of such a target has no lowest value, and would fall for ever."""
    unit = (rows - rows.min(0)) / np.ptp(rows, 0)
    output = {"name": "linear", "output": "sigmoid"}
    order = [row for _, r, _ in see(make(unit, activation="sigmoid", network=output, terms=["bce"])) for row in r]
    place = [step * 32 - 24 * (step // 7) + 5, step][0]
    unit[order[min(place, len(order) - 1)], 4] = value
    trainer = make(unit, activation="sigmoid", network=output, terms=["bce"])
    wanted = f"between 0 and 1, the preprocessed data between .*row {order[min(place, len(order) - 1)]}"
    with pytest.raises(ValueError, match=wanted):
        trainer.fit()


def see(trainer):
    seen = watch(trainer)
    trainer.fit()
    return seen


@quiet
def test_rounding_is_not_out_of_range(rows):
    unit = (rows - rows.min(0)) / np.ptp(rows, 0) * (1 + 2e-6) - 1e-6
    make(unit, activation="sigmoid", network={"name": "linear", "output": "sigmoid"}, terms=["bce"], steps=9).fit()


@quiet
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_infinity_is_not_out_of_range_but_not_finite(rows, value):
    """What is to be skipped is skipped; a value that no sigmoid reaches is told beside it all the same."""
    sigmoid = {"network": {"name": "linear", "output": "sigmoid"}, "terms": ["mse"], "preprocess": "minmax"}
    bad = rows.copy()
    bad[17, 3] = value
    trainer = make(bad, **sigmoid, on_nonfinite="skip", steps=21)
    trainer.fit()
    assert trainer.skipped == 3
    settings = {**sigmoid, "preprocess": None, "batch_size": 200}
    unit = (bad - rows.min(0)) / np.ptp(rows, 0)
    with pytest.raises(ff.TrainingError, match=r"row 17, column 3,.*on_nonfinite to 'skip'"):
        make(unit, **settings).fit()
    unit[5, 2] = 1.5
    with pytest.raises(ValueError, match=r"between 0 and 1\.5 \(row 5\)"):
        make(unit, **settings).fit()


PLAIN = {"activation": "relu", "terms": ["mse"], "network": {"name": "linear", "unit_norm": False}}


@quiet
def test_a_run_that_diverged_is_no_success(rows):
    """Skipped steps leave the weights of the last one that was finite, which may be 1e25."""
    with pytest.raises(ff.TrainingError, match=r"diverged.*learning rate \(now 1e\+25\)"):
        make(rows, **PLAIN, learning_rate=1e25, lr_schedule="constant", on_nonfinite="skip").fit()


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_the_last_step_is_looked_at_too(rows, on_nonfinite, tmp_path):
    trainer = make(rows, tmp_path, **PLAIN, learning_rate=1e38, steps=1, on_nonfinite=on_nonfinite)
    trainer.engine.step = lambda batch, state, step=trainer.engine.step: (
        step(batch, state),
        trainer.model.encoder.W_enc.data.fill_(math.inf),
    )[0]
    with pytest.raises(ff.TrainingError, match=r"not finite after step 1 \(encoder.W_enc\[0, 0\] is inf\); lower"):
        trainer.fit()


@quiet
def test_values_too_large_to_square_are_not_the_models_fault(rows):
    make(rows.astype(np.float64) * 1e200, preprocess="minmax", dtype="float64").fit()


@quiet
def test_a_trainer_starts_once(rows):
    """A second fit trained nothing, and put its two lines in the place of the log."""
    trainer = make(rows)
    history = trainer.fit()
    before = list(history)
    for resume in (False, True):
        with pytest.raises(ff.TrainingError, match="this Trainer has made 30 of its 30 steps.*make a new one"):
            trainer.fit(resume=resume)
    assert trainer._log.history == before
    stopped = make(damaged(rows))
    with pytest.raises(ff.TrainingError, match="row 17"):
        stopped.fit()
    with pytest.raises(ff.TrainingError, match="row 17|starts only once"):
        stopped.fit()


@quiet
def test_a_trainer_with_a_folder_may_resume_itself(rows, tmp_path):
    trainer = make(rows, tmp_path)
    trainer.fit()
    weights = bits(trainer)
    trainer.fit(resume=True)
    assert same(bits(trainer), weights)


def test_skipping_everything_is_no_success(rows):
    with pytest.raises(ff.TrainingError, match="none of 5 steps was finite"):
        make(damaged(rows), terms=["mse"], steps=5, batch_size=200, on_nonfinite="skip").fit()


@pytest.mark.parametrize("batch_size", [200, 32])
def test_overflow_says_that_the_scale_is_the_reason(rows, batch_size):
    big = rows.copy()
    big[5, 2] = -1e30
    with pytest.raises(
        ff.TrainingError, match=r"row 5 reaches 1e\+30, which is too large to square in float32; rescale"
    ):
        make(big, terms=["mse"], batch_size=batch_size).fit()
    make(big, terms=["mse"], batch_size=batch_size, dtype="float64").fit()
    big = big.astype(np.float64)
    big[5, 2] = 1e200  # becomes infinity in float32
    with pytest.raises(ff.TrainingError, match=r"row 5 reaches 1e\+200, which is too large"):
        make(big, terms=["mse"], batch_size=batch_size).fit()


def test_a_rate_that_is_too_high_is_not_blamed_on_the_data(rows):
    with pytest.raises(ff.TrainingError, match="the loss is not finite, though the data are .*lower the learning rate"):
        make(rows, activation="relu", network={"name": "linear", "unit_norm": False}, learning_rate=1e15).fit()


# ------------------------------------------------------------------------------------------------ resume

RESUMABLE = {
    "adam": {},
    "partial batches": {"batch_size": 48},
    "corruption": {"corruption": "masking"},
    "emphasis": {
        "corruption": "masking",
        "terms": [{"name": "mse", "intact": 0.5}],
        "validation_fraction": 0.2,
        "validate_every": 4,
    },
    "preprocess": {"preprocess": "standardize"},
    "validation": {"validation_fraction": 0.2, "validate_every": 4},
    "patience": {"validation_fraction": 0.2, "validate_every": 2, "patience": 3, "learning_rate": 0.1},
    "schedules": {
        "activation": {"name": "topk", "k": 6},
        "schedules": {"activation.k": [(0, 6), (1, 2)], "mse.weight": [(0, 1), (1, 2)]},
    },
    "full batch": {"batch_size": 200},
    "lbfgs": {
        "optimizer": "lbfgs",
        "batch_size": None,
        "activation": "sigmoid",
        "terms": ["mse", "kl", "weight_decay"],
    },
    "float64": {"dtype": "float64"},
    "warmup and clipping": {"lr_warmup": 0.5, "clip_norm": 0.5},
}


@quiet
@pytest.mark.parametrize("kill", [[13], [1, 6, 7, 19], [29]], ids=str)
@pytest.mark.parametrize("name", RESUMABLE)
def test_a_resumed_run_has_the_bits_and_the_log_of_one_that_was_not(rows, tmp_path, name, kill):
    settings = {"checkpoint_every": 3, "log_every": 2, **RESUMABLE[name]}
    whole = make(rows, tmp_path / "whole", **settings)
    whole.fit()
    for at in kill:
        part = make(rows, tmp_path / "parts", **settings)
        if at >= whole.state.step:
            continue
        inner = part._step
        part._step = lambda batch, part=part, at=at, inner=inner: (
            inner(batch) if part.state.step < at else (_ for _ in ()).throw(Killed)
        )
        with pytest.raises(Killed):
            part.fit(resume=True)
    last = make(rows, tmp_path / "parts", **settings)
    seen = watch(last)
    last.fit(resume=True)
    done = max((a // 3 * 3 for a in kill if a < whole.state.step), default=0)
    assert [step for step, _, _ in seen] == list(range(done, whole.state.step)), "it went on, and did not start again"
    assert same(bits(last), bits(whole))
    assert last.state.samples == whole.state.samples
    assert timeless(last._log.history) == timeless(whole._log.history)
    assert read_metrics(tmp_path / "parts") == last._log.history
    assert last.model.config() == whole.model.config()
    assert last.summary == whole.summary


@quiet
@pytest.mark.parametrize("name", RESUMABLE)
def test_a_finished_run_resumed_does_nothing(rows, tmp_path, name):
    whole = make(rows, tmp_path, **RESUMABLE[name], checkpoint_every=1)
    whole.fit()
    log = (tmp_path / "metrics.jsonl").read_bytes()
    again = make(rows, tmp_path, **RESUMABLE[name], checkpoint_every=1)
    seen = watch(again)
    again.fit(resume=True)
    assert seen == []
    assert same(bits(again), bits(whole))
    assert again.model.config() == whole.model.config(), "k is the last one, not the first"
    assert again.summary == whole.summary
    assert (tmp_path / "metrics.jsonl").read_bytes() == log, "one summary, not two"


def test_resume_without_a_checkpoint_starts(rows, tmp_path):
    fresh, resumed = make(rows, tmp_path / "a"), make(rows, tmp_path / "b")
    fresh.fit()
    resumed.fit(resume=True)
    assert same(bits(fresh), bits(resumed))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"steps": 40},
            "train.steps was 30 and is 40.* A run cannot be made longer or shorter.*train the other length",
        ),
        ({"batch_size": 16}, "train.batch_size was 32 and is 16"),
        ({"learning_rate": 0.5}, "train.learning_rate was 0.001 and is 0.5"),
        ({"seed": 1}, "train.seed was 0 and is 1"),
        ({"activation": {"name": "topk", "k": 3}}, "model.activation.k was 1 and is 3"),
        ({"activation": "relu"}, "model.activation.name was 'topk' and is 'relu'"),
        ({"terms": ["mse", {"name": "auxk", "weight": 0.5}]}, "terms.1.weight was 0.03125 and is 0.5"),
        ({"corruption": "gaussian"}, "corruption was None and is"),
        ({"preprocess": "standardize"}, "model.preprocess was None and is"),
        ({"validation_fraction": 0.1}, "data was .*train.validation_fraction was 0.0 and is 0.1"),
    ],
)
def test_other_settings_are_refused_with_the_difference(rows, tmp_path, change, sentence):
    make(rows, tmp_path).fit()
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=f"cannot resume from .*{sentence}") as caught:
        make(rows, tmp_path, **change).fit(resume=True)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files


@quiet
@pytest.mark.parametrize("before", [True, False])
def test_other_held_out_rows_are_refused(rows, tmp_path, before):
    """They decide which weights are the best."""

    def trainer(held_out):
        validation = None if held_out is None else ff.ArraySource(held_out)
        config = ff.TrainConfig(steps=5, batch_size=32)
        return ff.Trainer(
            ff.Autoencoder(12, 24), rows, config=config, validation=validation, folder=tmp_path, progress=False
        )

    trainer(rows[:20] if before else None).fit()
    for other in (rows[:21], None if before else rows[:20]):
        with pytest.raises(ValueError, match="validation was .* and is "):
            trainer(other).fit(resume=True)
    trainer(rows[:20] if before else None).fit(resume=True)


def test_other_data_are_refused(rows, tmp_path):
    make(rows, tmp_path).fit()
    other = rows.copy()
    other[7, 7] += 1e-6
    with pytest.raises(ValueError, match="data was '[0-9a-f]+.* and is '"):
        make(other, tmp_path).fit(resume=True)


@quiet
def test_what_does_not_touch_the_numbers_may_change(rows, tmp_path):
    kill_at(make(rows, tmp_path, checkpoint_every=5), 12)
    trainer = make(rows, tmp_path, checkpoint_every=7, log_every=1, engine="autograd", device="cpu")
    seen = watch(trainer)
    trainer.fit(resume=True)
    assert len(seen) == 20


def test_a_folder_with_checkpoints_is_not_overwritten(rows, tmp_path):
    """The old checkpoints would outlive the new, lower-numbered ones."""
    make(rows, tmp_path).fit()
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(FileExistsError, match="holds the checkpoints of a run; resume it, or choose another folder"):
        make(rows, tmp_path, steps=5).fit()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files


def test_two_checkpoints_are_kept(rows, tmp_path):
    make(rows, tmp_path, checkpoint_every=4).fit()
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000028.safetensors", "step-000000030.safetensors"]
    make(rows, tmp_path / "last", checkpoint_every=0).fit()
    assert [p.name for p in (tmp_path / "last" / "checkpoints").iterdir()] == ["step-000000030.safetensors"]


def test_a_damaged_checkpoint_is_an_error_and_the_one_before_goes_on(rows, tmp_path):
    whole = make(rows, tmp_path, checkpoint_every=10)
    whole.fit()
    newest = checkpoint.latest(tmp_path / "checkpoints")
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    newest.write_bytes(data)
    with pytest.raises(
        ff.ModelFileError, match="step-000000030.*without this file --resume goes on from the one before"
    ):
        make(rows, tmp_path, checkpoint_every=10).fit(resume=True)
    newest.unlink()
    trainer = make(rows, tmp_path, checkpoint_every=10)
    seen = watch(trainer)
    trainer.fit(resume=True)
    assert len(seen) == 10
    assert same(bits(trainer), bits(whole))


def test_a_checkpoint_is_read_by_name_not_by_place(rows, tmp_path):
    """Rewritten with its tensors in another order, it resumes the same."""
    whole = make(rows, tmp_path, checkpoint_every=10)
    whole.fit()
    (tmp_path / "checkpoints" / "step-000000030.safetensors").unlink()
    path = tmp_path / "checkpoints" / "step-000000020.safetensors"
    tensors, metadata = load_tensors(path)
    save_tensors(path, dict(reversed(tensors.items())), metadata)
    trainer = make(rows, tmp_path, checkpoint_every=10)
    trainer.fit(resume=True)
    assert same(bits(trainer), bits(whole))


# ----------------------------------------------------------------------------- validation, early stopping


def test_validation_rows_are_never_trained_on(rows):
    trainer = make(rows, validation_fraction=0.25, steps=60)
    seen = watch(trainer)
    trainer.fit()
    trained = {row for _, r, _ in seen for row in r}
    held_out = {int(r) for b in trainer.validation.batches(64, shuffle=False) for r in b.rows}
    assert len(held_out) == 50
    assert trained | held_out == set(range(200))
    assert not trained & held_out
    assert trainer.summary["n_rows"] == 50


@pytest.mark.filterwarnings("ignore:the L1 penalty is met")  # in seven steps nothing is learned
def test_validation_is_logged_and_is_the_objective(rows):
    trainer = make(
        rows, validation_fraction=0.25, steps=7, validate_every=3, terms=["mse", {"name": "l1", "weight": 0.5}]
    )
    history = trainer.fit()
    lines = [r for r in history if "val_loss" in r]
    assert [r["step"] for r in lines] == [3, 6, 7]
    x = next(trainer.validation.batches(50, shuffle=False)).x
    with torch.no_grad():
        out = trainer.model(x)
    expected = (out.recon - x).square().sum() / 50 + 0.5 * out.latents.abs().sum() / 50
    assert lines[-1]["val_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert lines[-1]["val_fvu"] == pytest.approx(trainer.summary["fvu"], rel=1e-4)


def test_a_denoiser_is_validated_with_the_same_noise_each_time(rows):
    trainer = make(rows, validation_fraction=0.5, corruption="masking", learning_rate=0, validate_every=1, steps=5)
    losses = {r["val_loss"] for r in trainer.fit() if "val_loss" in r}
    assert len(losses) == 1


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")  # the rate is far too high, so that losses rise again
def test_early_stopping_keeps_the_best_weights(rows):
    trainer = make(
        rows,
        validation_fraction=0.3,
        validate_every=1,
        patience=4,
        learning_rate=0.03,
        steps=200,
        lr_schedule="constant",
    )
    kept, inner = {}, trainer._validate

    def validate(source):
        inner(source)
        kept[trainer.state.step] = {n: t.detach().clone() for n, t in trainer.model.state_dict().items()}

    trainer._validate = validate
    history = trainer.fit()
    losses = {r["step"]: r["val_loss"] for r in history if "val_loss" in r}
    best = min(losses, key=losses.get)
    assert trainer.state.step == best + 4 < 200
    assert best > 1
    assert same(trainer.model.state_dict(), kept[best])
    assert not torch.equal(kept[best]["encoder.W_enc"], kept[best + 4]["encoder.W_enc"])


@quiet
def test_losses_under_changing_weights_are_not_compared(rows):
    """With a rising weight every validation is worse than the one before, however well training goes."""
    settings = {"validation_fraction": 0.3, "validate_every": 1, "patience": 3, "terms": ["mse", "l1"], "steps": 40}
    trainer = make(rows, activation="relu", schedules={"l1.weight": [(0, 0), (0.5, 50), (1, 50)]}, **settings)
    inner, calls = trainer.best.compare, []
    trainer.best.compare = lambda *a, **k: (calls.append(trainer.state.step), inner(*a, **k))[1]
    trainer.fit()
    assert calls[0] == 21, "step 20 of 40 has the weight at 19/39, a little below half"
    assert trainer.state.step > 20
    with pytest.raises(ValueError, match="patience would never act: the schedule of l1.weight moves to the very end"):
        make(rows, activation="relu", schedules={"l1.weight": [(0, 0), (1, 50)]}, **settings)


@quiet
def test_a_loss_from_before_a_jump_is_no_best(rows):
    """The weight jumps after step 20: the loss of that step, without the penalty, stayed the best for ever."""
    schedules = {"l1.weight": [(0, 0), (0.5, 0), (0.5, 50)]}
    for steps in (40, 41):  # of 41, step 21 stands exactly at the jump, with the value before it
        settings = {"steps": steps, "validation_fraction": 0.3, "validate_every": 1, "patience": 3}
        trainer = make(rows, activation="relu", terms=["mse", "l1"], schedules=schedules, **settings)
        inner, weights = trainer.best.compare, []
        trainer.best.compare = lambda *a, k=inner, w=weights, t=trainer, **n: (
            w.append(t.terms["l1"].weight),
            k(*a, **n),
        )
        trainer.fit()
        assert set(weights) == {50}


def test_when_schedules_have_settled(rows):
    def settled(*points):
        schedules = make(rows, schedules={"mse.weight": points}).schedules
        return [schedules.settled(done) for done in (0, 0.49, 0.5, 0.51, 1)]

    assert settled((0, 3)) == [True] * 5
    assert settled((0, 0), (0.5, 3)) == [False, False, True, True, True]
    assert settled((0, 0), (0.5, 0), (0.5, 3)) == [False, False, False, True, True]
    assert settled((0, 0), (0, 3)) == [False, True, True, True, True]
    assert settled((0, 3), (0.5, 0), (0.5, 3)) == [False, False, False, True, True], "3 at the beginning is not the end"


@quiet
def test_an_early_stop_leaves_a_checkpoint_where_it_is(rows, tmp_path):
    """With checkpoint_every 0 there was none, and the next run in the folder took its place."""
    settings = {"steps": 3000, "validation_fraction": 0.25, "patience": 1, "validate_every": 5, "learning_rate": 0.3}
    for every in (0, 7):
        folder = tmp_path / str(every)
        trainer = make(rows, folder, checkpoint_every=every, **settings)
        trainer.fit()
        assert trainer.state.step < 3000
        assert checkpoint.latest(folder / "checkpoints").name == f"step-{trainer.state.step:09d}.safetensors"
        again = make(rows, folder, checkpoint_every=every, **settings)
        seen = watch(again)
        again.fit(resume=True)
        assert seen == []
        assert same(again.model.state_dict(), trainer.model.state_dict())
        with pytest.raises(FileExistsError, match="holds the checkpoints of a run"):
            make(rows, folder, steps=5).fit()


@quiet
def test_without_patience_the_last_weights_stay(rows):
    settings = {"validate_every": 1, "learning_rate": 0.3, "steps": 20}
    watched = make(rows, validation_fraction=0.3, **settings)
    watched.fit()
    plain = ff.Trainer(
        ff.Autoencoder(12, 24), watched.source, config=ff.TrainConfig(batch_size=32, **settings), progress=False
    )
    plain.fit()
    assert same(plain.model.state_dict(), watched.model.state_dict())


# ---------------------------------------------------------------------------------------- words to people


def idle_l1(rows):
    trainer = make(rows, activation="relu", terms=["mse", {"name": "l1", "weight": 1e-6}], steps=3)
    with torch.no_grad():
        trainer.model.encoder.b_enc += 100  # everything fires
    return trainer


def test_a_penalty_that_did_nothing_is_a_warning(rows):
    with pytest.warns(
        ff.SparsityWarning, match=r"L1 penalty did nothing: .* of 24 latents fire per row; raise its weight"
    ):
        idle_l1(rows).fit()
    with pytest.warns(ff.SparsityWarning, match=r"KL penalty did not reach its target.*rho 0.05, and nothing else"):
        make(rows, activation="sigmoid", terms=["mse", {"name": "kl", "weight": 1e-6}], steps=3).fit()


def test_a_penalty_that_worked_is_not(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(
            rows,
            activation="relu",
            preprocess="standardize",
            terms=["mse", {"name": "l1", "weight": 5.0}],
            steps=300,
            learning_rate=1e-2,
        ).fit()
        make(
            rows, activation="sigmoid", terms=["mse", {"name": "kl", "weight": 50}], steps=400, learning_rate=3e-2
        ).fit()


def test_the_warning_points_at_the_callers_line(rows):
    with pytest.warns(ff.SparsityWarning) as caught:
        idle_l1(rows).fit()
    assert caught[0].filename == __file__


def test_silence_and_a_sentence(rows, capsys):
    make(rows).fit()
    assert capsys.readouterr() == ("", "")
    trainer = ff.Trainer(ff.Autoencoder(12, 24), ff.ArraySource(rows), config=ff.TrainConfig(steps=5))
    trainer.fit()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == trainer.describe() + "\n", "no progress for work of a moment"
    assert "5 steps in" in err
    assert "of 24 latents fire per row" in err


def test_progress_lines_come_after_seconds(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    lines = progress.make_progress(None)
    assert isinstance(lines, progress.LineProgress)
    lines.start(1000, 0)
    for step, now in enumerate(np.arange(100.0, 112.0, 0.5)):  # noqa: B007
        lines.advance(step, 12345.6, {"loss": 0.51234, "l0": 3.0, "mse": 1.0})
    printed = capsys.readouterr().err.splitlines()
    assert printed == [
        "step 10/1000  loss 0.5123  l0 3  12,346 rows/s",
        "step 20/1000  loss 0.5123  l0 3  12,346 rows/s",
    ]
    lines.start(3, 0)
    now += 1.0
    lines.advance(3, 1.0, {})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("bar", [False, True])
def test_a_terminal_that_is_gone_does_not_end_training(rows, monkeypatch, bar):
    """A lost connection, or `fewfire train ... 2>&1 | head`: every write to standard error fails from then on."""

    class Gone:
        encoding = "utf-8"

        def isatty(self):
            return bar

        def write(self, *text):
            raise BrokenPipeError(32, "Broken pipe")

        flush = fileno = write

    monkeypatch.setattr(sys, "stderr", Gone())
    model = ff.Autoencoder(12, 24, {"name": "topk", "k": 3})
    trainer = ff.Trainer(model, rows, config=ff.TrainConfig(steps=20, batch_size=32))
    assert isinstance(trainer.progress, progress.TerminalProgress if bar else progress.LineProgress)
    trainer.progress.every = 0.0
    trainer.fit()
    assert trainer.summary


def test_the_bar(rows, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(progress.make_progress(None), progress.TerminalProgress)
    bar = progress.TerminalProgress()
    bar.start(10, 3)
    bar.advance(10, 5.0, {"loss": 0.25})
    bar.stop()
    err = capsys.readouterr().err
    assert "10/10" in err
    assert "loss 0.25" in err


def test_the_bar_is_put_away_when_training_fails(rows):
    trainer = make(damaged(rows), terms=["mse"])
    calls = []
    trainer.progress = type(
        "Recorder", (), {n: lambda self, *a, n=n: calls.append(n) for n in ("start", "advance", "stop")}
    )()
    with pytest.raises(ff.TrainingError):
        trainer.fit()
    assert calls[0] == "start"
    assert calls[-1] == "stop"


# ----------------------------------------------------------------------------------------------- results


def test_lbfgs_reaches_a_lower_loss_than_adam(rows):
    scaled = (rows - rows.min(0)) / np.ptp(rows, 0)

    def loss(optimizer, **settings):
        trainer = make(
            scaled,
            activation="sigmoid",
            network={"name": "linear", "output": "sigmoid"},
            terms=[
                {"name": "mse", "weight": 0.5},
                {"name": "kl", "weight": 0.1},
                {"name": "weight_decay", "weight": 1e-4},
            ],
            batch_size=200,
            optimizer=optimizer,
            **settings,
        )
        trainer.fit()
        return [r["loss"] for r in trainer._log.history if "loss" in r][-1]

    lbfgs = loss("lbfgs", steps=100)
    assert lbfgs < 0.8 * loss("adam", steps=250, learning_rate=1e-2), "with the same number of gradients"


def test_the_same_seed_gives_the_same_bits_another_does_not(rows):
    runs = [make(rows, corruption="gaussian", seed=seed, steps=10) for seed in (1, 1, 2)]
    for trainer in runs:
        trainer.fit()
    assert same(bits(runs[0]), bits(runs[1]))
    assert not torch.equal(runs[0].model.encoder.W_enc, runs[2].model.encoder.W_enc)


def test_logging_checkpoints_and_validation_do_not_touch_the_numbers(rows, tmp_path):
    plain, busy = make(rows), make(rows, tmp_path, log_every=1, checkpoint_every=1)
    plain.fit()
    busy.fit()
    assert same(bits(plain), bits(busy))


def test_metrics_is_strict_json(rows, tmp_path):
    make(damaged(rows), tmp_path, terms=["mse"], on_nonfinite="skip", log_every=1).fit()
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_memory_does_not_grow_with_the_steps(rows):
    """What is kept per step is the log's line; tensors are not."""
    import gc

    trainer = make(rows, steps=300, log_every=300)
    counts = {}
    inner = trainer._step

    def step(batch):
        if trainer.state.step in (50, 299):
            gc.collect()
            counts[trainer.state.step] = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
        return inner(batch)

    trainer._step = step
    trainer.fit()
    assert counts[299] <= counts[50] + 2


def test_targets_may_have_a_preprocess_of_their_own_without_a_pair(rows):
    """The target then is the same row in another space; taken for the input's, it trained towards the wrong numbers."""
    model = ff.Autoencoder(12, 24, {"name": "topk", "k": 8}, preprocess="standardize", preprocess_out="minmax")
    ff.Trainer(model, rows, config=ff.TrainConfig(steps=600, learning_rate=3e-3), progress=False).fit()
    assert ff.evaluate(model, rows)["fvu"] < 1


def test_default_terms_are_those_the_model_can_take(rows):
    model = ff.Autoencoder(12, 24, network={"name": "linear", "output": "sigmoid"}, preprocess="minmax")
    assert list(ff.Trainer(model, rows, progress=False).terms) == ["mse"], "auxk needs a linear decoder"


def test_the_name_of_a_member_is_taken_once():
    with pytest.raises(ValueError, match=r"'relu' is taken by fewfire\.activations\.classical\.ReLU"):
        type("ReLU", (ff.Activation,), {})
    assert ff.Activation.registry["relu"] is ff.ReLU


def test_a_collapse_is_a_warning(rows):
    """A rate that kills the dictionary used to end with exit code 0 and no word."""
    model = ff.Autoencoder(12, 64, ff.TopK(1))
    config = ff.TrainConfig(steps=50, learning_rate=30.0)
    with pytest.warns(ff.SparsityWarning, match=r"% of the latents never fire; lower the learning rate \(now 30\)"):
        ff.Trainer(model, rows, [ff.MSE()], config, progress=False).fit()
