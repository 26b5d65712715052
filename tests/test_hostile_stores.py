"""Stores that are damaged, cut short or made by a stranger: one line each, before anything large is read."""

import copy
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fewfire as ff
from fewfire.disk import sha256_json
from fewfire.store import ActivationStore, StoreError, manifest, tables, writing
from stores import make_store

MISSING = object()
HUGE = 1 << 60

MUTANTS = {
    "no version": ("fewfire_store", MISSING),
    "another version": ("fewfire_store", 2),
    "a version that is true": ("fewfire_store", True),
    "layer that is a list": ("layer", ["a"]),
    "layer of a megabyte": ("layer", "a" * (1 << 20)),
    "per what nobody knows": ("per", "word"),
    "unknown dtype": ("dtype", "float64"),
    "another dtype": ("dtype", "float32"),
    "no columns": ("d", 0),
    "columns that are text": ("d", "6"),
    "columns that are half": ("d", 6.5),
    "other columns": ("d", 5),
    "columns without end": ("d", HUGE),
    "more rows": ("n_rows", 77),
    "fewer rows": ("n_rows", 75),
    "rows below zero": ("n_rows", -1),
    "rows without end": ("n_rows", HUGE),
    "other documents": ("n_documents", 1),
    "blocks of no rows": ("block_rows", 0),
    "blocks of other rows": ("block_rows", 9),
    "a mean too short": ("mean", [0.0]),
    "a mean of text": ("mean", ["0"] * 6),
    "no mean": ("mean", MISSING),
    "another producer": ("producer", {"model": "better"}),
    "a producer that is none": ("producer", None),
    "a key that nobody knows": ("more", 1),
    "no shards": ("shards", []),
    "shards that are none": ("shards", None),
    "no files": ("files", {}),
}
SHARD_MUTANTS = {
    "a path out of the folder": ("file", "../other/shard-00000.safetensors"),
    "an absolute path": ("file", "/etc/passwd"),
    "another name": ("file", "shard-00001.safetensors"),
    "a name of nothing": ("file", ""),
    "a name with a null": ("file", "shard-00000.safetensors\0"),
    "rows that lie": ("rows", 29),
    "rows below zero": ("rows", -30),
    "rows without end": ("rows", HUGE),
    "another offset": ("offset", 1),
    "documents that lie": ("documents", 1),
    "documents without end": ("documents", HUGE),
    "no checksum": ("sha256", MISSING),
    "a checksum too short": ("sha256", "ab"),
    "a checksum of no hexadecimals": ("sha256", "g" * 64),
    "a checksum with a line behind it": ("sha256", "a" * 64 + "\n"),
    "blocks missing": ("blocks", []),
    "blocks too many": ("blocks", ["a" * 64] * 5),
}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "BLOCK_BYTES", 96)
    make_store(tmp_path / "store")
    return tmp_path / "store"


def rewrite(store, change):
    path = store / "manifest.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def put(key, value):
    def change(found):
        if value is MISSING:
            del found[key]
        else:
            found[key] = value

    return change


def refused(store, use=lambda opened: None):
    """The line in which it is refused, here and as data."""
    with pytest.raises(StoreError) as caught:
        use(ActivationStore.open(store))
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400, line
    assert str(store) in line
    return line


@pytest.mark.parametrize(("key", "value"), MUTANTS.values(), ids=list(MUTANTS))
def test_a_manifest_that_lies(store, key, value):
    rewrite(store, put(key, value))
    refused(store)
    with pytest.raises(ValueError, match=r"manifest|shard|parquet"):
        ff.open_source(store)


@pytest.mark.parametrize(("key", "value"), SHARD_MUTANTS.values(), ids=list(SHARD_MUTANTS))
def test_a_shard_that_is_described_wrongly(store, key, value):
    rewrite(store, lambda found: put(key, value)(found["shards"][0]))
    refused(store)


@pytest.mark.parametrize("name", ["../rows.parquet", "/etc/passwd", "more.parquet"])
def test_files_of_other_names(store, name):
    rewrite(store, lambda found: found["files"].update({name: found["files"].pop("rows.parquet")}))
    refused(store)


def test_counts_that_lie_together(store):
    """A manifest may agree with itself; the files do not agree with it."""

    def change(found):
        found["shards"][3]["rows"] += 1
        found["n_rows"] += 1

    rewrite(store, change)
    assert "shape" in refused(store)


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "cannot be used"),
        ("[]", "not an activation store's"),
        ("[" * 100_000, "nested"),
        ('{"fewfire_store": 1, "fewfire_store": 1}', "twice"),
        ('{"fewfire_store": NaN}', "finite"),
        ('{"fewfire_store": 99}', "version 99"),
        ("\xff", "cannot be used"),
    ],
)
def test_a_manifest_that_is_none(store, text, says):
    (store / "manifest.json").write_bytes(text.encode("latin-1"))
    assert says in refused(store)


def test_a_manifest_without_end(store, monkeypatch):
    monkeypatch.setattr(manifest, "MAX_BYTES", 100)
    assert "at most 100 are read" in refused(store)


def test_a_store_that_is_not_finished(store):
    (store / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="not a finished one"):
        ActivationStore.open(store)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ActivationStore.open(store / "nothing")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ActivationStore.open(store / "rows.parquet")


@pytest.mark.parametrize("name", ["shard-00000.safetensors", "rows.parquet", "documents.parquet"])
def test_a_file_that_is_cut_short_or_longer_or_gone(store, name):
    path = store / name
    raw = path.read_bytes()
    for other in (raw[:-1], raw + b"\0", raw[: len(raw) // 2], b""):
        path.write_bytes(other)
        assert name in refused(store)
    path.unlink()
    assert "missing" in refused(store)


def test_every_bit_of_a_header_counts(store):
    path = store / "shard-00000.safetensors"
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    for at in range(end):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x11]) + raw[at + 1 :])
        try:
            opened = ActivationStore.open(store)
        except StoreError:
            continue
        with pytest.raises(StoreError, match="checksum"):
            opened.verify()


@pytest.mark.parametrize("name", ["shard-00000.safetensors", "rows.parquet", "documents.parquet"])
def test_any_other_byte_is_found_by_its_checksum(store, name):
    path = store / name
    raw = path.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little") if name.startswith("shard") else 0
    for at in np.linspace(begin, len(raw) - 1, 40).astype(int):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x40]) + raw[at + 1 :])
        opened = ActivationStore.open(store)
        with pytest.raises(StoreError, match="does not match its checksum"):
            opened.verify()
    with pytest.raises(StoreError, match="does not match its checksum"):
        opened = ActivationStore.open(store)
        opened.rows(range(opened.n_rows)), opened.documents(range(opened.n_documents)), opened.vectors(range(30))


def forge(store, name, write):
    """Another file, with the size and checksum that the manifest then states."""
    write(store / name)
    raw = (store / name).read_bytes()
    rewrite(store, put("files", {**json.loads((store / "manifest.json").read_text())["files"]}))
    rewrite(
        store,
        lambda found: found["files"].update({name: {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}}),
    )


def test_tables_that_do_not_belong_to_the_rows(store):
    whole = pq.read_table(store / "rows.parquet")
    keep = copy.copy((store / "manifest.json").read_bytes()), (store / "rows.parquet").read_bytes()

    def write(*groups, schema=None):
        def to(path):
            with pq.ParquetWriter(path, schema or groups[0].schema) as writer:
                for group in groups:
                    writer.write_table(group)

        return to

    forgeries = [
        (write(whole), "row group"),
        (write(whole.slice(0, 30), whole.slice(30, 1), whole.slice(0, 0)), "row group"),
        (write(*(g.drop_columns("label") for g in parts(whole))), "columns"),
        (
            write(*(g.set_column(3, "token", pa.array(range(len(g)), pa.int64())) for g in parts(whole))),
            "damaged|columns",
        ),
        (lambda path: path.write_bytes(b"PAR1 no table at all PAR1"), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
    ]
    for forgery, says in forgeries:
        forge(store, "rows.parquet", forgery)
        with pytest.raises(StoreError, match=says):
            ActivationStore.open(store).rows([0])
        (store / "manifest.json").write_bytes(keep[0])
        (store / "rows.parquet").write_bytes(keep[1])


def parts(whole):
    return [whole.slice(0, 30), whole.slice(30, 1), whole.slice(31, 0), whole.slice(31)]


def test_a_table_that_would_fill_the_memory(store, monkeypatch):
    monkeypatch.setattr(tables, "MAX_GROUP_BYTES", 100)
    with pytest.raises(StoreError, match="would unpack to more"):
        ActivationStore.open(store).rows([0])


def test_text_that_repeats_takes_its_place_once(store):
    """A megabyte of text, said once and meant thirty times, is not thirty megabytes before somebody asks for it."""
    whole = pq.read_table(store / "rows.parquet")
    long = pa.array(["x" * (1 << 20)] * len(whole))
    forge(
        store,
        "rows.parquet",
        lambda path: tables.write_parquet(path, whole.set_column(3, "token", long), tables.ROWS),
    )
    # as one group it is refused; what matters is how a group is held
    table = tables.Table(store / "rows.parquet", tables.ROWS, [len(whole)], manifest.StoredFile.model_validate(
        json.loads((store / "manifest.json").read_text())["files"]["rows.parquet"]
    ))  # fmt: skip
    assert table._group(0).nbytes < 2 << 20
    assert table.take(np.array([3]))["token"].to_pylist() == ["x" * (1 << 20)]


def test_a_manifest_with_another_producer_and_its_hash_is_a_store(store):
    """Checksums guard against accident: who can write the file can write them."""

    def change(found):
        found["producer"] = {"model": "better"}
        found["producer_sha256"] = sha256_json(found["producer"])

    rewrite(store, change)
    assert ActivationStore.open(store).manifest["producer"] == {"model": "better"}
