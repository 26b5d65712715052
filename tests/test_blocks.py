"""Sources in blocks: every row once, in an order that is a function of its key, one pool ahead, nothing left behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

import fewfire as ff
from fewfire.contracts import Layout, Source
from fewfire.sources import ArraySource, BlockSource, CsvSource, ParquetSource, blocks, lines

N, WIDTH = 997, 3
X = (np.arange(N * WIDTH, dtype=np.float32) / 4).reshape(N, WIDTH)
"""exact in float32 and in few digits; row i begins with 3i / 4"""
ROW_BYTES = WIDTH * 4 + 16


class Reader:
    """Rows of X in blocks and pieces, some of them empty, and a record of what was read."""

    first_row = 0
    row_shape = (WIDTH,)
    dtype = np.dtype(np.float32)

    def __init__(self, sizes=(100, 0, 7, 290, 1, 99, 500), piece=64, fail_at=None, wait=0.0):
        self.block_rows, self.piece, self.fail_at, self.wait = list(sizes), piece, fail_at, wait
        self.begins = [0, *accumulate(sizes)]
        self.read_blocks, self.threads, self.n_open = [], set(), 0
        assert self.begins[-1] == N

    def read(self, block):
        self.read_blocks.append(block)
        self.n_open += 1
        try:
            for at in range(self.begins[block], self.begins[block + 1], self.piece):
                self.threads.add(threading.current_thread())
                time.sleep(self.wait)
                if block == self.fail_at:
                    raise ValueError(f"file.x: block {block} is damaged")
                yield X[at : min(at + self.piece, self.begins[block + 1])].copy()
        finally:
            self.n_open -= 1

    def digest(self):
        return "reader"


def parquet(folder) -> ParquetSource:
    pq.write_table(pa.table(list(X.T.copy()), names=list("abc")), folder / "x.parquet", row_group_size=120)
    return ParquetSource(folder / "x.parquet", shuffle_bytes=300 * ROW_BYTES)


def one_row_group(folder) -> ParquetSource:
    pq.write_table(pa.table(list(X.T.copy()), names=list("abc")), folder / "one.parquet")
    return ParquetSource(folder / "one.parquet", shuffle_bytes=300 * ROW_BYTES)


def csv(folder) -> CsvSource:
    np.savetxt(folder / "x.csv", X, fmt="%g", delimiter=",", header="a,b,c", comments="")
    return CsvSource(folder / "x.csv", shuffle_bytes=300 * (WIDTH * 8 + 16))


KINDS = {
    "blocks": lambda folder: BlockSource(Reader(), shuffle_bytes=300 * ROW_BYTES),
    "fits": lambda folder: BlockSource(Reader()),
    "small pools": lambda folder: BlockSource(Reader(), shuffle_bytes=40 * ROW_BYTES),
    "parquet": parquet,
    "one row group": one_row_group,
    "csv": csv,
    "part": lambda folder: csv(folder).split(0.3, seed=9)[0],
    "part of a part": lambda folder: parquet(folder).split(0.5, seed=9)[1].split(0.3, seed=9)[0],
}


@pytest.fixture(params=KINDS)
def source(request, tmp_path, monkeypatch) -> BlockSource:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1500)
    monkeypatch.setattr(blocks, "PIECE_BYTES", 50 * 12)
    return KINDS[request.param](tmp_path)


def same(a, b) -> bool:
    return len(a) == len(b) and all(
        torch.equal(u.rows, v.rows) and torch.equal(u.x, v.x) for u, v in zip(a, b, strict=True)
    )


def rows_of(source, size=50, **key) -> list[int]:
    return torch.cat([batch.rows for batch in source.batches(size, **key)]).tolist()


# ------------------------------------------------------------------------------------------------------------ contract


def test_it_is_a_source(source):
    assert isinstance(source, Source)
    assert source.row_shape == source.target_shape == (WIDTH,)
    assert source.labels is None
    assert 1 <= source.shuffle_window <= source.n_rows == len(source) <= N


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("size", [1, 7, 64, 400, 5000])
def test_every_row_comes_once_in_batches_of_one_size(source, shuffle, size):
    """A batch may straddle pools, and be larger than one."""
    found = list(source.batches(size, seed=1, shuffle=shuffle))
    assert [len(b.rows) for b in found[:-1]] == [size] * (len(found) - 1)
    assert 1 <= len(found[-1].rows) <= size
    rows = torch.cat([b.rows for b in found])
    assert rows.dtype == torch.int64
    assert len(rows) == len(set(rows.tolist())) == source.n_rows
    assert (rows.sort().values == rows).all() == (not shuffle)
    x = torch.cat([b.x for b in found])
    assert torch.equal(x, torch.from_numpy(X)[rows].to(x.dtype))
    assert all(b.x_in is b.x for b in found)


@pytest.mark.parametrize("shuffle", [True, False])
def test_any_start_gives_the_tail_of_the_epoch(source, shuffle):
    full = list(source.batches(30, seed=2, epoch=5, shuffle=shuffle))
    for start in [*range(0, len(full), 3), len(full), len(full) + 9]:
        assert same(list(source.batches(30, seed=2, epoch=5, start=start, shuffle=shuffle)), full[start:])


def test_the_order_is_a_function_of_seed_and_epoch(source):
    order = rows_of(source, seed=1, epoch=2)
    assert order == rows_of(source, seed=1, epoch=2) == rows_of(source, size=13, seed=1, epoch=2)
    assert order != rows_of(source, seed=1, epoch=3)
    assert order != rows_of(source, seed=2, epoch=2)


@pytest.mark.parametrize("fraction", [1e-9, 0.1, 0.5, 1 - 1e-9])
def test_a_split_is_disjoint_complete_and_repeatable(source, fraction):
    rest, part = source.split(fraction, seed=4)
    a, b = rows_of(rest, shuffle=False), rows_of(part, shuffle=False)
    count = min(max(round(source.n_rows * fraction), 1), source.n_rows - 1)
    assert (rest.n_rows, part.n_rows) == (len(a), len(b)) == (source.n_rows - count, count)
    assert sorted(a + b) == rows_of(source, shuffle=False)
    assert b == rows_of(source.split(fraction, seed=4)[1], shuffle=False)
    if 0.05 < fraction < 0.95:
        assert b != rows_of(source.split(fraction, seed=5)[1], shuffle=False)


def test_the_fingerprint_follows_file_part_and_order(source):
    twins = [source, *source.split(0.5), *source.split(0.5, seed=1), source.split(0.25)[0]]
    assert len({twin.fingerprint for twin in twins}) == len(twins)
    assert source.split(0.5)[1].fingerprint == twins[2].fingerprint
    if source.is_whole:
        other = BlockSource(source.reader, shuffle_bytes=200 * 24)
        assert other.fingerprint != source.fingerprint, "pools of another size are another order"


def test_pools_of_one_row_still_give_every_row():
    source = BlockSource(Reader(piece=N), shuffle_bytes=1).split(0.05)[1]
    assert source.shuffle_window == 1
    assert sorted(rows_of(source)) == rows_of(source, shuffle=False)


def test_misuse_is_refused():
    source = BlockSource(Reader())
    for arguments in ({"batch_size": 0}, {"batch_size": 2, "start": -1}):
        with pytest.raises(ValueError, match="batch_size"):
            source.batches(**arguments)
    for fraction in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            source.split(fraction)
    with pytest.raises(ValueError, match="at least 2 rows"):
        source.split(1e-9)[1].split(0.5)
    for value in (0, "256 MiB", 1e6):
        with pytest.raises(ValueError, match="shuffle_bytes"):
            BlockSource(Reader(), shuffle_bytes=value)
    with pytest.raises(ValueError, match="layout describes"):
        BlockSource(Reader(), layout={"kind": "image", "shape": [2, 2]})
    assert BlockSource(Reader(), layout={"kind": "image", "shape": [1, 3]}).layout == Layout("image", (1, 3))


# -------------------------------------------------------------------------------------------------------------- shuffle


def test_what_fits_is_shuffled_exactly_as_an_array_read_once_and_kept():
    reader = Reader()
    source, array = BlockSource(reader), ArraySource(X)
    assert source.fits
    assert source.shuffle_window == N
    for epoch in range(3):
        assert same(list(source.batches(40, seed=3, epoch=epoch)), list(array.batches(40, seed=3, epoch=epoch)))
    assert same(list(source.batches(40, shuffle=False)), list(array.batches(40, shuffle=False)))
    assert reader.read_blocks == [0, 2, 3, 4, 5, 6], "once, and no empty block"


def test_a_row_meets_only_the_rows_of_its_pool_and_a_pool_is_shuffled_whole():
    source = BlockSource(Reader([50] * 19 + [47]), shuffle_bytes=200 * ROW_BYTES)
    assert source.shuffle_window == 200
    seen = [set(np.array(rows_of(source, seed=s)[:197]) // 50) for s in range(30)]
    assert all(len(blocks) == 4 for blocks in seen)
    assert len(set().union(*seen)) == 20, "any block may come first"
    first = np.array(rows_of(source)[:197])
    assert (np.diff(first // 50) != 0).sum() > 100, "the four blocks are mixed row by row"


def test_a_block_larger_than_a_pool_is_dealt_out_at_random():
    reader = Reader([N])
    source = BlockSource(reader, shuffle_bytes=250 * ROW_BYTES)
    pools = np.array_split(np.array(rows_of(source, seed=1)), 4)
    assert all(pool.min() < 60 and pool.max() > N - 60 for pool in pools), "each comes from the whole block"
    assert reader.read_blocks == [0] * 4


def test_start_reads_no_pool_that_it_skips():
    reader = Reader([100] * 9 + [97])
    source = BlockSource(reader, shuffle_bytes=100 * ROW_BYTES)
    list(source.batches(10, start=85))
    assert len(reader.read_blocks) == 2
    reader.read_blocks.clear()
    list(source.batches(10, start=85, shuffle=False))
    assert reader.read_blocks == [8, 9]


# --------------------------------------------------------------------------------------------------- the reading thread


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "fewfire-ahead"}


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("end", ["close", "forget", "break", "exhaust", "error outside"])
def test_no_thread_and_no_file_outlives_the_iterator(end, shuffle, monkeypatch):
    monkeypatch.setattr(blocks, "PIECE_BYTES", 600)
    reader = Reader(wait=0.005)
    source = BlockSource(reader, shuffle_bytes=100 * ROW_BYTES)
    batches = source.batches(10, shuffle=shuffle)
    next(batches)
    if end == "close":
        batches.close()
    elif end == "forget":
        del batches
        gc.collect()
    elif end == "break":
        for _ in batches:
            break
        del batches
    elif end == "exhaust":
        list(batches)
    else:

        def fails():
            for batch in source.batches(10, shuffle=shuffle):
                raise RuntimeError(f"a consumer's own, {batch}")

        del batches
        with pytest.raises(RuntimeError, match="own"):
            fails()
        gc.collect()
    assert not threads()
    assert reader.n_open == 0
    assert threading.main_thread() not in reader.threads, "reading is done by the other thread"


def test_an_iterator_that_is_never_started_starts_nothing():
    source = BlockSource(Reader(), shuffle_bytes=100 * ROW_BYTES)
    batches = source.batches(10)
    assert not threads()
    del batches


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("shuffle_bytes", [100 * ROW_BYTES, 1 << 28])
def test_an_error_in_the_reader_arrives_as_itself_and_leaves_nothing(shuffle, shuffle_bytes):
    reader = Reader(fail_at=5)
    source = BlockSource(reader, shuffle_bytes=shuffle_bytes)
    with pytest.raises(ValueError, match=r"file\.x: block 5 is damaged"):
        list(source.batches(10, shuffle=shuffle))
    gc.collect()
    assert not threads()
    assert reader.n_open == 0


def test_the_memory_of_pools_goes_with_the_iterator(monkeypatch):
    pools = weakref.WeakSet()
    load = BlockSource._load

    def watched(self, *args):
        pool = load(self, *args)
        pools.add(pool)
        return pool

    monkeypatch.setattr(BlockSource, "_load", watched)
    source = BlockSource(Reader([50] * 19 + [47]), shuffle_bytes=50 * ROW_BYTES)
    most = 0
    for _ in source.batches(10):
        most = max(most, len(pools))
    assert most <= 3, "in use, one ahead, and one being replaced"
    batches = source.batches(10)
    next(batches)
    del batches
    gc.disable()  # reference counts alone must do
    try:
        assert not pools
        with pytest.raises(ValueError, match="damaged"):
            list(BlockSource(Reader(fail_at=6), shuffle_bytes=300 * ROW_BYTES).batches(10))
        assert not pools
    finally:
        gc.enable()


def test_numbers_do_not_depend_on_the_thread():
    """A slow reader and a slow consumer give the same batches."""
    quick = list(BlockSource(Reader(), shuffle_bytes=100 * ROW_BYTES).batches(10, seed=1))
    slow = []
    for batch in BlockSource(Reader(wait=0.002), shuffle_bytes=100 * ROW_BYTES).batches(10, seed=1):
        time.sleep(0.001)
        slow.append(batch)
    assert same(quick, slow)


def test_a_reader_that_gives_fewer_rows_than_it_says_is_found_out():
    reader = Reader()
    reader.block_rows = [*reader.block_rows[:-1], 501]
    with pytest.raises(ValueError, match="block 6 ended after 500 rows, expected 501"):
        list(BlockSource(reader).batches(10))


# ------------------------------------------------------------------------------------------------------------- training


def test_it_trains_as_the_array_does():
    def trained(source):
        model = ff.Autoencoder(WIDTH, 6, ff.TopK(k=2), preprocess="standardize")
        config = ff.TrainConfig(steps=60, batch_size=50, validation_fraction=0.0)
        ff.Trainer(model, source, config=config, progress=False).fit()
        return model.state_dict()

    array, block = trained(ArraySource(X)), trained(BlockSource(Reader()))
    assert all(torch.equal(array[name], block[name]) for name in array)


# --------------------------------------------------------------------------------------------------------------- memory

GROWTH = """
import resource, sys
from pathlib import Path
from fewfire.sources import lines, open_source

lines.BLOCK_BYTES = 1 << 19

def read(path):
    source = open_source(path, shuffle_bytes=2 << 20)
    for part, shuffle in ((source, True), (source, False), (source.split(0.5)[0], True)):
        assert sum(len(batch.x) for batch in part.batches(1000, shuffle=shuffle)) == part.n_rows

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

read(sys.argv[1])
before = peak()
read(sys.argv[2])
print(round(peak() - before))
"""


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, ending):
    """Five times the rows, 50 MB more of numbers: read shuffled and not, whole and in part, within a few MB more."""
    for rows in (100_000, 500_000):
        table = pa.table({f"c{i}": np.arange(rows) % 7 / 2 for i in range(14)})
        path = tmp_path / f"{rows}.{ending}"
        if ending == "csv":
            pa.csv.write_csv(table, path)
        else:
            pq.write_table(table, path, row_group_size=10_000, compression="none", use_dictionary=False)
    command = [sys.executable, "-c", GROWTH, *(str(tmp_path / f"{rows}.{ending}") for rows in (100_000, 500_000))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    growth = int(done.stdout)
    assert growth < 25, f"{growth} MB"
