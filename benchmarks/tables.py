"""Tables on disk: how fast fewfire reads and trains from Parquet and CSV, and what memory that takes.

    python benchmarks/tables.py [--folder FOLDER] [--rows 1000000] [--rounds 3]

Writes tables of numbers with six digits into the folder (kept, and used again) or a temporary one (removed): Parquet
as pandas writes it, float64 in row groups of 1,048,576 rows, and CSV of the same numbers. Every line is measured in a
process of its own, with one thread for products. What is compared takes turns, and each line is the round that took
the least CPU. Files are in the page cache.

CPU seconds are of one core and hold on a busy machine; "wall" is what a clock showed while others worked beside it.

**Reading.** From the closed file to the last row, opening included. fewfire hands over batches of 256 rows; pandas and
pyarrow end with one table in memory, where batches would begin. "first": wall seconds to the first batch. "peak":
memory.

**Training.** One epoch of batches of 256 by ``Trainer.fit``, with all that belongs to it: the preprocess is fitted on
a pass before, the summary is measured on 50,000 rows after. "main" and "reader" are the CPU seconds of the thread that
trains and of the one that reads ahead. With a core for each, the slower of the two decides: "of memory" is the time
from an array in memory, which is not charged for being read, as a share of it. Above 100 % reading would be free.

**Memory.** Peak resident memory above that of the same process after a small run, over opening, an epoch of training
and an evaluation of every row. pandas: read the file, train on the frame.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from measure import print_table, print_title

WIDTHS = {"40 -> 160 topk": 40, "64 -> 25 sigmoid": 64}
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the tables are, or will be; needs about 3 GB")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        sys.stdout.write(json.dumps(MEASURES[args.measure[0]](*args.measure[1:])))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        reading(folder, args.rows, args.rounds)
        training(folder, args.rows, args.rounds)
        memory(folder, args.rows)


# ----------------------------------------------------------------------------------------------------------- the tables


def reading(folder: Path, rows: int, rounds: int) -> None:
    print_title(f"Reading {rows:,} rows of 40 columns once")
    lines = []
    for ending in ("parquet", "csv"):
        path = table(folder, rows, 40, ending)
        names = ["fewfire shuffled", "fewfire in order", "pyarrow", "pandas"]
        for name, r in best_of(rounds, names, lambda name, path=path: measured("read", name, path)).items():
            speed = f"{rows / r['cpu']:,.0f}"
            first = f"{r['first']:.2f}" if "first" in r else ""
            lines.append([f"{ending}, {name}", f"{r['cpu']:.2f}", speed, f"{r['wall']:.2f}", first, f"{r['peak']:,}"])
    print_table(["", "CPU s", "rows per CPU s", "wall", "first", "peak MB"], lines)


def training(folder: Path, rows: int, rounds: int) -> None:
    print_title(f"Training one epoch of {rows:,} rows, batches of {BATCH}")
    lines = []
    for model, width in WIDTHS.items():
        paths = {ending: table(folder, rows, width, ending) for ending in ("parquet", "csv")}
        sources = {"memory": paths["parquet"], **paths}
        best = best_of(rounds, list(sources), lambda name, s=sources, m=model: measured("train", m, name, s[name]))
        for name, r in best.items():
            reader = r["cpu"] - r["main"]
            slower = max(r["main"], reader)
            share, speed, wall = best["memory"]["main"] / slower, rows / slower, rows / r["wall"]
            found = [f"{r['main']:.1f}", f"{reader:.1f}", f"{speed:,.0f}", f"{share:.0%}", f"{wall:,.0f}"]
            lines.append([f"{model}, {name}", *found, f"{r['fvu']:.4f}"])
    print_table(["", "main", "reader", "rows/s", "of memory", "rows/s wall", "fvu"], lines)


def memory(folder: Path, rows: int) -> None:
    sizes = [rows // 4, rows, 2 * rows]
    print_title("Peak memory above a small run's, MB: one epoch of 40 -> 160, then an evaluation of every row")
    lines = []
    for name, pool in (("fewfire", 256), ("fewfire", 32), ("pandas", 0)):
        for ending in ("parquet", "csv"):
            peaks = [measured("peak", name, pool, table(folder, n, 40, ending))["peak"] for n in sizes]
            label = f"{ending}, {name}{f', pools of {pool} MiB' if pool else ''}"
            lines.append([label, *(f"{peak:,}" for peak in peaks)])
    print_table(["", *(f"{n:,} rows" for n in sizes)], lines)


def best_of(rounds: int, names: list[str], measure: Any) -> dict[str, Any]:
    """Each name's round of least CPU; the names take turns."""
    results: dict[str, list[Any]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            results[name].append(measure(name))
    return {name: min(found, key=lambda result: float(result["cpu"])) for name, found in results.items()}


def measured(*words: object) -> dict[str, Any]:
    """What a fresh process finds."""
    command = [sys.executable, __file__, "--measure", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def table(folder: Path, rows: int, width: int, ending: str) -> Path:
    """The table's file, written if it is not there."""
    path = folder / f"table_{rows}x{width}.{ending}"
    if not path.exists():
        measured("write", path, rows, width)
    return path


# ---------------------------------------------------------------------------------------------- in a process of its own


def write(path: str, rows: str, width: str) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    names = [f"column_{i}" for i in range(int(width))]
    schema = pa.schema([(name, pa.float64()) for name in names])
    generator = np.random.default_rng(0)
    unfinished = Path(f"{path}.unfinished")
    writers = {".parquet": pa.parquet.ParquetWriter, ".csv": pa.csv.CSVWriter}
    with writers[Path(path).suffix](str(unfinished), schema) as writer:
        for first in range(0, int(rows), 1 << 20):
            n = min(1 << 20, int(rows) - first)
            hidden = generator.normal(size=(n, 8)) @ generator.normal(size=(8, len(names)))
            x = (hidden + generator.normal(size=hidden.shape)).round(6)
            writer.write_table(pa.table([pa.array(column) for column in x.T.copy()], schema=schema))
    unfinished.rename(path)
    return {}


def read(name: str, path: str) -> dict[str, Any]:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.csv
    import pyarrow.parquet

    from fewfire.sources import open_source

    is_csv = path.endswith(".csv")
    whole = {
        "pandas": pd.read_csv if is_csv else pd.read_parquet,
        "pyarrow": pa.csv.read_csv if is_csv else pa.parquet.read_table,
    }
    with peak() as found, clocks(found):
        start = time.perf_counter()
        if name in whole:
            whole[name](path)
        else:
            for batch in open_source(path).batches(BATCH, shuffle=name == "fewfire shuffled"):
                found.setdefault("first", time.perf_counter() - start)
                assert len(batch.x)
    return found


def train(model: str, name: str, path: str) -> dict[str, Any]:
    import fewfire as ff

    data = ff.open_source(path)
    if name == "memory":
        import pyarrow.parquet as pq

        columns = pq.read_table(path).columns
        data = ff.ArraySource(np.stack([column.to_numpy() for column in columns], axis=1))
    found: dict[str, Any] = {}
    with clocks(found):
        found["fvu"] = fit(model, data).summary["fvu"]
    return found


def fit(model: str, data: Any) -> Any:
    import fewfire as ff

    width = data.row_shape[0]
    latents, activation = (160, {"name": "topk", "k": 10}) if "topk" in model else (25, "sigmoid")
    autoencoder = ff.Autoencoder(width, latents, activation, preprocess="standardize")
    config = ff.TrainConfig(epochs=1, batch_size=BATCH)
    trainer = ff.Trainer(autoencoder, data, config=config, progress=False)
    trainer.fit()
    return trainer


def peak_of_training(name: str, pool: str, path: str) -> dict[str, Any]:
    import pandas as pd
    import pyarrow.csv  # noqa: F401  before, so that what it takes is not counted

    import fewfire as ff

    small = np.random.default_rng(0).normal(size=(1000, 40))
    ff.evaluate(fit("topk", ff.open_source(small)).model, small)
    with peak() as found:
        if name == "fewfire":
            data = ff.open_source(path, shuffle_bytes=int(pool) << 20)
        else:
            data = ff.open_source(pd.read_csv(path) if path.endswith(".csv") else pd.read_parquet(path))
        result = ff.evaluate(fit("topk", data).model, data)
        assert result["n_rows"] == data.n_rows
    return found


@contextmanager
def clocks(found: dict[str, Any]) -> Iterator[None]:
    """ "wall", "cpu" of all threads and "main" of this one, in seconds."""
    before = time.perf_counter(), time.process_time(), time.thread_time()
    yield
    after = time.perf_counter(), time.process_time(), time.thread_time()
    found.update({name: b - a for name, a, b in zip(("wall", "cpu", "main"), before, after, strict=True)})


@contextmanager
def peak() -> Iterator[dict[str, Any]]:
    """ "peak": MB of resident memory at the highest, above what there was before."""
    import psutil

    before = psutil.Process().memory_info().rss
    found: dict[str, Any] = {}
    yield found
    found["peak"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before / 1e6)


MEASURES = {"write": write, "read": read, "train": train, "peak": peak_of_training}


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    main()
