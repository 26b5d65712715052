"""The same seed gives the same bits: again, elsewhere, whatever Python's hashes and, in these shapes, the threads."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire.trainer import checkpoint
from fewfire.trainer.threads import threads, worthwhile_threads

pytestmark = pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")

CASES = {
    "topk": {},
    "relu": {"activation": "relu", "preprocess": "standardize"},
    "sigmoid": {"activation": "sigmoid", "network": {"name": "linear", "output": "sigmoid"}, "preprocess": "minmax"},
    "denoising": {"corruption": "gaussian"},
    "lbfgs": {"activation": "sigmoid", "optimizer": "lbfgs", "batch_size": None},
    "held out": {"validation_fraction": 0.2, "validate_every": 3},
}


def digest(
    shape=(200, 12, 24), steps=20, activation="topk", corruption=None, network="linear", preprocess=None, **more
):
    """SHA-256 of what training left: parameters, optimiser, counters and the log."""
    n, columns, latents = shape
    rows = np.random.default_rng(0).normal(size=(n, columns)).astype(np.float32)
    seed = more.get("seed", 0)
    model = ff.Autoencoder(columns, latents, activation, network=network, preprocess=preprocess, seed=seed)
    corruption = None if corruption is None else ff.Corruption.from_config(corruption)
    config = ff.TrainConfig(**{"steps": steps, "batch_size": 32, "log_every": 1, **more})
    trainer = ff.Trainer(model, rows, config=config, corruption=corruption, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.SparsityWarning)
        history = trainer.fit()
    sha = hashlib.sha256()
    for name, tensor in {
        **model.state_dict(),
        **trainer.engine.state_dict(),
        "fired": trainer.state.since_fired,
    }.items():
        sha.update(name.encode() + tensor.numpy().tobytes())
    log = [{k: v for k, v in r.items() if k not in ("seconds", "rows_per_second")} for r in history]
    sha.update(json.dumps(log, sort_keys=True).encode())
    return sha.hexdigest()


@pytest.mark.parametrize("case", CASES)
def test_ten_runs_in_one_process(case):
    assert len({digest(**CASES[case]) for _ in range(10)}) == 1
    assert digest(**{**CASES[case], "seed": 1}) != digest(**CASES[case]), "and the seed matters"


def test_three_processes_with_other_hashes():
    """Sets and dictionaries of names come in another order where PYTHONHASHSEED differs."""
    program = f"import test_determinism as t\nprint(*(t.digest(**case) for case in {list(CASES.values())!r}))"
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(Path(ff.__file__).parent.parent)])
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("0", "1", "random")
    ]
    told = {run.communicate(timeout=120)[0] for run in runs}
    assert told == {" ".join(digest(**case) for case in CASES.values()) + "\n"}


@pytest.mark.parametrize("case", ["topk", "relu", "sigmoid", "denoising"])
def test_one_thread_or_two_small(case):
    one, two = (digest(**CASES[case], threads=n, steps=3) for n in (1, 2))
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("activation", ["topk", "relu", "sigmoid"])
@pytest.mark.parametrize("shape", [(4096, 256, 2048), (2000, 300, 1000), (4096, 144, 256)], ids=str)
def test_large_sums_per_number_of_threads(shape, activation, threads):
    """Two threads add up large sums in another order than one does: bits are promised for the same number of them."""
    assert len({digest(shape, 10, activation, batch_size=1024, threads=threads) for _ in range(2)}) == 1


def test_a_resumed_run_keeps_its_number_of_threads(tmp_path):
    """Where sums do depend on it; asked for another number, it takes that."""
    rows = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)

    def make(**settings):
        config = ff.TrainConfig(steps=6, batch_size=32, checkpoint_every=3, **settings)
        trainer = ff.Trainer(ff.Autoencoder(12, 24), rows, config=config, folder=tmp_path, progress=False)
        inner = trainer._step
        trainer._step = lambda batch: (seen.append(torch.get_num_threads()), inner(batch))[1]
        return trainer

    seen = []
    before = torch.get_num_threads()
    make(threads=2).fit()
    assert seen == [2] * 6
    for settings, expected in (({}, 2), ({"threads": 1}, 1)):
        (tmp_path / "checkpoints" / "step-000000006.safetensors").unlink()
        seen.clear()
        trainer = make(**settings)
        trainer.fit(resume=True)
        assert seen == [expected] * 3
        newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
        assert checkpoint.load(newest)[1]["threads"] == expected, "for whoever resumes that"
        assert trainer.config.threads == expected
    assert torch.get_num_threads() == before


def test_fits_in_several_threads_leave_torch_its_threads():
    """The second one to begin took the first one's number for torch's own, and left it to all who came later."""
    rows, before = np.zeros((40, 4), dtype=np.float32), torch.get_num_threads()

    def in_a_thread(job):
        thread = threading.Thread(target=job)
        thread.start()
        return thread

    def fit(end, start):
        trainer = ff.Trainer(ff.Autoencoder(4, 8), rows, config=ff.TrainConfig(steps=1, threads=1), progress=False)
        trainer._finish = lambda: (start.set(), end.wait(60))
        trainer.fit()

    try:
        torch.set_num_threads(3)
        for order in ((0, 1), (1, 0)):
            begun, let_go = ([threading.Event() for _ in range(2)] for _ in range(2))
            fits = []
            for i in range(2):
                fits.append(in_a_thread(lambda i=i, begun=begun, let_go=let_go: fit(let_go[i], begun[i])))
                assert begun[i].wait(60)
            wide = []
            in_a_thread(lambda wide=wide: wide.append(worthwhile_threads(1 << 12, 1 << 12, 1 << 12))).join()
            assert wide == [3], "a wide model that is made meanwhile is not trained on the others' one"
            for i in order:
                let_go[i].set()
                fits[i].join(60)
            seen = []
            in_a_thread(lambda seen=seen: seen.append(torch.get_num_threads())).join()
            assert seen == [3]
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_threads_within_threads():
    before = torch.get_num_threads()
    with threads(2):
        with threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


# -------------------------------------------------------------------------------- what belongs to the caller


def state():
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad": torch.is_grad_enabled(),
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP)],
        "environment": dict(os.environ),
        "folder": Path.cwd(),
    }


@pytest.mark.parametrize("case", CASES)
def test_training_leaves_the_callers_world_as_it_was(case, tmp_path):
    before = state()
    digest(**CASES[case])
    assert state() == before
    rows = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)
    config = ff.TrainConfig(steps=3, threads=2)
    ff.Trainer(ff.Autoencoder(12, 24), rows, config=config, folder=tmp_path, progress=False).fit()
    ff.save(ff.Autoencoder(12, 24), tmp_path / "model")
    ff.load(tmp_path / "model").encode(rows)
    with pytest.raises(ff.TrainingError):
        ff.Trainer(ff.Autoencoder(12, 24), rows * np.nan, config=config, progress=False).fit()
    assert state() == before


IMPORTING = """
import os, random, signal, sys, warnings, numpy, torch
import sklearn  # which adds a filter for its own warnings
def state():
    return (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads(),
            torch.get_default_dtype(), list(warnings.filters), warnings.showwarning, dict(os.environ), os.getcwd(),
            [signal.getsignal(s) for s in range(1, 32) if s not in (9, 19)], sys.excepthook, sorted(os.listdir()))
before = state()
import fewfire
for name in fewfire.__all__:
    getattr(fewfire, name)
import fewfire.cli, fewfire.runs, fewfire.report, fewfire.demo
changed = [i for i, (a, b) in enumerate(zip(before, state())) if a != b]
print("changed", changed)
"""


def test_importing_changes_nothing(tmp_path):
    path = str(Path(ff.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "changed []\n"
