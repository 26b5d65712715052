"""Damaged and hostile tables: a clear error or rows of the right shape, never a crash, a hang or a full memory.

Each battery runs in a process of its own under a limit of memory; a mutant that kills or stops it stays on disk.
"""

from __future__ import annotations

import io
import json
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS = 300
MEMORY = 1 << 30
"""bytes that a mutant may make the process grow by"""
SECONDS = 20
"""that one may take"""


# -------------------------------------------------------------------------------------------------------- whole files


def csv_files() -> list[bytes]:
    rng = np.random.default_rng(0)
    numbers = "\n".join(",".join(f"{v:.6g}" for v in row) for row in rng.normal(size=(ROWS, 6)))
    quoted = "\n".join(f'"{i}","text, ""{i}""\nand more",{i / 7},{str(i % 2 == 0).lower()},' for i in range(ROWS))
    return [
        f"a,b,c,d,e,f\n{numbers}\n".encode(),
        f"{numbers}".replace(",", ";").replace("\n", "\r\n").encode(),
        f"\ufeffid,note,x,flag,gap\n{quoted}\n".encode(),
    ]


def parquet_files() -> list[bytes]:
    rng = np.random.default_rng(0)
    columns = {f"c{i}": rng.normal(size=ROWS).astype(["f4", "f8", "i4", "i1"][i % 4]) for i in range(6)}
    columns["flag"] = rng.random(ROWS) < 0.5
    columns["few"] = np.repeat([1.5, 2.5, 3.5], ROWS // 3)
    table = pa.table({**columns, "gaps": pa.array(rng.normal(size=ROWS), mask=rng.random(ROWS) < 0.1)})
    vectors = pa.table({"e": pa.array(list(rng.normal(size=(ROWS, 8)).astype("f4")), pa.list_(pa.float32()))})
    settings = [
        (table, {"compression": "snappy"}),
        (table, {"compression": "none", "use_dictionary": False}),
        (table, {"compression": "zstd", "write_page_checksum": True}),
        (table, {"compression": "gzip", "data_page_version": "2.0"}),
        (vectors, {"compression": "snappy"}),
    ]
    files = []
    for rows, options in settings:
        file = io.BytesIO()
        pq.write_table(rows, file, row_group_size=100, **options)
        files.append(file.getvalue())
    return files


FILES = {"csv": csv_files, "parquet": parquet_files}
OPTIONS = {"csv": [{}, {}, {"drop": ["note"]}], "parquet": [{}] * 5}


# ------------------------------------------------------------------------------------------------------------- mutants


def mutant(content: bytes, chance: random.Random, ending: str) -> bytes:
    """One damage of one kind, some of them several times; half of those of Parquet hit its footer."""
    damaged = bytearray(content)
    footer = int.from_bytes(content[-8:-4], "little") + 8 if ending == "parquet" else 0
    first = len(content) - footer if footer and chance.random() < 0.5 else 0
    damage = chance.choice(DAMAGES[ending])
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        if len(damaged) > 1:
            damage(damaged, chance.randrange(min(first, len(damaged) - 1), len(damaged)), chance)
    return bytes(damaged)


def flip(damaged, at, chance):
    damaged[at] ^= 1 << chance.randrange(8)


def replace(damaged, at, chance):
    damaged[at] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])


def cut(damaged, at, chance):
    del damaged[at:]


def insert(damaged, at, chance):
    damaged[at:at] = chance.randbytes(chance.randrange(1, 9))


def delete(damaged, at, chance):
    del damaged[at : at + chance.randrange(1, 9)]


def move(damaged, at, chance):
    start = chance.randrange(len(damaged))
    damaged[at:at] = damaged[start : start + chance.randrange(1, 200)]


def length(damaged, at, chance):
    """A number somewhere, or that of the footer's length, becomes an extreme one."""
    at = chance.choice([at, len(damaged) - 8])
    damaged[at : at + 4] = chance.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, len(damaged)]).to_bytes(4, "little")


def varint(damaged, at, chance):
    """Numbers in a Parquet footer are written seven bits a byte: a long run of them is a huge one."""
    damaged[at : at + 1] = bytes([255] * chance.randrange(1, 9)) + bytes([chance.randrange(128)])


def sign(damaged, at, chance):
    """What has a meaning in CSV."""
    damaged[at : at + chance.randrange(2)] = chance.choice(SIGNS)


SIGNS = [
    b",",
    b";",
    b"\t",
    b'"',
    b'""',
    b"\n",
    b"\r",
    b"\r\n",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"e",
    b"-",
    b"x",
    b"1e999",
]
SIGNS += [b"9" * 400, b"," * 50, b"\n" * 50, b'"' * 51]
DAMAGES = {
    "csv": [flip, replace, cut, insert, delete, move, sign, sign, sign],
    "parquet": [flip, replace, cut, insert, delete, move, length, varint],
}


# -------------------------------------------------------------------------------------------------------- the battery


def battery(ending: str, count: int, seed: int, folder: Path) -> None:
    """Open and read so many mutants, and print what came of them."""
    from fewfire.sources import open_source

    warnings.simplefilter("ignore")
    files, chance = FILES[ending](), random.Random(seed)
    found: Counter[str] = Counter()
    path = folder / f"mutant.{ending}"
    for content, options in zip(files, OPTIONS[ending], strict=True):  # whole, so that everything is loaded
        path.write_bytes(content)
        assert read(open_source(path, shuffle_bytes=5000, **options)) == ROWS
    limit = psutil.Process().memory_info().vms + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    slowest = 0.0
    for i in range(count):
        which = chance.randrange(len(files))
        path.write_bytes(mutant(files[which], chance, ending))
        signal.alarm(SECONDS)  # no handler: it ends the process
        start = time.perf_counter()
        try:
            read(open_source(path, shuffle_bytes=chance.choice([5000, 1 << 28]), **OPTIONS[ending][which]))
            outcome = "rows"
        except ValueError as error:
            message = str(error)
            outcome = "refused" if f"mutant.{ending}" in message and "\n" not in message else f"unclear: {message}"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        slowest = max(slowest, time.perf_counter() - start)
        signal.alarm(0)
        found[outcome] += 1
        if outcome not in ("rows", "refused"):
            path.rename(folder / f"failed_{i}.{ending}")
    sys.stdout.write(json.dumps({"found": found, "slowest": slowest}))


def read(source) -> int:
    """Everything, shuffled; and whether it is what the source said."""
    seen = np.zeros(source.n_rows, bool)
    for batch in source.batches(64):
        assert batch.x.shape == (len(batch.rows), *source.row_shape)
        seen[batch.rows.numpy()] = True
    assert seen.all()
    return len(seen)


def outcomes(ending: str, count: int, seed: int, folder: Path) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, __file__, ending, str(count), str(seed), str(folder)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    left = sorted(path.name for path in folder.iterdir())
    assert done.returncode == 0, f"died of {done.returncode}; {left} in {folder}; {done.stderr[-2000:]}"
    found: dict[str, int] = json.loads(done.stdout)["found"]
    assert sum(found.values()) == count
    return found


@pytest.mark.parametrize("ending", FILES)
def test_a_thousand_mutants(ending, tmp_path):
    found = outcomes(ending, 1000, 1, tmp_path)
    assert set(found) == {"rows", "refused"}, found
    assert found["refused"] > 200, "the mutants were harmless"


@pytest.mark.slow
@pytest.mark.parametrize("ending", FILES)
def test_ten_thousand_mutants(ending, tmp_path):
    found = outcomes(ending, 10_000, 2, tmp_path)
    assert set(found) == {"rows", "refused"}, found


# ---------------------------------------------------------------------------------------------------------------- bombs


def zeros(path: Path, groups: int, columns: int = 4, rows: int = 1 << 20) -> Path:
    table = pa.table({f"c{i}": np.zeros(rows) for i in range(columns)})
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(groups):
            writer.write_table(table, row_group_size=rows)
    return path


def lists(path: Path, n: int) -> Path:
    """One row, whose list has n values."""
    offsets = pa.array([0, n], pa.int64())
    pq.write_table(pa.table({"e": pa.LargeListArray.from_arrays(offsets, pa.array(np.zeros(n)))}), path)
    return path


@pytest.mark.parametrize("bomb", [lambda path: zeros(path, 4), lambda path: lists(path, 20_000_000)])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, bomb):
    from fewfire.sources import open_source

    path = bomb(tmp_path / "bomb.parquet")
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"bomb\.parquet has .* bytes and would take .* allow_expansion=True reads it"):
        open_source(path)
    assert time.perf_counter() - start < 1
    assert psutil.Process().memory_info().rss - before < 50 << 20


def test_a_trusted_file_that_expands_is_read_in_pools(tmp_path):
    from fewfire.sources import open_source

    path = zeros(tmp_path / "zeros.parquet", 2, columns=5)
    source = open_source(path, allow_expansion=True, shuffle_bytes=8 << 20)
    assert source.n_rows == 2 << 20
    assert next(source.batches(100)).x.sum() == 0
    assert open_source(zeros(tmp_path / "small.parquet", 1, columns=1)).n_rows == 1 << 20, "8 MiB are no bomb"


@pytest.mark.parametrize(
    "content", [b"," * (15 << 20), b"a,b\n" + b"," * (15 << 20), b'"' * ((15 << 20) + 1), b"1\r" * (5 << 20)]
)
def test_lines_made_to_be_endless_are_refused(tmp_path, content):
    from fewfire.sources import open_source

    (tmp_path / "t.csv").write_bytes(content)
    before = psutil.Process().memory_info().rss
    with pytest.raises(ValueError, match=r"t\.csv line \d"):
        open_source(tmp_path / "t.csv")
    assert psutil.Process().memory_info().rss - before < 300 << 20


if __name__ == "__main__":
    battery(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
