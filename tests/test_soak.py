"""Hours of work in a minute: memory stays flat, and nothing is left open."""

from __future__ import annotations

import gc
import threading
import warnings

import numpy as np
import psutil
import pytest
from scipy.stats import theilslopes

import fewfire as ff
from nursery import children, needs_fork, start

pytestmark = needs_fork

KB, MB = 1 << 10, 1 << 20


def rows():
    return np.random.default_rng(0).normal(size=(4096, 64)).astype(np.float32)


def measured(tell, work, times, folder):
    """[(times done, bytes of memory, open files, threads, processes)], at about 40 moments of the work."""
    process, found = psutil.Process(), []

    def note(done):
        if done % max(1, times // 40) == 0:
            gc.collect()
            files = process.num_fds()
            found.append((done, process.memory_info().rss, files, threading.active_count(), len(process.children())))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.SparsityWarning)
        work(note, times, folder)
    return found


def train_once(note, times, folder):
    model = ff.Autoencoder(64, 256, preprocess="standardize")
    config = ff.TrainConfig(
        steps=times, batch_size=64, checkpoint_every=times // 20, validation_fraction=0.1, validate_every=times // 10
    )
    trainer = ff.Trainer(model, rows(), config=config, corruption=ff.Masking(0.1), folder=folder, progress=False)
    inner = trainer._after_step
    trainer._after_step = lambda *args: (inner(*args), note(trainer.state.step))[0]
    trainer.fit()


def train_often(note, times, folder):
    data = rows()
    for i in range(times):
        model = ff.Autoencoder(64, 128, preprocess="standardize")
        config = ff.TrainConfig(steps=5, batch_size=64, checkpoint_every=0)
        ff.Trainer(model, data, config=config, folder=f"{folder}/{i % 2}-{i}", progress=False).fit()
        note(i)


def load_often(note, times, folder):
    ff.save(ff.Autoencoder(64, 512), folder)
    x = rows()[:64]
    for i in range(times):
        ff.load(folder).encode(x)
        note(i)


@pytest.mark.parametrize(
    ("work", "times", "per_piece"),
    [
        (train_once, 2000, KB),
        (load_often, 100, 8 * KB),
        (train_often, 40, 64 * KB),
        pytest.param(train_once, 10_000, KB, marks=pytest.mark.slow),
        pytest.param(load_often, 500, 8 * KB, marks=pytest.mark.slow),
        pytest.param(train_often, 300, 64 * KB, marks=pytest.mark.slow),
    ],
)
def test_nothing_grows(tmp_path, work, times, per_piece):
    """After a fifth, in which caches fill: a flat line through the memory, and constant numbers of all else."""
    with children(start(measured, work, times, str(tmp_path / "x"))) as (child,):
        found = np.array(child.answer(300))
    done, memory, *counts = found[len(found) // 5 :].T
    slope = theilslopes(memory, done).slope  # the median of all pairs: one step of the allocator is no growth
    growth = memory[-1] - memory[0]
    print(f"{work.__name__} x {times}: {slope:.1f} bytes each, {growth / MB:.2f} MB in all")  # noqa: T201
    assert slope < per_piece
    assert growth < 20 * MB
    for count in counts:
        assert set(count) == {count[0]}
