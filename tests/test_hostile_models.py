"""Model files under fire: what loads is what was saved, to the bit; everything else is refused in a sentence.

Two families of mutants. *Damaged* files are what disks, networks and editors make of a good one; their checksums no
longer agree, or nothing that matters has changed. *Forged* files are what a person makes: every checksum is right, and
what stands behind it is absurd. A forged file that loads all the same must be a sound model.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
import pickle
import random
import re
import struct
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire.disk import ModelFileError, load_tensors, read_metadata
from fewfire.disk.tensors import _DTYPES
from fewfire.files import load, read_config, save
from fewfire.runs import open_run
from fewfire.tracking import read_metrics
from fewfire.trainer import checkpoint

SECOND = 1.0
"""the most that refusing a file may take; on this side of it, milliseconds are usual"""
MEMORY = 50 << 20
"""bytes that may come on top of twice the file"""


# ------------------------------------------------------------------------------------------------ good files


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def fitted(*args: Any, preprocess: Any, **kwargs: Any) -> ff.Autoencoder:
    model = ff.Autoencoder(*args, preprocess=preprocess, **kwargs)
    assert model.preprocess is not None
    model.preprocess.fit(lambda: [rows(40, *model.input_shape) * 3 + 1])
    return model


MODELS: dict[str, Callable[[], ff.Autoencoder]] = {
    "table": lambda: fitted(
        6, 12, {"name": "topk", "k": 3}, preprocess="standardize", layout=ff.Layout(columns=tuple("abcdef"))
    ),
    "image": lambda: fitted(
        (1, 2, 3), 12, "relu", preprocess=["row_mean", "minmax"], layout=ff.Layout("image", (2, 3))
    ),
    "tied": lambda: fitted(6, 5, "sigmoid", network={"name": "linear", "tied": True}, preprocess="whiten"),
    "transcoder": lambda: ff.Autoencoder(6, 12, "topk", d_out=4),
    "half": lambda: ff.Autoencoder(6, 12, dtype=torch.bfloat16),
    "conv": lambda: fitted(
        (1, 6, 6), 5, "wta", network={"name": "conv", "channels": [3], "latents": "maps"}, preprocess="center"
    ),
    "series": lambda: ff.Autoencoder(
        16,
        4,
        "gaussian",
        network={"name": "conv", "channels": [3], "kernel": 3},
        preprocess=["row_mean"],
        layout=ff.Layout("series", (2, 8)),
    ),
    "mlp": lambda: ff.Autoencoder(6, 12, network={"name": "mlp", "hidden": [7, 5]}, dtype=torch.float64),
}
PROVENANCE = {"data": "rows.npy", "train": {"seed": 3, "learning_rate": 0.001}, "text": "é \u2028 \ud800"}
ESTIMATOR = {"class": "SparseAutoencoder", "params": {"n_components": 12, "k": None}, "columns": ["a", "b"]}
STATE = {
    "step": 40,
    "samples": 1280,
    "seconds": 0.5,
    "skipped": 0,
    "best_loss": None,
    "misses": 0,
    "validation_due": False,
    "threads": 1,
    "steering": {"first": 1.0, "moved": -0.25, "push": 0.5, "reach": 0.125, "value": 0.75},
    "run": {"train": {"seed": 0}, "data": "0123"},
}


def saved_model(name: str, folder: Path) -> Path:
    save(MODELS[name](), folder / name, provenance=PROVENANCE, estimator=ESTIMATOR)
    (folder / name / "config.json").unlink()
    return folder / name / "model.safetensors"


def saved_checkpoint(folder: Path) -> Path:
    model = MODELS["table"]()
    groups = {
        "model": model.state_dict(),
        "engine": {"step": torch.tensor(40), "encoder.W_enc/m": rows(12, 6)},
        "state": {"since_fired": torch.arange(12)},
    }
    return checkpoint.save(folder, 40, groups, STATE)


Contents = tuple[dict[str, tuple[Any, ...]], str]
"""Names with dtype, shape and bits of the tensors; and all settings, as canonical JSON."""


def contents(tensors: dict[str, torch.Tensor], settings: Any) -> Contents:
    bits = {n: (t.dtype, t.shape, bytes(t.contiguous().view(-1).view(torch.uint8).numpy())) for n, t in tensors.items()}
    return bits, json.dumps(settings, sort_keys=True)


def read_model(path: Path) -> Contents:
    """By the whole way: the architecture built and filled. And the settings alone, which must then be read as well."""
    try:
        settings = read_config(path)
    except ModelFileError:
        settings = None
    model = load(path)
    assert settings is not None, "the settings were refused, the model was not"
    return contents(model.state_dict(), [model.config(), settings])


def read_settings(path: Path) -> Contents:
    return contents({}, read_config(path))


def read_checkpoint(path: Path) -> Contents:
    groups, metadata = checkpoint.load(path)
    return contents({f"{g}/{n}": t for g, named in groups.items() for n, t in named.items()}, metadata)


# ------------------------------------------------------------------------------------------------ bookkeeping


def peak_memory() -> int:
    """The most memory that this process has had since :func:`forget_peak`; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int((re.search(r"VmHWM:\s+(\d+) kB", status) or [0, 0])[1]) << 10


def forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@dataclass
class Tally:
    """What became of the mutants, each of which had to be read in time and in little memory."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")

    def read(self, reader: Callable[[Path], Any], path: Path, what: str) -> Any:
        """What the reader made of the file; None: it was refused."""
        forget_peak()
        memory, start = peak_memory(), time.process_time()
        try:
            found, outcome = reader(path), "loaded"
        except ModelFileError as error:
            check_sentence(error, path)
            found, outcome = None, "refused"
        seconds, memory = time.process_time() - start, peak_memory() - memory
        assert seconds < SECOND, f"{what} took {seconds:.2f} s"
        assert memory < MEMORY + 2 * path.stat().st_size, f"{what} took {memory >> 20} MB"
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, (seconds, what))
        self.largest = max(self.largest, (memory, what))
        return found

    def __str__(self) -> str:
        slow, large = self.slowest, self.largest
        return (
            f"{dict(self.outcomes)}, at most {slow[0] * 1000:.0f} ms ({slow[1]}), {large[0] / 1e6:.1f} MB ({large[1]})"
        )


def put(path: Path, data: bytes) -> None:
    """Write a new file: some file systems force an overwritten one to the disk, which takes milliseconds."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def check_sentence(error: ModelFileError, path: Path) -> None:
    message = str(error)
    assert str(path) in message
    assert message.isprintable(), f"a terminal might obey it: {message!r}"
    assert len(message) < 400 + len(str(path)), message


# ------------------------------------------------------------------------------------------------ damage


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def join(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + body


def end_of_header(data: bytes) -> int:
    return 8 + int(struct.unpack("<Q", data[:8])[0])


def tensors_of(header: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample([name for name in header if name != "__metadata__"], 2)
    return first, second


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def header_bits(data: bytes, rng: random.Random) -> bytes:
    new = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        new[rng.randrange(8, end_of_header(data))] ^= 1 << rng.randrange(8)
    return bytes(new)


def body_bits(data: bytes, rng: random.Random) -> bytes:
    new = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        new[rng.randrange(end_of_header(data), len(data))] ^= 1 << rng.randrange(8)
    return bytes(new)


def length_field(data: bytes, rng: random.Random) -> bytes:
    length = rng.choice(
        [0, 1, end_of_header(data) + rng.randrange(-20, 20), rng.randrange(1 << 24), rng.getrandbits(64)]
    )
    return struct.pack("<Q", max(0, length)) + data[8:]


def inserted(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]


def deleted(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.randrange(1, 9) :]


def lost_sector(data: bytes, rng: random.Random) -> bytes:
    """512 bytes of zeros, or of something else in the file."""
    at, other = (rng.randrange(0, len(data), 512) for _ in range(2))
    sector = bytes(512) if rng.random() < 0.5 else data[other : other + 512]
    return data[:at] + sector[: len(data) - at] + data[at + 512 :]


def swapped_fields(data: bytes, rng: random.Random) -> bytes:
    header, body = split(data)
    a, b = tensors_of(header, rng)
    if rng.random() < 0.5:
        header[a], header[b] = header[b], header[a]
    else:
        key = rng.choice(["dtype", "shape", "data_offsets"])
        header[a][key], header[b][key] = header[b][key], header[a][key]
    return join(header, body)


def edited_number(data: bytes, rng: random.Random) -> bytes:
    """Any number anywhere in the header: sides, offsets, versions, settings."""
    text = data[8 : end_of_header(data)]
    number = rng.choice(list(re.finditer(rb"-?\d+", text)))
    new = rng.choice(["0", "-1", "2", "13", "1e3", "1.5", str(1 << 31), str(1 << 62), "9" * 400, "NaN", "null", "true"])
    return join(text[: number.start()] + new.encode() + text[number.end() :], data[end_of_header(data) :])


def duplicate_key(data: bytes, rng: random.Random) -> bytes:
    text = data[8 : end_of_header(data)]
    pair = rng.choice(list(re.finditer(rb'"[^"\\]+":(?:\[[\d,]*\]|"[^"\\]*")', text)))
    return join(text[: pair.end()] + b"," + pair[0] + text[pair.end() :], data[end_of_header(data) :])


def renamed_key(data: bytes, rng: random.Random) -> bytes:
    """Once, or wherever the name stands."""
    text = data[8 : end_of_header(data)]
    name = rng.choice(re.findall(rb'"([A-Za-z_][^"\\]*)\\?":', text))
    new = rng.choice([name + b"x", name[:-1], name.upper(), name.replace(b".", b"/"), b"__metadata__"])
    return join(text.replace(b'"' + name, b'"' + new, rng.choice([1, -1])), data[end_of_header(data) :])


def swapped_digests(data: bytes, rng: random.Random) -> bytes:
    header, body = split(data)
    a, b = tensors_of(header, rng)
    digests = json.loads(header["__metadata__"]["sha256"])
    digests[a], digests[b] = digests[b], digests[a]
    header["__metadata__"]["sha256"] = json.dumps(digests)
    return join(header, body)


def appended(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice([b"\0", b"\0" * 8, rng.randbytes(100), data[-64:]])


def two_files(data: bytes, rng: random.Random) -> bytes:
    other = rng.choice([data, b"PK\x03\x04" + rng.randbytes(50), b"\x80\x04."])
    return data + other if rng.random() < 0.5 else other + data


def whitespace(data: bytes, rng: random.Random) -> bytes:
    """Which changes nothing in JSON, or a text inside it, or makes it something else."""
    text = data[8 : end_of_header(data)]
    at = rng.choice([0, len(text), *(match.end() for match in re.finditer(rb"[,:]", text))])
    space = rng.choice([b" ", b"\n", b"\t\r\n", b"\0", b"\x0b", "\u00a0".encode(), b"\xef\xbb\xbf", b"//\n"])
    return join(text[:at] + space + text[at:], data[end_of_header(data) :])


def other_spelling(data: bytes, rng: random.Random) -> bytes:
    """Letters as escapes, as look-alikes, in another encoding, half a character; and keys in another order."""
    text = data[8 : end_of_header(data)]
    header, body = split(data)
    letter = rng.choice([m for m in re.finditer(rb"[a-zA-Z]", text) if text[m.start() - 1 : m.start()] != b"\\"])
    match rng.randrange(5):
        case 0:
            new = b"\\u%04x" % letter[0][0]
        case 1:
            new = chr(letter[0][0] + 0xFEE0).encode()  # full width
        case 2:
            new = letter[0] + rng.choice(["\u0301", "\u200b", "\u202e", "\U0001f600"]).encode()
        case 3:
            new = rng.choice([b"\xc0\xaf", b"\xff", b"\\ud800", b"\xed\xa0\x80", b"\\u0000"])
        case _:
            return join(dict(rng.sample(list(header.items()), len(header))), body)
    return join(text[: letter.start()] + new + text[letter.end() :], body)


DAMAGE: dict[Callable[[bytes, random.Random], bytes], int] = {
    truncated: 10,
    header_bits: 14,
    body_bits: 8,
    length_field: 6,
    inserted: 8,
    deleted: 8,
    lost_sector: 6,
    swapped_fields: 8,
    edited_number: 10,
    duplicate_key: 6,
    renamed_key: 6,
    swapped_digests: 4,
    appended: 4,
    two_files: 4,
    whitespace: 6,
    other_spelling: 8,
}
"""How to damage a file, and how often."""


def damage(read: Callable[[Path], Contents], path: Path, n: int, tally: Tally, seed: int = 0) -> None:
    """Read ``n`` damaged copies of a good file."""
    data, truth = path.read_bytes(), read(path)
    target = path.with_name("mutant.safetensors")
    rng = random.Random(f"{path.parent.name} {seed}")
    for mutator in rng.choices(list(DAMAGE), list(DAMAGE.values()), k=n):
        mutant = mutator(data, rng)
        put(target, mutant)
        found = tally.read(read, target, mutator.__name__)
        assert found is None or found == truth, f"{mutator.__name__} was read as something else"


def read_estimator(path: Path) -> Contents:
    found = ff.SparseAutoencoder.load(path)
    return contents(found.module_.state_dict(), [found.get_params(), found.n_iter_, found.history_])


def saved_estimator(folder: Path) -> Path:
    ff.SparseAutoencoder(8, activation="relu", max_epochs=1, random_state=0).fit(rows(60, 5).numpy()).save(folder)
    return folder / "model.safetensors"


KINDS: list[tuple[Callable[[Path], Path], Callable[[Path], Contents]]] = [
    *((partial(saved_model, name), read_model) for name in MODELS),
    (partial(saved_model, "table"), read_settings),
    (saved_checkpoint, read_checkpoint),
    (saved_estimator, read_estimator),
]
"""How to write a good file, and how to read it."""


def damage_all(folder: Path, n: int, seed: int = 0) -> Tally:
    """``n`` damaged files, shared by all kinds of good ones."""
    tally = Tally()
    for i, (write, read) in enumerate(KINDS):
        (folder / str(i)).mkdir()
        damage(read, write(folder / str(i)), n // len(KINDS), tally, seed)
    return tally


def test_damaged_files(tmp_path: Path) -> None:
    tally = damage_all(tmp_path, 16_000)
    assert tally.outcomes["refused"] > 14_000, "the mutators do bite"
    assert tally.outcomes["loaded"] > 200, "and not every byte matters: spaces, the order of keys"


@pytest.mark.parametrize("mutator", DAMAGE)
def test_every_kind_of_damage_bites(tmp_path: Path, mutator: Callable[..., bytes]) -> None:
    """None of the mutators returns what it was given, or always the same."""
    path = saved_model("table", tmp_path)
    data, rng = path.read_bytes(), random.Random(0)
    mutants = [mutator(data, rng) for _ in range(200)]
    assert sum(mutant != data for mutant in mutants) > 150
    assert len(set(mutants)) >= 3


@pytest.mark.slow
def test_a_hundred_thousand_damaged_files(tmp_path: Path, record_property: Any) -> None:
    tally = damage_all(tmp_path, 100_000, seed=1)
    record_property("damaged", str(tally))
    assert sum(tally.outcomes.values()) >= 99_000


# ------------------------------------------------------------------------------------------------ forgery


@dataclass
class Forgery:
    """A file before its checksums: settings, and tensors as (dtype, shape, bytes)."""

    metadata: Any
    tensors: dict[str, tuple[str, list[int], bytes]]

    @classmethod
    def of(cls, path: Path) -> Forgery:
        header, body = split(path.read_bytes())
        metadata = json.loads(header.pop("__metadata__")["fewfire"])
        tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            tensors[name] = (entry["dtype"], entry["shape"], body[begin:end])
        return cls(metadata, tensors)

    @property
    def architecture(self) -> Any:
        return self.metadata["architecture"]

    def write(self, path: Path) -> None:
        """With right checksums, and without any of the limits that fewfire's own writer keeps."""
        digests, entries, body = {}, {}, b""
        for name, (dtype, shape, data) in self.tensors.items():
            text = json.dumps([dtype, shape], separators=(",", ":")).encode()
            digests[name] = hashlib.sha256(text + data).hexdigest()
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
            body += data
        text = json.dumps(self.metadata)
        claims = {
            "fewfire": text,
            "metadata_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "sha256": json.dumps(digests),
        }
        put(path, join({"__metadata__": claims, **entries}, body))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of nested settings; the layout's column names, which are many, as one."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        if key != "columns":
            yield from places(value[key])


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


SIZES: list[Any] = [-1, 0, 1, 5, 7, 13, 1 << 20, 1 << 31, 1 << 40, 1 << 62, 1 << 64, 10**30, 1.5, 6.0, "6", True, None]
SIZES += [[], [6, 1], [[6]], [1 << 20] * 3, [2, 3], [-2, -3], {}, [1] * 3000, [6, None]]
JUNK: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1e308,
    -1e308,
    1e-320,
    10**300,
    "",
    "no",
    "topk",
    "x" * 100_000,
    "\ud800",
]
JUNK += ["a\nb", "\x00", "../../etc/passwd", [], {}, [[]], {"name": "topk"}, {"name": ["topk"]}, nested(20), {"": 1}]
NAMES = [
    "",
    "TopK",
    "topk ",
    "top\nk",
    "meta",
    "chain",
    "linear",
    "\ud800",
    "__class__",
    None,
    3,
    ["topk"],
    {"name": "topk"},
]


def set_sizes(forged: Forgery, rng: random.Random) -> None:
    for key in rng.sample(["d_in", "d_out", "n_latents"], rng.randrange(1, 4)):
        forged.architecture[key] = deepcopy(rng.choice(SIZES))


def set_junk(forged: Forgery, rng: random.Random) -> None:
    container, key = rng.choice(list(places(forged.architecture)))
    container[key] = deepcopy(rng.choice(JUNK))


def set_number(forged: Forgery, rng: random.Random) -> None:
    """A likelier value: of the right kind, in the right place."""
    where = [(c, k) for c, k in places(forged.architecture) if isinstance(c[k], int | float | bool) or c[k] is None]
    container, key = rng.choice(where)
    value = container[key] or 1
    container[key] = rng.choice(
        [value * 2, value + 1, -value, value * 1.5, value / 3, not value, value * 1e300, 10**20]
    )


def add_key(forged: Forgery, rng: random.Random) -> None:
    where = [
        forged.metadata,
        forged.architecture,
        *(c[k] for c, k in places(forged.architecture) if isinstance(c[k], dict)),
    ]
    rng.choice(where)[rng.choice(["k", "new", "name", "seed", "", "steps", "columns", "a\nb"])] = deepcopy(
        rng.choice(JUNK)
    )


def drop_key(forged: Forgery, rng: random.Random) -> None:
    container, key = rng.choice([*places(forged.architecture), *places(forged.metadata)])
    del container[key]


def swap_settings(forged: Forgery, rng: random.Random) -> None:
    (a, i), (b, j) = rng.sample(list(places(forged.architecture)), 2)
    a[i], b[j] = json.loads(json.dumps(b[j])), json.loads(json.dumps(a[i]))


def set_name(forged: Forgery, rng: random.Random) -> None:
    families = (ff.Activation, ff.Network, ff.Preprocess, ff.Term)  # without what other test files add to them
    known = [n for f in families for n, member in f.registry.items() if member.__module__.startswith("fewfire.")]
    family = rng.choice(["activation", "network", "preprocess", "preprocess_out"])
    name = deepcopy(rng.choice([*NAMES, *known]))
    forged.architecture[family] = rng.choice([name, {"name": name}, [name]])


def set_dtype(forged: Forgery, rng: random.Random) -> None:
    forged.architecture["dtype"] = rng.choice(
        [
            "float64",
            "float16",
            "bfloat16",
            "int64",
            "bool",
            "float8_e5m2",
            "complex64",
            "float32 ",
            "Float32",
            "nn",
            "",
            32,
            None,
        ]
    )


def set_version(forged: Forgery, rng: random.Random) -> None:
    key = rng.choice(["format", "format_version", "fewfire_version"])
    forged.metadata[key] = rng.choice(
        [0, 2, -1, True, "1", 1.0, 10**30, None, [], "fewfire", "fewfire-checkpoint", "x" * 10**5]
    )


def set_head(forged: Forgery, rng: random.Random) -> None:
    """Provenance and the estimator's settings: free JSON here, whoever uses them checks them."""
    forged.metadata[rng.choice(["estimator", "provenance"])] = deepcopy(
        rng.choice([*JUNK, {"a": nested(20)}, {"\ud800": "\ud800"}])
    )


def set_chain(forged: Forgery, rng: random.Random) -> None:
    steps: list[Any] = [rng.choice(["row_mean", "standardize", "meta"])] * rng.choice([1, 2, 900, 20_000])
    chain: Any = {"name": "chain", "steps": steps}
    for _ in range(rng.choice([0, 1, 8, 30])):
        chain = {"name": "chain", "steps": [chain]}
    forged.architecture["preprocess"] = chain
    if rng.random() < 0.5:  # a mistake that is found only after the network, which must not have been made by then
        forged.architecture.update(d_in=1 << 20, n_latents=1 << 20)


def set_layout(forged: Forgery, rng: random.Random) -> None:
    columns = [str(i) for i in range(rng.choice([0, 5, 6, 1000, 100_000, 400_000]))]
    shape = rng.choice(
        [[], [6], [2, 3], [-2, -3], [1 << 40, 1 << 40], [2.0, 3.0], ["2", "3"], [True, 6], [0, 0], [6] * 1000]
    )
    kind = rng.choice(["table", "image", "series", "video", "", None, 3, ["table"]])
    layout = {"kind": kind, "shape": shape, "columns": rng.choice([columns, [1, 2], "abcdef", [None] * 6, [["a"]] * 6])}
    forged.architecture["layout"] = rng.choice([layout, layout, layout, None, [], 7, {**layout, "extra": 1}])


def set_layers(forged: Forgery, rng: random.Random) -> None:
    hidden = rng.choice(
        [[1 << 20] * 2, [1 << 20] * 60, [100_000], [3] * 64, [1024] * 3000, [0], [-5], [1.5], "ab", {}, [[7]]]
    )
    if rng.random() < 0.4:
        forged.architecture["network"] = {"name": "mlp", "hidden": hidden}
        return
    conv = {"name": "conv", "channels": rng.choice([hidden, [3]]), **forged.architecture["network"]}
    for key in rng.sample(
        ["channels", "kernel", "stride", "decoder_kernel", "input_shape", "latents"], rng.randrange(1, 4)
    ):
        conv[key] = rng.choice(
            [1, 2, 3, 7, 1 << 20, 1 << 40, -1, 0, 1.5, [3], [1 << 20] * 2, [1, 2, 1 << 30], "maps", None, hidden]
        )
    forged.architecture["network"] = conv
    if rng.random() < 0.3:  # a convolution's weights do not grow with its rows
        side = rng.choice([1 << 10, 1 << 20, 1 << 31])
        forged.architecture.update(d_in=[1, side, side], d_out=[1, side, side])
        conv["input_shape"] = [1, side, side]
        forged.architecture["layout"] = {"kind": "table", "shape": [], "columns": []}


def set_tensor(forged: Forgery, rng: random.Random) -> None:
    """Another shape, dtype or name, or none at all."""
    name = rng.choice(list(forged.tensors))
    dtype, shape, data = forged.tensors[name]
    match rng.randrange(6):
        case 0:
            del forged.tensors[name]
        case 1:
            new = rng.choice(
                [name + "x", name.upper(), "preprocess.mean", "a\nb", "\ud800", "x" * 256, "activation.threshold"]
            )
            forged.tensors[new] = forged.tensors.pop(name)
        case 2:
            shape = rng.choice([shape[::-1], [math.prod(shape)], [1, *shape], [*shape, 1], [], [0], [1], [2], [3]])
            count = math.prod(shape)
            forged.tensors[name] = (dtype, shape, (data * 9)[: count * _DTYPES[dtype].itemsize])
        case 3:
            dtype = rng.choice(list(_DTYPES))
            forged.tensors[name] = (dtype, shape, bytes(math.prod(shape) * _DTYPES[dtype].itemsize))
        case 4:
            other = rng.choice(list(forged.tensors))
            forged.tensors[name], forged.tensors[other] = forged.tensors[other], forged.tensors[name]
        case _:
            forged.tensors["extra"] = rng.choice(
                [("F32", [0, 1 << 31], b""), ("F32", [1], bytes(4)), ("BOOL", [3], bytes(3))]
            )


def set_values(forged: Forgery, rng: random.Random) -> None:
    """Numbers that a trained model does not hold; or fewer finite ones, which are none of a reader's business."""
    name = rng.choice(list(forged.tensors))
    dtype, shape, _ = forged.tensors[name]
    value = rng.choice([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-320, 1e30])
    tensor = torch.full(shape, 1.0, dtype=torch.float64)
    tensor.view(-1)[rng.randrange(tensor.numel()) :] = value
    tensor = tensor.to(_DTYPES[dtype])
    forged.tensors[name] = (dtype, shape, bytes(tensor.view(-1).view(torch.uint8).numpy()))


FORGERY: dict[Callable[[Forgery, random.Random], None], int] = {
    set_sizes: 12,
    set_junk: 12,
    set_number: 14,
    add_key: 8,
    drop_key: 8,
    swap_settings: 6,
    set_name: 8,
    set_dtype: 4,
    set_version: 4,
    set_head: 4,
    set_chain: 2,
    set_layout: 4,
    set_layers: 8,
    set_tensor: 10,
    set_values: 8,
}
"""How to forge a file, and how often."""


def check_sound(path: Path, model: ff.Autoencoder) -> None:
    """It encodes and reconstructs rows to numbers, and is what the file says it is."""
    says, is_ = read_metadata(path)["architecture"], model.config()
    assert_within(says, is_, "architecture")
    stored, _ = load_tensors(path)
    assert contents(stored, None) == contents(
        model.state_dict() if stored.keys() == model.state_dict().keys() else {}, None
    )
    if math.prod(model.input_shape) > 1 << 20:
        return  # a convolution, whose weights do not grow with its rows
    if not all(p is None or p.fitted for p in (model.preprocess, model.preprocess_out)):
        with pytest.raises(ValueError, match="not fitted"):
            model.reconstruct(rows(3, *model.input_shape))
        return
    x = rows(3, *model.input_shape).double()
    latents = model.encode(x)
    assert latents.shape == (3, *model.latent_shape)
    assert latents.isfinite().all()
    assert model.reconstruct(x).shape == (3, *model.target_shape)


def assert_within(says: Any, is_: Any, where: str) -> None:
    """Nothing that the file says was ignored or understood as something else."""
    if isinstance(says, dict):
        for key, value in says.items():
            assert key in is_, f"{where}.{key} was ignored"
            assert_within(value, is_[key], f"{where}.{key}")
    elif isinstance(says, list):
        assert len(says) == len(is_), where
        for i, value in enumerate(says):
            assert_within(value, is_[i], f"{where}.{i}")
    else:
        assert says == is_, where
        assert isinstance(says, bool) == isinstance(is_, bool), where


def forge_all(folder: Path, n: int, seed: int = 0) -> Tally:
    """``n`` forged models, each with one to three changes."""
    tally, rng = Tally(), random.Random(seed)
    good = {name: Forgery.of(saved_model(name, folder)) for name in MODELS}
    for i in range(n):
        start = list(good.values())[i % len(good)]
        forged = Forgery(json.loads(json.dumps(start.metadata)), dict(start.tensors))
        path = folder / "forged.safetensors"
        names = []
        for change in rng.choices(list(FORGERY), list(FORGERY.values()), k=rng.choice([1, 1, 1, 2, 3])):
            try:
                change(forged, rng)
            except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError):
                continue  # an earlier change took away what this one needs
            names.append(change.__name__)
        forged.write(path)
        model = tally.read(load, path, " ".join(names))
        if model is not None:
            check_sound(path, model)
    return tally


def test_forged_models(tmp_path: Path) -> None:
    tally = forge_all(tmp_path, 4_000)
    assert tally.outcomes["refused"] > 2_500
    assert tally.outcomes["loaded"] > 200


@pytest.mark.slow
def test_twenty_five_thousand_forged_models(tmp_path: Path, record_property: Any) -> None:
    tally = forge_all(tmp_path, 25_000, seed=1)
    record_property("forged", str(tally))


def test_a_mistake_found_after_the_network_has_cost_no_memory(tmp_path: Path) -> None:
    """An error that speaks of "meta", as a model's sketch on the device of that name may, is no way past the sketch."""
    forged = Forgery.of(saved_model("transcoder", tmp_path))
    forged.architecture.update(d_in=1 << 20, d_out=1 << 20, n_latents=1 << 20, preprocess="meta")
    forged.write(tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="unknown preprocess 'meta'"):
        load(tmp_path)


def change_head(forged: Forgery, rng: random.Random) -> None:
    head = forged.metadata["estimator"]
    spots = list(places(head))
    container, key = rng.choice(spots)
    match rng.randrange(4):
        case 0:
            container[key] = deepcopy(rng.choice(JUNK))
        case 1:
            del container[key]
        case 2:
            inside = rng.choice([head, *(c[k] for c, k in spots if isinstance(c[k], dict))])
            inside[rng.choice(["new", "k", "version", "columns", "", "a\nb"])] = deepcopy(rng.choice(JUNK))
        case _:
            other, name = rng.choice(spots)
            container[key], other[name] = deepcopy(other[name]), deepcopy(container[key])


def test_forged_estimators(tmp_path: Path) -> None:
    """The settings beside the weights: refused in a sentence, or an estimator that works and knows all of them."""
    good, tally, rng = Forgery.of(saved_estimator(tmp_path / "good")), Tally(), random.Random(0)
    path = tmp_path / "forged.safetensors"
    for _ in range(500):
        forged = Forgery(deepcopy(good.metadata), good.tensors)
        change_head(forged, rng)
        forged.write(path)
        found = tally.read(ff.SparseAutoencoder.load, path, "estimator")
        if found is not None:
            assert np.isfinite(found.transform(rows(9, 5).numpy())).all()
            head = forged.metadata["estimator"]
            assert head.keys() == good.metadata["estimator"].keys(), "a key was ignored"
            assert head["fitted"].keys() == good.metadata["estimator"]["fitted"].keys(), "a key was ignored"
            assert_within(head["parameters"], found.get_params(deep=False), "parameters")
            assert (head["fitted"]["n_iter"], head["fitted"]["history"]) == (found.n_iter_, found.history_)
    assert min(tally.outcomes.values()) > 100


@pytest.mark.parametrize("preprocess", [None, "row_mean", "clip_scale", ["row_mean", "center"]], ids=str)
def test_rows_far_larger_than_the_file_cost_no_memory(tmp_path: Path, preprocess: Any) -> None:
    """A convolution's weights fit rows of any size; what is tried out at loading must not be as large as they are."""
    network = {"name": "conv", "channels": [], "latents": "maps", "kernel": 3}
    save(fitted((1, 6, 6), 5, "relu", network=network, preprocess=preprocess or "row_mean"), tmp_path)
    forged = Forgery.of(tmp_path / "model.safetensors")
    side = 1 << 16
    forged.architecture.update(d_in=[1, side, side], d_out=[1, side, side])
    forged.architecture["network"]["input_shape"] = [1, side, side]
    forged.write(tmp_path / "forged.safetensors")
    found = Tally().read(load, tmp_path / "forged.safetensors", str(preprocess))
    assert (found is None) == (isinstance(preprocess, list)), "the statistics of each column are of too few"


# ------------------------------------------------------------------------------------------------ sizes

EMPTY = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
BOMBS: dict[str, bytes] = {
    "empty tensors": b"{" + b",".join(EMPTY % i for i in range(150_000)) + b"}",
    "tensors within the count of values": b"{" + b",".join(EMPTY % i for i in range(5_000)) + b"}",
    "lists": b"[" + b"[]," * (2 << 20),
    "objects": b"[" + b"{}," * (2 << 20),
    "texts": b'["' + b'","' * (2 << 20),
    "quotes": b'"' * (8 << 20),
    "numbers": b"[" + b"1," * (4 << 20),
    "long numbers": b"[" + (b"9" * 4000 + b",") * 2000,
    "depth": b"[" * (8 << 20),
    "depth of objects": b'{"a":' * (1 << 20),
    "escapes": b'"' + b"\\\\" * (4 << 20),
    "escaped quotes": b'{"__metadata__":"' + b'\\"' * (4 << 20) + b'"}',
    "spaces": b" " * (8 << 20),
    "half characters": b'"' + b"\\ud800" * (1 << 20) + b'"',
    "one name": b'{"' + b"n" * (8 << 20 - 10) + b'":1}',
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_header_bombs_are_refused_at_once(tmp_path: Path, bomb: str) -> None:
    """Eight megabytes, the most that a header may have. Measured: 15 to 50 milliseconds, a twentieth of the limit."""
    path, tally = tmp_path / "bomb.safetensors", Tally()
    put(path, join(BOMBS[bomb][: 8 << 20], b""))
    assert tally.read(load_tensors, path, bomb) is None


def test_a_very_wide_table_is_a_model_like_any_other(tmp_path: Path) -> None:
    """50,000 columns with names of 30 letters make a header of two megabytes."""
    names = tuple(f"column_of_a_very_wide_table_{i:05}" for i in range(50_000))
    model = ff.Autoencoder(len(names), 4, "sigmoid", layout=ff.Layout(columns=names))
    save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    assert 1 << 20 < end_of_header(path.read_bytes()) < 4 << 20
    again = Tally().read(load, path, "wide table")
    assert again.layout.columns == names
    assert read_config(tmp_path)["architecture"] == again.config()
    start = time.process_time()
    with pytest.raises(ValueError, match="missing: column_of_a_very_wide_table_00000, "):
        again.layout.check_columns(name.upper() for name in names)
    assert time.process_time() - start < SECOND
    source = ff.ArraySource(rows(4, len(names)), layout=model.layout)
    trainer = ff.Trainer(
        model, source, terms=[ff.MSE()], config=ff.TrainConfig(steps=1), folder=tmp_path / "run", progress=False
    )
    trainer.fit()
    newest = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert checkpoint.load(newest)[1]["run"]["model"]["layout"]["columns"] == list(names)


def test_names_beyond_any_header_are_refused_before_training(tmp_path: Path) -> None:
    names = tuple("名" * 60 + str(i) for i in range(20_000))
    model = ff.Autoencoder(len(names), 2, {"name": "topk", "k": 1}, layout=ff.Layout(columns=names))
    with pytest.raises(ValueError, match=r"at most 4096 tensors and 8388608 bytes of names and metadata"):
        save(model, tmp_path / "model")
    source = ff.ArraySource(rows(4, len(names)), layout=model.layout)
    trainer = ff.Trainer(model, source, config=ff.TrainConfig(steps=1), folder=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="bytes of names and metadata"):
        trainer.fit()


# ------------------------------------------------------------------------------------------------ checkpoints

SINCE = "state/since_fired"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda f: f.metadata.update(format="fewfire-model"),
            "is not a checkpoint: expected format 'fewfire-checkpoint'",
        ),
        (lambda f: f.metadata.pop("format"), "got None"),
        (lambda f: f.metadata.pop("format_version"), "in format 0, this fewfire resumes format 2"),
        (lambda f: f.metadata.update(format_version=1), "finish the run with the fewfire that began it"),
        (lambda f: f.metadata.update(format_version=True), "in format True"),
        (lambda f: f.metadata.update(format_version="1"), "in format '1'"),
        (lambda f: f.metadata.update(news=1), "unknown or wrong entries: 'news'"),
        (lambda f: f.metadata.pop("run"), "wrong entries: 'run'"),
        (lambda f: f.metadata.update(step=-1), "wrong entries: 'step'"),
        (lambda f: f.metadata.update(step=True), "wrong entries: 'step'"),
        (lambda f: f.metadata.update(step=1.5), "wrong entries: 'step'"),
        (lambda f: f.metadata.update(best_loss="low"), "wrong entries: 'best_loss'"),
        (lambda f: f.metadata.update(run=[]), "wrong entries: 'run'"),
        (
            lambda f: f.tensors.update({"extra/x": ("F32", [1], bytes(4))}),
            "the tensor 'extra/x', which no checkpoint has",
        ),
        (lambda f: f.tensors.update({"x": ("F32", [1], bytes(4))}), "the tensor 'x', which no checkpoint has"),
        (lambda f: f.tensors.update({"state/x": ("F32", [1], bytes(4))}), "lacks whole numbers state/since_fired"),
        (lambda f: f.tensors.pop(SINCE), "lacks whole numbers state/since_fired"),
        (lambda f: f.tensors.update({SINCE: ("F32", [12], bytes(48))}), "lacks whole numbers state/since_fired"),
        (lambda f: f.tensors.update({SINCE: ("I64", [], bytes(8))}), "lacks whole numbers state/since_fired"),
    ],
)
def test_forged_checkpoints(tmp_path: Path, change: Callable[[Forgery], object], words: str) -> None:
    path = saved_checkpoint(tmp_path)
    checkpoint.load(path)
    forged = Forgery.of(path)
    change(forged)
    forged.write(path)
    with pytest.raises(ModelFileError) as caught:
        checkpoint.load(path)
    assert words in str(caught.value)
    check_sentence(caught.value, path)


def test_a_model_is_no_checkpoint_and_a_checkpoint_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is not a checkpoint"):
        checkpoint.load(saved_model("table", tmp_path))
    with pytest.raises(ModelFileError, match="is not a model: expected format 'fewfire-model'"):
        load(saved_checkpoint(tmp_path / "checkpoints"))


# ------------------------------------------------------------------------------------------------ the log


def test_damaged_logs(tmp_path: Path) -> None:
    """A log has no checksums, so a digit may change; it is read as numbers, or refused in a sentence."""
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": i, "loss": 0.5 / (i + 1), "l0": 3.0, "summary": {"n_rows": 4}} for i in range(12)]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    rng, outcomes = random.Random(0), Counter[str]()
    mutators = [truncated, inserted, deleted, lost_sector, appended]
    for _ in range(2_000):
        put(path, rng.choice(mutators)(data, rng))
        try:
            found = read_metrics(path)
        except ValueError as error:
            outcomes["refused"] += 1
            assert str(error).startswith(f"{path} is damaged in line ")
            assert str(error).isprintable()
        else:
            outcomes["read"] += 1
            assert all(type(record["step"]) is int for record in found)
    assert min(outcomes.values()) > 100


# ------------------------------------------------------------------------------------------------ pickles


class Payload:
    """What a pickle can do: anything."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


def payloads(canary: Path) -> dict[str, bytes]:
    """Files of other kinds, most of which can run code."""
    found = {f"protocol {p}": pickle.dumps(Payload(canary), protocol=p) for p in range(pickle.HIGHEST_PROTOCOL + 1)}
    buffer = io.BytesIO()
    torch.save({"W_enc": torch.ones(3), "evil": Payload(canary)}, buffer)
    found["torch.save"] = buffer.getvalue()
    found["gzip"] = gzip.compress(found["protocol 4"])
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(canary)], dtype=object), allow_pickle=True)
    found["npy"] = buffer.getvalue()
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([Payload(canary)], dtype=object))
    found["npz"] = buffer.getvalue()
    padded = found["protocol 4"]
    found["behind a length"] = struct.pack("<Q", len(padded)) + padded
    found["in a header"] = join({"__metadata__": {"fewfire": padded.hex()}}, padded)
    return found


@pytest.mark.parametrize("kind", payloads(Path("canary")))
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.pkl"])
def test_pickles_are_refused_and_not_run(tmp_path: Path, kind: str, name: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / name
    path.write_bytes(payloads(canary)[kind])
    for read in (load, read_config, load_tensors, read_metadata, checkpoint.load, open_run):
        with pytest.raises(ModelFileError) as caught:
            read(path)
        check_sentence(caught.value, path)
    assert not canary.exists()
    pickle.loads(payloads(canary)["protocol 0"])
    assert canary.exists(), "the payload is live"


def test_a_renamed_pickle_is_called_one(tmp_path: Path) -> None:
    for kind, words in {
        "torch.save": "a zip archive, as torch.save",
        "protocol 5": "a pickle, which can run code",
    }.items():
        (tmp_path / "m.safetensors").write_bytes(payloads(tmp_path / "canary")[kind])
        with pytest.raises(ModelFileError, match=words):
            load(tmp_path / "m.safetensors")
    (tmp_path / "model.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelFileError, match="Pickles, which can run code, are never opened"):
        load(tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="found m.safetensors, model.pt"):
        load(tmp_path)


# ------------------------------------------------------------------------------------------------ whose files


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users can look into, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def as_somebody_else(work: Callable[[], object]) -> None:
    """Do the work in a child process that belongs to nobody, and check that it went well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking with threads: the child only reads files
        child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


needs_root = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be somebody else")


@needs_root
def test_what_one_user_saves_another_loads(shared: Path) -> None:
    """safetensors' own writer leaves files that nobody else can read."""
    before = os.umask(0o022)
    try:
        save(MODELS["table"](), shared / "model")
    finally:
        os.umask(before)
    truth = load(shared / "model").state_dict()

    def read() -> None:
        found = load(shared / "model").state_dict()
        assert all(torch.equal(found[name], truth[name]) for name in truth)
        with pytest.raises(PermissionError):
            save(MODELS["table"](), shared / "model")

    as_somebody_else(read)


@needs_root
def test_a_stale_copy_in_a_read_only_folder_is_only_told(shared: Path) -> None:
    save(MODELS["table"](), shared / "model")
    (shared / "model" / "config.json").write_text("{")

    def read() -> None:
        with pytest.warns(UserWarning, match="did not agree with model.safetensors.*could not be rewritten"):
            load(shared / "model")

    as_somebody_else(read)
    assert (shared / "model" / "config.json").read_text() == "{"
