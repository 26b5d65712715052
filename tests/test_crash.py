"""kill -9 at any moment, any number of times: the run goes on to the bits of one that nobody killed."""

from __future__ import annotations

import random
import signal
import time
import warnings
from itertools import cycle

import numpy as np
import pytest

import fewfire as ff
from fewfire import runs
from fewfire.disk import LOCK, is_temporary, load_tensors
from fewfire.tracking import read_metrics
from fewfire.trainer import checkpoint
from nursery import children, needs_fork, said, start

pytestmark = needs_fork

STEPS = 50


def train(tell, folder, data, every):
    """Says where training begins, and at last that it is done."""
    inner = ff.Trainer._train

    def telling(trainer):
        tell(trainer.state.step)
        inner(trainer)

    ff.Trainer._train = telling
    config = {
        "data": {"path": data},
        "model": {"n_latents": 1500, "activation": {"name": "topk", "k": 3}},
        "corruption": {"name": "masking", "level": 0.2},
        "train": {
            "steps": STEPS,
            "batch_size": 48,
            "checkpoint_every": every,
            "log_every": 1,
            "dead_after": 96,
            "validation_fraction": 0.2,
            "validate_every": 4,
            "patience": 50,
            "schedules": {"mse.weight": [[0, 1], [0.5, 2]]},
        },
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.SparsityWarning)
        runs.train(runs.RunConfig.model_validate(config), folder, resume=True, progress=False)
    return "done"


def content(run):
    """Everything in a run folder, bit for bit, but for measured times."""
    names = {str(p.relative_to(run)) for p in run.rglob("*")}
    tensors = {}
    for name in names:
        if name.endswith(".safetensors"):
            found, metadata = load_tensors(run / name)
            tensors[name] = {n: t.numpy().tobytes() for n, t in found.items()}, {**metadata, "seconds": 0}
    log = [{k: v for k, v in r.items() if k not in ("seconds", "rows_per_second")} for r in read_metrics(run)]
    return names, tensors, log, (run / "config.yaml").read_text()


def finish(run, data, every):
    """Train to the end; (seconds that took, the step at which it began)."""
    with children(start(train, str(run), data, every)) as (child,):
        begun = time.monotonic()
        step = child.answer()
        assert child.answer() == "done"
        return time.monotonic() - begun, step


def newest_step(run):
    path = checkpoint.latest(run / "checkpoints")
    return 0 if path is None else int(path.stem.removeprefix("step-"))


def writing(run):
    return any(is_temporary(p.name) for p in run.rglob(".*"))


def wait_until_it_writes(run, seconds):
    """At most that long: a life cut at random rarely ends inside a write, where a fast disk makes them short."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not writing(run):
        pass


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_and_resumed(rows, tmp_path, kills):
    data = str(tmp_path / "rows.npy")
    np.save(data, rows)
    lives, whole = {}, {}
    for every in range(1, 6):
        lives[every], _ = finish(tmp_path / f"whole-{every}", data, every)
        whole[every] = content(tmp_path / f"whole-{every}")
    clock, killed, while_writing, chains, shapes = random.Random(0), 0, 0, [], cycle([1, 2, 3, 5])
    while killed < kills or not while_writing:
        assert len(chains) < kills, "none of the kills came while a file was written"
        run, every, chain, planned = tmp_path / f"run-{len(chains)}", 1 + len(chains) % 5, 0, next(shapes)
        for life in range(planned):
            with children(start(train, str(run), data, every)) as (child,):
                before = newest_step(run)
                time.sleep(clock.uniform(0, min(1, 2 / planned) * lives[every]))
                if life % 2:
                    wait_until_it_writes(run, seconds=lives[every])
                child.kill()
                child.join()
                assert said(child)[:1] in ([], [before]), "it went on where the last checkpoint was"
            chain += child.exitcode == -signal.SIGKILL
            while_writing += writing(run)
        before = newest_step(run)
        _, step = finish(run, data, every)
        assert step == before
        assert content(run) == whole[every]
        assert not [p for p in run.rglob(".*") if is_temporary(p.name) or p.name == LOCK]
        chains.append(chain)
        killed += chain
    print(f"{killed} kills in {len(chains)} runs, {while_writing} while a file was written; {chains}")  # noqa: T201
    assert max(chains) >= 3
