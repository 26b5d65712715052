"""Shuffled batches from an activation store beside the training step.

    python benchmarks/store.py --data FOLDER [--gigabytes 4] [--steps 300]

FOLDER/store is made if it is not there: rows of 384 float16 values, mixed from 2,000 directions, as many as fill that
size. The page cache is dropped before every pass (posix_fadvise), and every block is read once in an epoch: so all of
it comes from the disk, as of a store larger than memory, and what was really read is printed (/proc/self/io). Linux
only.

Two things are measured on one thread, in turn, several times: an epoch, or as many rows as --rows, of batches of 2,048
alone; and the step of `Trainer.fit`, TopK 384/4096 k 32 with AuxK, from the store and from 65,536 of its rows in
memory. Of a step, "waiting" is the wall time between asking for a batch and having it; CPU seconds are the whole
process's, the reading thread's included. Means over the steps behind the first twenty.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import fewfire as ff
from fewfire.sources import ArraySource, StoreSource
from fewfire.store import Part, StoreWriter, rows_per_shard
from measure import print_table, print_title

D, N_LATENTS, K, BATCH = 384, 4096, 32, 2048
WARM_UP = 20
IN_MEMORY = 65_536


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with room for the store")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--rows", type=int, default=2_000_000, help="of a pass without training")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = asked.data / "store"
    if not (path / "manifest.json").exists():
        make_store(path, round(asked.gigabytes * 1e9 / (2 * D)))
    source = StoreSource(path)
    rows = source.store.vectors(range(IN_MEMORY))
    read = [reading(path, source, asked.rows, epoch) for epoch in range(asked.times)]
    steps: dict[str, list[Step]] = {"from memory": [], "from the store": []}
    for _ in range(asked.times):
        steps["from memory"].append(training(ArraySource(rows), asked.steps))
        drop_cache(path)
        steps["from the store"].append(training(source, asked.steps))
    size = source.n_rows * 2 * D / 1e9
    print_title(f"{source.n_rows:,} rows of {D} float16, {size:.1f} GB, medians of {asked.times}")
    wall, cpu, from_disk = (statistics.median(values) for values in zip(*read, strict=True))
    print(f"batches alone: {1 / wall:,.0f} rows a second, {1 / cpu:,.0f} a CPU second, {from_disk:.2f} GB from disk\n")
    lines = []
    for name, measured in steps.items():
        wall, waiting, cpu = (statistics.median(values) for values in zip(*measured, strict=True))
        lines.append((name, *(f"{1e3 * value:.1f}" for value in (wall, waiting, cpu)), f"{waiting / wall:.1%}"))
    print_table(("step, ms", "wall", "of it waiting", "CPU", "waiting"), lines)
    memory, store = (statistics.median(step[2] for step in measured) for measured in steps.values())
    print(f"\nthe store costs {1e3 * (store - memory):.1f} CPU ms a step, {(store - memory) / memory:.1%} of it")


Step = tuple[float, float, float]
"""seconds: wall, of it waiting, CPU"""


def make_store(path: Path, n_rows: int) -> None:
    """Rows that a dictionary can learn from: ten of 2,000 directions each."""
    path.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2000, D, generator=generator)
    writer = StoreWriter(path, ["made up"], "float16", "token", {"benchmark": "store"})
    size = rows_per_shard(D, "float16")
    for first in range(0, n_rows, size):
        n = min(size, n_rows - first)
        chosen = torch.randint(2000, (n, 10), generator=generator)
        weights = torch.rand(n, 10, generator=generator)
        rows = torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=weights, mode="sum").half()
        writer.write(Part({"made up": rows}, *tables(first, n), digest="", units=n))
    writer.finish()


def tables(first: int, n: int) -> tuple[pa.Table, pa.Table]:
    none, numbers = pa.nulls(n, pa.int32()), pa.array(np.arange(first, first + n))
    text = pa.nulls(n, pa.string())
    names = {"position": none, "token_id": none, "token": text, "start": none, "end": none}
    return (
        pa.table({"document": numbers, **names, "label": text}),
        pa.table({"document": numbers, "text": text, "label": text}),
    )


def drop_cache(path: Path) -> None:
    for file in path.glob("shard-*"):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def from_disk() -> int:
    """Bytes that this process has made the disk read."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def reading(path: Path, source: StoreSource, n_rows: int, epoch: int) -> tuple[float, float, float]:
    """(wall seconds a row, CPU seconds a row, gigabytes from the disk)."""
    drop_cache(path)
    before, wall, cpu = from_disk(), time.perf_counter(), time.process_time()
    n = sum(len(batch.x) for batch in itertools.islice(source.batches(BATCH, epoch=epoch), n_rows // BATCH))
    return (time.perf_counter() - wall) / n, (time.process_time() - cpu) / n, (from_disk() - before) / 1e9


class Timed:
    """A source, with the clock read whenever a batch is asked for and whenever one is there."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.clocks: list[tuple[float, float, float]] = []
        self.kept = self.clocks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def batches(self, batch_size: int, **options: Any) -> Iterator[Any]:
        self.clocks = []  # what is read before and after training asks anew
        batches = self._source.batches(batch_size, **options)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.clocks.append((asked, time.perf_counter(), time.process_time()))
            self.kept = max(self.kept, self.clocks, key=len)
            if batch is None:
                return
            yield batch


def training(source: Any, steps: int) -> Step:
    timed = Timed(source)
    model = ff.Autoencoder(D, N_LATENTS, ff.TopK(k=K), preprocess="center", seed=0)
    config = ff.TrainConfig(steps=steps, batch_size=BATCH, threads=1)
    ff.Trainer(model, timed, config=config, progress=False).fit()
    clocks = timed.kept[WARM_UP:]
    n = len(clocks) - 1
    waiting = sum(there - asked for asked, there, _ in clocks[1:])
    return (clocks[-1][1] - clocks[0][1]) / n, waiting / n, (clocks[-1][2] - clocks[0][2]) / n


if __name__ == "__main__":
    main()
