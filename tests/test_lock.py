"""One writer at a time: exactly one wins, the other is told who; a dead one is in nobody's way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import runpy
import signal
import sys
import threading
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

import fewfire as ff
from fewfire import runs
from fewfire.disk import LOCK, FolderInUseError, atomic_write, atomic_writer, locked, sweep
from fewfire.disk import lock as module
from nursery import children, needs_fork, start

pytestmark = needs_fork


def hold(tell, folder):
    with locked(folder):
        tell("held")
        time.sleep(60)


def try_to_lock(tell, folder, at):
    """Wait for the moment, then be the only one."""
    while time.monotonic() < at:
        pass
    try:
        with locked(folder):
            tell("held")
            time.sleep(0.15)
            return "done"
    except FolderInUseError as error:
        return str(error)


# ----------------------------------------------------------------------------------------------- the lock


def test_the_second_is_told_who_the_first_is(tmp_path):
    with children(start(hold, str(tmp_path / "run"))) as (child,):
        assert child.answer() == "held"
        with pytest.raises(FolderInUseError) as caught, locked(tmp_path / "run"):
            pytest.fail("two writers")
        message = str(caught.value)
        assert f"in use by process {child.pid} on {platform.node()} since " in message
        assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(", message)
        assert message.endswith("wait for it, end it, or choose another folder")
        assert "\n" not in message
        assert len(message) < 400 + len(str(tmp_path))
        with locked(tmp_path / "other"):
            pass


def test_it_ends_with_a_killed_process(tmp_path):
    with children(start(hold, str(tmp_path))) as (child,):
        assert child.answer() == "held"
        child.kill()
        child.join()
        assert (tmp_path / LOCK).exists()
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_another_thread_is_another_writer_the_same_one_is_not(tmp_path):
    refused = []

    def other():
        try:
            with locked(tmp_path):
                pass
        except FolderInUseError as error:
            refused.append(str(error))

    with locked(tmp_path):
        with locked(tmp_path), locked(tmp_path / "."):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(refused) == 1
        assert f"process {os.getpid()} " in refused[0]
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(refused) == 1


def fork_while_holding(tell, folder):
    with locked(folder):
        child = os.fork()
        if child == 0:
            try:
                with locked(folder):
                    os._exit(3)
            except FolderInUseError:
                os._exit(4)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, Path(folder, LOCK).exists()


def outlive_the_holder(tell, folder):
    awake, woken = os.pipe()
    with locked(folder):
        child = os.fork()
        if child == 0:
            os.write(woken, b".")  # it has started, and with that let go of what it inherited
            time.sleep(60)
            os._exit(0)
        os.read(awake, 1)
        tell(child)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_fork_does_not_inherit_it(tmp_path):
    """A worker is another writer; and one that outlives its killed parent must not keep the folder locked."""
    with children(start(fork_while_holding, str(tmp_path)), start(outlive_the_holder, str(tmp_path / "b"))) as both:
        code, there = both[0].answer()
        assert code == 4
        assert there, "the child has not unlocked what is its parent's"
        worker = both[1].answer()
        both[1].join()
        try:
            with locked(tmp_path / "b"):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("times", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_of_two_that_start_at_once_exactly_one_wins(tmp_path, times):
    for i in range(times):
        at = time.monotonic() + 0.15
        with children(*(start(try_to_lock, str(tmp_path / str(i)), at) for _ in range(2))) as both:
            first = [child.answer() for child in both]
            assert first.count("held") == 1
            other = next(word for word in first if word != "held")
            winner = both[first.index("held")]
            assert f"in use by process {winner.pid} " in other
            assert winner.answer() == "done"
        assert not list((tmp_path / str(i)).iterdir())


def race_for(tell, folder, until):
    """Take the lock as often as possible, and see whether one is ever alone in vain."""
    won = 0
    while time.monotonic() < until:
        try:
            with locked(folder):
                Path(folder, "mark").touch(exist_ok=False)
                Path(folder, "mark").unlink()
                won += 1
        except FolderInUseError:
            pass
    return won


def test_removing_the_file_races_with_nobody(tmp_path):
    """The holder removes it; one that had it open already must not think that it has the lock."""
    until = time.monotonic() + 2
    with children(*(start(race_for, str(tmp_path), until) for _ in range(3))) as racers:
        won = [child.answer() for child in racers]
    assert sum(won) > 50
    assert sum(w > 0 for w in won) >= 2


def test_a_killed_ones_words_are_not_taken_for_the_new_holders(tmp_path):
    """Between locking and writing its name a holder has the dead one's words in its file."""
    dead = start(hold, str(tmp_path))
    with children(dead):
        dead.answer()
    words = (tmp_path / LOCK).read_bytes()
    handle = os.open(tmp_path / LOCK, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)

    def write_late():
        time.sleep(0.05)
        module._write_holder(handle)

    thread = threading.Thread(target=write_late)
    thread.start()
    with pytest.raises(FolderInUseError, match=f"process {os.getpid()} "), locked(tmp_path):
        pass
    thread.join()
    (tmp_path / LOCK).write_bytes(words)  # and if it never says so, the one there was is all there is to say
    with pytest.raises(FolderInUseError, match=f"process {dead.pid} "), locked(tmp_path):
        pass
    (tmp_path / LOCK).write_bytes(b'{"pid": "\\u001b[31m", "command": "' + b"x" * 500 + b'"}')
    with pytest.raises(FolderInUseError, match=r"process \?\[31m \(x{80}\)"), locked(tmp_path):
        pass
    (tmp_path / LOCK).write_bytes(b"\xff[[[")
    with pytest.raises(FolderInUseError, match=r"process \(not known\);"), locked(tmp_path):
        pass
    os.close(handle)


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "mkdir"])
def test_a_folder_that_refuses_is_an_error_in_a_line(tmp_path, monkeypatch, code, call):
    real = getattr(os, call)

    def refuse(path, *args, **kwargs):
        if str(tmp_path) in str(path):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, call, refuse)
    sentence = rf"could not write \({os.strerror(code)}\); nothing was changed"
    with pytest.raises(OSError, match=sentence) as caught, locked(tmp_path / "run"):
        pass
    assert caught.value.errno == code
    assert caught.value.filename == str(tmp_path / "run")


def test_words_that_cannot_be_written_do_no_harm(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "ftruncate", full)
    with locked(tmp_path), pytest.raises(BlockingIOError):
        fcntl.flock(os.open(tmp_path / LOCK, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)


# -------------------------------------------------------------------------------------- systems without locks


@pytest.mark.parametrize("how", ["the file system", "the system"])
def test_without_locks_it_warns_and_goes_by_what_the_file_says(tmp_path, monkeypatch, how):
    def unable(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    if how == "the system":
        monkeypatch.setattr(module, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", unable)
    with pytest.warns(UserWarning, match="has no locks; make sure that nobody else writes"), locked(tmp_path):
        words = (tmp_path / LOCK).read_text()
    assert not (tmp_path / LOCK).exists()
    alive = {**json.loads(words), "pid": os.getppid()}
    (tmp_path / LOCK).write_text(json.dumps(alive))
    with pytest.raises(FolderInUseError, match=f"process {os.getppid()} "), locked(tmp_path):
        pass
    for stale in ({**alive, "pid": 2**22 + 1}, {**alive, "host": "elsewhere"}, {**alive, "pid": os.getpid()}, [], {}):
        (tmp_path / LOCK).write_text(json.dumps(stale))
        with pytest.warns(UserWarning, match="has no locks"), locked(tmp_path):
            pass


def test_on_windows(tmp_path, monkeypatch):
    """As far as it can be tested here: its calls, on a lock that behaves like its own."""

    def locking(handle, mode, n):
        assert (mode, n) == (2, 1)
        assert os.lseek(handle, 0, os.SEEK_CUR) > 1 << 20, (
            "a locked byte cannot be read, and others must read who it is"
        )
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        there = types.SimpleNamespace(**runpy.run_path(module.__file__))
        with there.locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()
            there._held.clear()
            with pytest.raises(there.FolderInUseError, match=f"process {os.getpid()} "), there.locked(tmp_path):
                pass


def test_a_lock_that_fails_is_no_lock(tmp_path, monkeypatch):
    def broken(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path):
        pass


# ------------------------------------------------------------------------------------------------ the litter


def litter(tell, file):
    with atomic_writer(file) as opened:
        opened.write(b"half")
        opened.flush()
        tell(next(Path(file).parent.glob(f".{Path(file).name}.tmp-*")).name)
        time.sleep(60)


def test_what_a_killed_writer_left_is_swept_what_a_living_one_writes_is_not(tmp_path):
    dead, living = start(litter, str(tmp_path / "a")), start(litter, str(tmp_path / "c"))
    with children(dead, living):
        left, busy = dead.answer(), living.answer()
        dead.kill()
        dead.join()
        other_host = left.replace(left.split("-")[1], "00000000")
        keep = {busy, other_host, ".a.txt.tmp-1", ".tmp", "a.txt.tmp-00000000-1-00000000"}
        for name in keep - {busy}:
            (tmp_path / name).write_text("somebody's")
        atomic_write(tmp_path / "b", "x")
        assert (tmp_path / left).exists(), "of this moment: a process in another container may be writing it"
        os.utime(tmp_path / left, (1, 1))
        atomic_write(tmp_path / "b", "x")
        assert {p.name for p in tmp_path.iterdir()} == keep | {"b"}
        (tmp_path / left).write_text("again")
        with locked(tmp_path):
            assert not (tmp_path / left).exists(), "whoever holds the lock need not wait"
        assert {p.name for p in tmp_path.iterdir()} == keep | {"b"}


def test_in_a_container_the_dead_one_may_have_had_our_number(tmp_path):
    with atomic_writer(tmp_path / "a") as file:
        ours = next(tmp_path.iterdir())
        left = tmp_path / f"{ours.name[:-8]}12345678"
        left.write_text("before the restart")
        sweep(tmp_path)
        assert ours.exists()
        assert not left.exists()
        file.write(b"whole")
    assert (tmp_path / "a").read_text() == "whole"
    sweep(tmp_path / "missing")


# --------------------------------------------------------------------------------------------------- runs


def train(tell, folder, data, at, steps):
    while time.monotonic() < at:
        pass
    config = {"data": {"path": data}, "train": {"steps": steps, "batch_size": 32, "checkpoint_every": 0}}
    try:
        runs.train(runs.RunConfig.model_validate(config), folder, resume=steps > 100, progress=False)
    except (FolderInUseError, FileExistsError) as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
def test_a_second_training_is_refused_from_whatever_side(rows, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    run = str(tmp_path / "run")
    model = ff.Autoencoder(12, 24)
    with children(start(train, run, str(tmp_path / "rows.npy"), 0, 10**6)) as (child,):
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert child.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        config = runs.RunConfig.model_validate({"data": {"path": str(tmp_path / "rows.npy")}, "train": {"steps": 5}})
        before = {p.name for p in (tmp_path / "run").iterdir()}
        with pytest.raises(FolderInUseError, match=f"process {child.pid} "):
            runs.train(config, run, resume=True, progress=False)
        with pytest.raises(FolderInUseError, match=f"process {child.pid} "):
            ff.Trainer(model, rows, config=ff.TrainConfig(steps=5), folder=run, progress=False).fit(resume=True)
        assert {p.name for p in (tmp_path / "run").iterdir()} == before
    trainer = ff.Trainer(model, rows, config=ff.TrainConfig(steps=5), folder=tmp_path / "own", progress=False)
    trainer.fit()
    assert not (tmp_path / "own" / LOCK).exists()


@pytest.mark.parametrize("times", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_two_trainings_that_start_at_once(rows, tmp_path, times):
    np.save(tmp_path / "rows.npy", rows)
    for i in range(times):
        at = time.monotonic() + 0.3
        with children(
            *(start(train, str(tmp_path / str(i)), str(tmp_path / "rows.npy"), at, 40) for _ in "ab")
        ) as both:
            answers = [child.answer() for child in both]
        assert answers.count("trained") == 1
        loser = next(answer for answer in answers if answer != "trained")
        assert re.search(r"^FolderInUseError: .* in use by process \d+|^FileExistsError: .* is not empty", loser)
        names = {p.name for p in (tmp_path / str(i)).iterdir()}
        assert names == {"checkpoints", "config.yaml", "metrics.jsonl", "model"}


def test_a_folder_with_only_what_a_killed_start_leaves_counts_as_empty(rows, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).write_text("{}")
    with atomic_writer(run / "config.yaml"):
        left = next(p for p in run.iterdir() if p.name != LOCK)
        left.with_name(left.name[:-8] + "12345678").write_text("half")
    (run / "config.yaml").unlink()
    config = {"data": {"path": str(tmp_path / "rows.npy")}, "train": {"steps": 5, "batch_size": 32}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.SparsityWarning)
        runs.train(runs.RunConfig.model_validate(config), run, progress=False)
    assert {p.name for p in run.iterdir()} == {"checkpoints", "config.yaml", "metrics.jsonl", "model"}


# ------------------------------------------------------------------------------------------------- readers


def write_models(tell, folder, until):
    models = [ff.Autoencoder(6, 40, seed=seed) for seed in range(2)]
    tell("begun")
    n = 0
    while time.monotonic() < until:
        ff.save(models[n % 2], folder)
        n += 1
    return n


@pytest.mark.filterwarnings("ignore:.*did not agree with")
@pytest.mark.parametrize("times", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_reader_needs_no_lock_and_never_sees_a_torn_model(tmp_path, times):
    whole = [ff.Autoencoder(6, 40, seed=seed).state_dict() for seed in range(2)]
    ff.save(ff.Autoencoder(6, 40), tmp_path / "model")
    with children(start(write_models, str(tmp_path / "model"), time.monotonic() + times / 100)) as (writer,):
        assert writer.answer() == "begun"
        seen = []
        for _ in range(times):
            loaded = ff.load(tmp_path / "model").state_dict()
            same = [all((loaded[n] == model[n]).all() for n in model) for model in whole]
            assert any(same), "a mixture of two models"
            seen.append(same.index(True))
        assert writer.answer() > 10
    assert set(seen) == {0, 1}
