"""Every operation that changes a file fails once, in every way: what is there is whole, and the work can go on.

SQLite's pattern: the k-th operation fails, for k = 1, 2, ... until none is left to fail.
"""

from __future__ import annotations

import errno
import io
import os
import pathlib
import shutil
import signal
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest

import fewfire as ff
from fewfire import runs
from fewfire.disk import LOCK, is_temporary, load_tensors
from fewfire.tracking import read_metrics
from fewfire.trainer import TrainingError, checkpoint
from nursery import children, needs_fork, start

pytestmark = needs_fork

KINDS = ("kill", "ENOSPC", "EIO", "EACCES", "short")
STEPS = 6
ROOM = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
"""a file system in memory: what is tested is the order of things, not how long a disk takes"""


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(dir=ROOM))
    yield path
    shutil.rmtree(path)


# --------------------------------------------------------------------------------------------- the faults


class Faults:
    """Within it, the ``at``-th operation that changes something below ``root`` goes wrong.

    kill: the process dies, of a write after half of it. ENOSPC: no new file from then on, and no write but the first
    half of one; what frees space works. EIO, EACCES: that one operation. short: of writes alone the ``at``-th takes
    half and says so.
    """

    def __init__(self, root, kind, at):
        self.root, self.kind, self.at = str(root), kind, at
        self.count, self.fired = 0, None
        self.patch = pytest.MonkeyPatch()

    def __enter__(self):
        for name in ("open", "mkdir", "unlink", "replace", "rmdir"):
            self.patch.setattr(os, name, self._by_path(name, getattr(os, name)))
        for name in ("fsync", "write", "ftruncate"):
            self.patch.setattr(os, name, self._by_handle(name, getattr(os, name)))
        real = Path.open

        def opened(path, mode="r", buffering=-1, *rest, **more):
            if not set(mode) & set("xaw+") or not str(path).startswith(self.root):
                return real(path, mode, buffering, *rest, **more)
            self.operation("open", path)
            raw = Raw(path, mode, self)
            return raw if buffering == 0 else (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)

        self.patch.setattr(pathlib.Path, "open", opened)
        return self

    def __exit__(self, *error):
        self.patch.undo()

    def _by_path(self, name, real):
        def call(path, *args, **kwargs):
            if str(path).startswith(self.root):
                self.operation(name, path)
            return real(path, *args, **kwargs)

        return call

    def _by_handle(self, name, real):
        def call(handle, *args):
            if str(Path(f"/proc/self/fd/{handle}").readlink()).startswith(self.root):
                self.operation(name)
            return real(handle, *args)

        return call

    def operation(self, name, path=None):
        """Count it, and raise or die if it is its turn."""
        if self.kind == "short":
            return
        self.count += 1
        frees = name in ("unlink", "rmdir", "truncate", "ftruncate", "replace")
        lasting = self.kind == "ENOSPC" and self.fired is not None and not frees
        if self.count != self.at and not lasting:
            return
        if self.kind == "ENOSPC" and frees:
            return
        self.fired = self.fired or name
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, self.kind)  # as the system does, the path is named where there was one
        raise OSError(code, os.strerror(code), *([] if path is None else [str(path)]))


class Raw(io.FileIO):
    """A file whose writes may take only a part."""

    def __init__(self, path, mode, faults):
        super().__init__(path, mode.replace("b", ""))
        self.faults = faults

    def write(self, data):
        faults = self.faults
        half = memoryview(data).cast("B")[: (len(data) + 1) // 2]
        if faults.kind == "short":
            faults.count += 1
            if faults.count == faults.at:
                return super().write(half)
        if faults.kind == "ENOSPC" and faults.count + 1 == faults.at:  # the disk takes what it can, then refuses
            faults.count += 1
            faults.fired = "write"
            return super().write(half)
        if faults.kind == "kill" and faults.count + 1 == faults.at:
            super().write(half)
        faults.operation("write")
        return super().write(data)

    def truncate(self, *args):
        self.faults.operation("truncate")
        return super().truncate(*args)


# ---------------------------------------------------------------------------------------------- the work


def config(data):
    return runs.RunConfig.model_validate(
        {
            "data": {"path": str(data)},
            "model": {"n_latents": 6, "activation": {"name": "topk", "k": 2}},
            "train": {"steps": STEPS, "batch_size": 16, "checkpoint_every": 2, "log_every": 1, "learning_rate": 0.01},
        }
    )


def train(root):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.SparsityWarning)
        return runs.train(config(root / "rows.npy"), root / "run", resume=True, progress=False)


def train_until_killed(tell, root, at):
    with Faults(root / "run", "kill", at):
        train(root)
    return "done"


def content(run):
    """Everything that a run leaves, but for measured times."""
    files = {str(p.relative_to(run)) for p in run.rglob("*")}
    tensors = {name: load_tensors(run / name) for name in files if name.endswith(".safetensors")}
    log = [{k: v for k, v in r.items() if k not in ("seconds", "rows_per_second")} for r in read_metrics(run)]
    return files, {n: (bits(t), timeless(m)) for n, (t, m) in tensors.items()}, log, (run / "config.yaml").read_text()


def bits(tensors):
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def timeless(metadata):
    return {name: value for name, value in metadata.items() if name != "seconds"}


@pytest.fixture
def truth(folder, monkeypatch):
    """(what an undisturbed run leaves, the tensors of each of its checkpoints)."""
    np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32))
    steps, save = {}, checkpoint.save_tensors

    def saved(path, tensors, metadata):
        steps[path.name] = bits(tensors)
        save(path, tensors, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_tensors", saved)
        train(folder)
    left = content(folder / "run")
    shutil.rmtree(folder / "run")
    return left, steps


def check_whole(run, steps, model):
    """Whatever is there is all of something."""
    for path in (run / "checkpoints").glob("step-*"):
        assert bits(load_tensors(path)[0]) == steps[path.name]
    if (run / "model" / "model.safetensors").exists():
        assert bits(load_tensors(run / "model" / "model.safetensors")[0]) == model


def check_message(error, run):
    message = str(error)
    assert "\n" not in message
    assert len(message) < 400 + 2 * len(str(run))
    assert str(run) in message
    assert ".tmp" not in message


def litter(folder):
    return [path for path in folder.rglob("*") if is_temporary(path.name) or path.name == LOCK]


def disturbed(root, kind, at):
    """Train with a fault; the error if there was one, and whether the fault's turn came."""
    if kind == "kill":
        with children(start(train_until_killed, root, at)) as (child,):
            child.join(60)
            return None, child.exitcode == -signal.SIGKILL
    with Faults(root / "run", kind, at) as faults:
        try:
            train(root)
        except (OSError, TrainingError) as error:
            return error, True
        return None, faults.count >= at


@pytest.mark.parametrize("begin", ["new", "resumed"])
@pytest.mark.parametrize(
    ("kind", "stride"),
    [("kill", 4), pytest.param("kill", 1, marks=pytest.mark.slow), *((kind, 1) for kind in KINDS[1:])],
)
def test_a_run_in_which_one_operation_fails(folder, truth, kind, stride, begin):
    left, steps = truth
    model = left[1]["model/model.safetensors"][0]
    if begin == "resumed":
        with children(start(train_until_killed, folder, 62)) as (child,):
            child.join(60)
        assert 0 < len(list((folder / "run" / "checkpoints").glob("step-*"))) < 3
        shutil.copytree(folder / "run", folder / "before")
    at, fired, failures = 1, True, 0
    while fired:
        error, fired = disturbed(folder, kind, at)
        run = folder / "run"
        if error is not None:
            failures += 1
            check_message(error, run)
        if kind != "kill" and run.exists():
            assert not [p for p in litter(run) if p.name != LOCK], at
        if run.exists():
            check_whole(run, steps, model)
        train(folder)
        assert content(run) == left, at
        shutil.rmtree(run)
        if begin == "resumed":
            shutil.copytree(folder / "before", run)
        at += stride
    assert at > (5 if kind == "short" else 35)
    assert (failures > 0) == (kind in ("ENOSPC", "EIO", "EACCES"))


# --------------------------------------------------------------------------------- a model over another


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_saved_over_another_is_the_one_or_the_other(folder, kind):
    old, new = ff.Autoencoder(4, 6, seed=1), ff.Autoencoder(4, 6, seed=2)
    both = [bits(model.state_dict()) for model in (old, new)]
    at, fired, seen = 1, True, set()
    while fired:
        ff.save(old, folder / "model")
        error = None
        if kind == "kill":
            with children(start(save_until_killed, folder, at)) as (child,):
                child.join(60)
                fired = child.exitcode == -signal.SIGKILL
        else:
            with Faults(folder, kind, at) as faults:
                try:
                    ff.save(new, folder / "model")
                except OSError as caught:
                    error = caught
            fired = faults.count >= at
            assert not litter(folder), at
        if error is not None:
            check_message(error, folder)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*did not agree with")
            found = both.index(bits(ff.load(folder / "model").state_dict()))
        assert found == 1 or error is not None or kind == "kill"
        seen.add(found)
        at += 1
    assert seen == ({1} if kind == "short" else {0, 1})


def save_until_killed(tell, folder, at):
    with Faults(folder, "kill", at):
        ff.save(ff.Autoencoder(4, 6, seed=2), folder / "model")


# ------------------------------------------------------------------------------- before hours of work


def small(rows, folder, **settings):
    config = ff.TrainConfig(**{"steps": 6, "batch_size": 32, "checkpoint_every": 2, **settings})
    return ff.Trainer(
        ff.Autoencoder(12, 24, {"name": "topk", "k": 3}), rows, config=config, folder=folder, progress=False
    )


def watch_steps(trainer):
    steps, inner = [], trainer._step
    trainer._step = lambda batch: (steps.append(trainer.state.step), inner(batch))[1]
    return steps


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
@pytest.mark.parametrize("settings", [{}, {"validation_fraction": 0.5, "patience": 9}, {"optimizer": "lbfgs"}], ids=str)
def test_room_for_the_checkpoints_is_looked_for_first(rows, tmp_path, monkeypatch, settings):
    free = 10**12
    usage = lambda path: shutil._ntuple_diskusage(10**12, 0, free)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    if settings.get("optimizer") == "lbfgs":
        model = lambda: ff.Autoencoder(12, 24, "sigmoid")  # noqa: E731
        config = ff.TrainConfig(steps=50, checkpoint_every=10, optimizer="lbfgs")
        make = lambda run: ff.Trainer(model(), rows, [ff.MSE()], config, folder=run, progress=False)  # noqa: E731
    else:
        make = lambda run: small(rows, run, **settings)  # noqa: E731
    make(tmp_path / "whole").fit()
    files = [p.stat().st_size for p in (tmp_path / "whole" / "checkpoints").iterdir()]
    free = 2.7 * max(files)  # two are kept, and a third is there before the first goes
    trainer = make(tmp_path / "run")
    steps = watch_steps(trainer)
    with pytest.raises(OSError, match=r"too little room: 3 checkpoints of .* MB are free; free some space") as caught:
        trainer.fit()
    assert caught.value.errno == errno.ENOSPC
    assert steps == []
    free = 4 * max(files)
    make(tmp_path / "run").fit()
    free = 0
    make(tmp_path / "run").fit(resume=True)  # it is over, and nothing will be written
    checkpoint.latest(tmp_path / "run" / "checkpoints").unlink()
    free = max(files)
    with pytest.raises(OSError, match="too little room"):
        make(tmp_path / "run").fit(resume=True)
    free = 2.5 * max(files)
    make(tmp_path / "run").fit(resume=True)  # one of the three is there already


def test_a_table_of_too_many_columns_is_refused_first(tmp_path, monkeypatch):
    wide = ff.ArraySource(
        np.zeros((40, 20_000), np.float32), layout=ff.Layout("table", columns=tuple(f"gene {i}" for i in range(20_000)))
    )
    model = ff.Autoencoder(20_000, 2, {"name": "topk", "k": 1})
    trainer = ff.Trainer(model, wide, config=ff.TrainConfig(steps=1), folder=tmp_path, progress=False)
    monkeypatch.setattr("fewfire.disk.tensors.MAX_HEADER_BYTES", 1 << 18)
    steps = watch_steps(trainer)
    with pytest.raises(ValueError, match="bytes of names and metadata"):
        trainer.fit()
    assert steps == []


# ------------------------------------------------------------------------------------- in the middle of it


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
def test_a_checkpoint_that_cannot_be_removed_stops_nothing(rows, tmp_path, monkeypatch):
    real = os.unlink

    def unlink(path, **kwargs):
        if "step-" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        real(path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        small(rows, tmp_path).fit()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3
    small(rows, tmp_path).fit(resume=True)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2, "removed the next time"


@pytest.mark.parametrize("at", ["a checkpoint", "a line of the log"])
def test_a_folder_that_vanishes(rows, tmp_path, at):
    run = tmp_path / "run"
    trainer = small(
        rows, run, checkpoint_every=2 if at == "a checkpoint" else 5, log_every=6 if at == "a checkpoint" else 1
    )
    inner = trainer._step

    def step(batch):
        if trainer.state.step == 3:
            shutil.rmtree(run)
        return inner(batch)

    trainer._step = step
    with pytest.raises(TrainingError, match=r"run vanished during training, with all that was saved in it"):
        trainer.fit()
    assert not run.exists(), "half of it must not come back"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(rows, tmp_path):
    run = tmp_path / "run"
    run.mkdir(mode=0o555)
    with pytest.raises(PermissionError, match="could not write"):
        small(rows, run).fit()
