"""Ctrl-C, SIGTERM, SIGHUP: training stops after a whole step, with a checkpoint, and goes on to the same bits."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire import runs
from fewfire.disk import load_tensors
from fewfire.tracking import read_metrics
from fewfire.trainer import Interrupted, checkpoint
from nursery import children, needs_fork, start

pytestmark = [needs_fork, pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")]

SIGNALS = pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def press(signum=signal.SIGINT):
    os.kill(os.getpid(), signum)


def make(rows, folder=None, **settings):
    model = ff.Autoencoder(12, 24, {"name": "topk", "k": 3}, preprocess=settings.pop("preprocess", None))
    config = ff.TrainConfig(**{"steps": 30, "batch_size": 32, "checkpoint_every": 7, "log_every": 1, **settings})
    return ff.Trainer(model, rows, config=config, folder=folder, progress=False)


def at_step(trainer, step, action):
    inner = trainer.engine.step

    def watched(batch, state):
        if state.step == step:
            action()
        return inner(batch, state)

    trainer.engine.step = watched


def weights(trainer):
    return {n: t.clone() for n, t in {**trainer.model.state_dict(), **trainer.engine.state_dict()}.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def timeless(folder):
    return [{k: v for k, v in r.items() if k not in ("seconds", "rows_per_second")} for r in read_metrics(folder)]


# ------------------------------------------------------------------------------------------- in this process


@SIGNALS
def test_the_step_is_finished_and_the_checkpoint_written(rows, tmp_path, signum):
    whole = make(rows, tmp_path / "whole")
    whole.fit()
    part = make(rows, tmp_path / "part")
    at_step(part, 12, lambda: press(signum))
    with pytest.raises(
        KeyboardInterrupt, match=r"stopped after step 13 of 30; --resume .* goes on from .*13\.saf"
    ) as caught:
        part.fit()
    assert isinstance(caught.value, Interrupted)
    assert caught.value.signum == signum
    assert part.state.step == 13
    tensors, metadata = load_tensors(checkpoint.latest(tmp_path / "part" / "checkpoints"))
    assert metadata["step"] == 13
    assert same({n.removeprefix("model/"): t for n, t in tensors.items() if n[:6] == "model/"}, part.model.state_dict())
    last = make(rows, tmp_path / "part")
    last.fit(resume=True)
    assert same(weights(last), weights(whole))
    assert timeless(tmp_path / "part") == timeless(tmp_path / "whole")


def test_without_a_folder_the_model_has_the_weights_of_a_whole_step(rows):
    reference = make(rows, steps=30)
    kept = {}
    at_step(reference, 13, lambda: kept.update(weights(reference)))
    reference.fit()
    part = make(rows)
    at_step(part, 12, press)
    with pytest.raises(Interrupted, match="stopped after step 13 of 30; without a folder there is no checkpoint"):
        part.fit()
    assert same(weights(part), kept)


@SIGNALS
def test_a_second_signal_ends_it_at_once(rows, tmp_path, signum):
    trainer = make(rows, tmp_path)

    def twice():
        press(signum)
        press(signum)
        pytest.fail("the step went on")

    at_step(trainer, 12, twice)
    with pytest.raises(Interrupted, match="stopped at once, in the middle of a step") as caught:
        trainer.fit()
    assert caught.value.signum == signum
    assert checkpoint.latest(tmp_path / "checkpoints").name == "step-000000007.safetensors"
    assert no_litter(tmp_path)
    make(rows, tmp_path).fit(resume=True)


def no_litter(folder):
    return not [p for p in folder.rglob(".*") if p.is_file()]


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_while_a_checkpoint_is_written(rows, tmp_path, monkeypatch, times):
    """One: it is finished. Two: it is given up, and what was there before stays."""
    trainer, real, pressed = make(rows, tmp_path), os.fsync, []

    def fsync(handle):
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        if ".step-000000014" in name and not pressed:
            pressed.append(name)
            for _ in range(times):
                press()
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Interrupted, match="after step 14 of 30" if times == 1 else "at once"):
        trainer.fit()
    names = [p.name for p in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step-000000007.safetensors", *(["step-000000014.safetensors"] if times == 1 else [])]
    assert no_litter(tmp_path)
    load_tensors(checkpoint.latest(tmp_path / "checkpoints"))


@pytest.mark.parametrize("where", ["before the first step", "in the last step", "in the summary"])
def test_at_the_edges(rows, tmp_path, monkeypatch, where):
    whole = make(rows, tmp_path / "whole", preprocess="standardize")
    whole.fit()
    part = make(rows, tmp_path / "part", preprocess="standardize")
    if where == "before the first step":
        monkeypatch.setattr(part, "_open_log", lambda resumed, inner=part._open_log: (press(), inner(resumed)))
        sentence, step = "stopped after step 0 of 30", 0
    elif where == "in the last step":
        at_step(part, 29, press)
        sentence, step = "stopped after step 30 of 30", 30
    else:
        monkeypatch.setattr(part, "_finish", lambda inner=part._finish: (press(), inner()))
        sentence, step = "stopped before the summary; --resume .* goes on from .*step-000000030", 30
    with pytest.raises(Interrupted, match=sentence):
        part.fit()
    assert load_tensors(checkpoint.latest(tmp_path / "part" / "checkpoints"))[1]["step"] == step
    last = make(rows, tmp_path / "part", preprocess="standardize")
    last.fit(resume=True)
    assert same(weights(last), weights(whole))
    assert timeless(tmp_path / "part") == timeless(tmp_path / "whole")


def test_a_signal_at_the_very_end_is_not_swallowed(rows, tmp_path):
    trainer = make(rows, tmp_path)
    trainer._log = None
    monkey, trainer.describe = trainer.describe, lambda: (press(), monkey())[1]
    trainer.speaks = True
    with pytest.raises(Interrupted, match="training is complete"):
        trainer.fit()
    assert trainer.summary


def test_while_the_preprocess_is_fitted(rows, tmp_path):
    class Slow(ff.ArraySource):
        given = 0

        def batches(self, *args, **kwargs):
            for batch in super().batches(10, **kwargs):
                self.given += 1
                if self.given == 3:
                    press()
                yield batch

    trainer = make(Slow(rows), tmp_path, preprocess="standardize")
    with pytest.raises(Interrupted, match="before the first step; nothing was trained"):
        trainer.fit()
    assert trainer.source.given == 3, "it did not read to the end"
    assert not trainer.model.preprocess.fitted
    assert not list(tmp_path.iterdir())


def test_a_validation_cut_short_is_caught_up_with(rows, tmp_path):
    """A checkpoint between a step and its validation would leave the validation out for ever."""
    settings = {"validation_fraction": 0.3, "validate_every": 5, "patience": 100, "checkpoint_every": 5}
    whole = make(rows, tmp_path / "whole", **settings)
    whole.fit()
    seen = []
    for step in (5, 30):
        part = make(rows, tmp_path / "part", **settings)
        inner = part.validation.batches

        def batches(*args, part=part, inner=inner, step=step, **kwargs):
            if part.state.step == step and step not in seen:
                seen.append(step)
                press()
            return inner(*args, **kwargs)

        part.validation.batches = batches
        with pytest.raises(Interrupted, match=f"stopped after step {step} of 30"):
            part.fit(resume=True)
        assert [r["step"] for r in read_metrics(tmp_path / "part") if "val_loss" in r] == list(range(5, step, 5))
    last = make(rows, tmp_path / "part", **settings)
    last.fit(resume=True)
    assert timeless(tmp_path / "part") == timeless(tmp_path / "whole")
    assert last.summary == whole.summary
    ends = [load_tensors(checkpoint.latest(tmp_path / run / "checkpoints")) for run in ("part", "whole")]
    assert same(ends[0][0], ends[1][0])
    assert {**ends[0][1], "seconds": 0} == {**ends[1][1], "seconds": 0}


def test_lbfgs_stops_between_two_steps(rows, tmp_path):
    settings = {"optimizer": "lbfgs", "batch_size": None, "checkpoint_every": 0, "steps": 12}

    def lbfgs(folder):
        model = ff.Autoencoder(12, 24, "sigmoid")
        return ff.Trainer(model, rows, [ff.MSE()], ff.TrainConfig(**settings), folder=folder, progress=False)

    whole, part = lbfgs(tmp_path / "whole"), lbfgs(tmp_path / "part")
    whole.fit()
    inner = part.model.forward

    def press_once():
        part.model.forward = lambda *args: (setattr(part.model, "forward", inner), press(), inner(*args))[2]

    at_step(part, 6, press_once)  # in the middle of the step
    with pytest.raises(Interrupted, match="stopped after step 7 of 12"):
        part.fit()
    last = lbfgs(tmp_path / "part")
    last.fit(resume=True)
    assert same(weights(last), weights(whole))


# ----------------------------------------------------------------------------------------- whose handlers


def test_handlers_are_the_callers_again(rows):
    heard = []
    mine = {s: (lambda n, f: heard.append(n)) for s in EXIT}
    before = {s: signal.signal(s, handler) for s, handler in mine.items()}
    try:
        trainer = make(rows)
        at_step(trainer, 3, lambda: heard.append([signal.getsignal(s) for s in EXIT]))
        trainer.fit()
        assert heard.pop() != list(mine.values()), "while it trains they are the trainer's"
        assert [signal.getsignal(s) for s in EXIT] == list(mine.values())
        at_step(trainer := make(rows), 3, press)
        with pytest.raises(Interrupted):
            trainer.fit()
        assert [signal.getsignal(s) for s in EXIT] == list(mine.values())
        assert heard == []
        with pytest.raises(ff.TrainingError):
            make(np.full_like(rows, np.nan)).fit()
        assert [signal.getsignal(s) for s in EXIT] == list(mine.values())
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def test_what_is_ignored_stays_ignored(rows):
    """As under nohup, or for a job in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trainer = make(rows)
        at_step(trainer, 3, press)
        trainer.fit()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert trainer.state.step == 30


def test_in_another_thread_nothing_is_installed(rows):
    failed = []

    def fit():
        try:
            make(rows).fit()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    assert failed == []


# --------------------------------------------------------------------------------------- processes, at random


def train(tell, folder, data):
    config = {
        "data": {"path": data},
        "model": {"n_latents": 256, "activation": {"name": "topk", "k": 3}},
        "train": {"steps": 90, "batch_size": 48, "checkpoint_every": 3, "log_every": 1, "validation_fraction": 0.2},
    }
    tell("begun")
    try:
        runs.train(runs.RunConfig.model_validate(config), folder, resume=True, progress=False)
    except KeyboardInterrupt as error:
        return f"stopped: {error}"
    return "trained"


@pytest.mark.parametrize("times", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_at_random_moments(rows, tmp_path, times):
    """Each is stopped by one signal, and goes on to the end: the model is that of a run that nobody stopped."""
    data = str(tmp_path / "rows.npy")
    np.save(data, rows)
    with children(start(train, str(tmp_path / "whole"), data)) as (child,):
        child.answer()
        begun = time.monotonic()
        assert child.answer() == "trained"
        life = time.monotonic() - begun
    clock, stopped = random.Random(0), 0
    for i in range(times):
        run, signum = tmp_path / str(i), list(EXIT)[i % 3]
        with children(start(train, str(run), data)) as (child,):
            child.answer()
            time.sleep(clock.uniform(0.1, 0.9) * life)
            with suppress(ProcessLookupError):  # this one was faster than the first
                os.kill(child.pid, signum)
            told = time.monotonic()
            answer = child.answer()
            assert time.monotonic() - told < 10
        if answer != "trained":
            stopped += 1
            assert answer.startswith("stopped: ")
            assert no_litter(run) if run.exists() else True
            with children(start(train, str(run), data)) as (child,):
                child.answer()
                assert child.answer() == "trained"
        for name in ("checkpoints/step-000000090.safetensors", "model/model.safetensors"):
            assert same(*(load_tensors(folder / name)[0] for folder in (run, tmp_path / "whole")))
        assert timeless(run) == timeless(tmp_path / "whole")
        mine, theirs = (sorted(p.name for p in folder.rglob("*")) for folder in (run, tmp_path / "whole"))
        assert len(mine) == len(theirs)
        # the last checkpoint but one may be that of the signal
        assert {n for n in mine if "step-" not in n} == {n for n in theirs if "step-" not in n}
    assert stopped >= times / 2


PROGRAM = [sys.executable, "-c", "from fewfire.cli import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(ff.__file__).parent.parent)}


@SIGNALS
def test_the_command_line(rows, tmp_path, signum):
    """One line that says where the checkpoint is, and the exit code that a shell expects."""
    np.save(tmp_path / "rows.npy", rows)
    settings = ["--set", "train.steps=1000000", "--set", "train.checkpoint_every=0", "--set", "train.log_every=50"]
    child = subprocess.Popen(
        [*PROGRAM, "train", "rows.npy", "--out", "run", *settings],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    log = tmp_path / "run" / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signum)
    _, err = child.communicate(timeout=60)
    assert child.returncode == EXIT[signum]
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*")).relative_to(tmp_path)
    sentence = r"fewfire: stopped after step [\d,]+ of 1,000,000; --resume \(or fit\(resume=True\)\) goes on from "
    assert re.fullmatch(sentence + re.escape(str(newest)) + "\n", err)
    assert no_litter(tmp_path / "run")
