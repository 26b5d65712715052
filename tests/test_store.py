"""The activation store: what was written comes back, from wherever it is asked; and it is data like any other."""

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

import fewfire as ff
from fewfire import runs
from fewfire.contracts import Source
from fewfire.sources import StoreSource
from fewfire.store import ActivationStore, StoreError, StoreWriter, writing
from stores import SIZES, make_store, part, vectors

N = sum(SIZES)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Of 8 rows of 6 float16."""
    monkeypatch.setattr(writing, "BLOCK_BYTES", 96)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_was_written_comes_back(tmp_path, dtype):
    written = make_store(tmp_path / "store", dtype=dtype)["layer"]
    store = ff.ActivationStore.open(tmp_path / "store")
    assert (store.n_rows, store.d, store.dtype, store.layer, store.per) == (N, 6, dtype, "layer", "token")
    assert len(store) == N
    assert sum(store.block_rows) == N
    assert torch.equal(torch.cat([store.block(i) for i in range(len(store.block_rows))]), written)
    asked = [75, 0, 29, 30, 31, 0, 44]
    assert torch.equal(store.vectors(asked), written[asked].float())
    assert store.vectors([]).shape == (0, 6)
    store.verify()


def test_the_shards_are_plain_safetensors(tmp_path):
    written = make_store(tmp_path / "store")["layer"]
    found = [safetensors.torch.load_file(path) for path in sorted((tmp_path / "store").glob("shard-*"))]
    assert [list(tensors) for tensors in found] == [["activations"]] * len(SIZES)
    assert torch.equal(torch.cat([tensors["activations"] for tensors in found]), written)
    shard = ff.open_source(tmp_path / "store" / "shard-00003.safetensors")  # alone, it is data too
    assert shard.n_rows == SIZES[3]


def test_the_manifest_is_as_documented(tmp_path):
    written = make_store(tmp_path / "store")["layer"]
    store = ActivationStore.open(tmp_path / "store")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert store.manifest == manifest
    assert store.sha256 == hashlib.sha256((tmp_path / "store" / "manifest.json").read_bytes()).hexdigest()
    assert [shard["offset"] for shard in manifest["shards"]] == [0, 30, 31, 31]
    for shard in manifest["shards"]:
        raw = (tmp_path / "store" / shard["file"]).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == shard["sha256"]
    x = written.double().numpy()
    np.testing.assert_allclose(manifest["mean"], x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(manifest["scale"], np.sqrt(((x - x.mean(0)) ** 2).mean()), rtol=1e-12)
    assert not (tmp_path / "store" / "unfinished").exists()


def test_rows_and_documents_in_the_order_asked(tmp_path):
    make_store(tmp_path / "store")
    store = ActivationStore.open(tmp_path / "store")
    asked = [74, 3, 30, 3, 0]
    rows = store.rows(asked)
    assert rows.schema.names == ["document", "position", "token_id", "token", "start", "end", "label"]
    whole = pq.read_table(tmp_path / "store" / "rows.parquet")
    assert rows.equals(whole.take(asked))
    assert store.documents([12, 0]).to_pydict() == {
        "document": [12, 0],
        "text": ["text 12", "text 0"],
        "label": ["label 0", "label 0"],
    }
    assert store.rows([]).num_rows == store.documents(np.array([], dtype=np.int64)).num_rows == 0
    assert store.rows(np.arange(store.n_rows)).equals(whole.combine_chunks())
    assert store.documents(range(store.n_documents))["document"].to_pylist() == list(range(store.n_documents))


@pytest.mark.parametrize("wrong, error", [([N], IndexError), ([-1], IndexError), ([0.5], TypeError), (3, TypeError)])
def test_numbers_that_there_are_not(tmp_path, wrong, error):
    make_store(tmp_path / "store")
    store = ActivationStore.open(tmp_path / "store")
    for ask in (store.rows, store.documents, store.vectors):
        with pytest.raises(error, match="expected"):
            ask(wrong)


def test_several_layers_share_their_tables(tmp_path):
    written = make_store(tmp_path / "stores", {"a.0": 4, "a.1": 7})
    with pytest.raises(ValueError, match=r"several layers: a\.0, a\.1; name one"):
        ActivationStore.open(tmp_path / "stores")
    first, second = (ActivationStore.open(tmp_path / "stores" / name) for name in ("a.0", "a.1"))
    assert (first.d, second.d) == (4, 7)
    assert torch.equal(second.vectors([1, 40]), written["a.1"][[1, 40]].float())
    assert first.rows([5]).equals(second.rows([5]))
    assert (first.path / "rows.parquet").samefile(second.path / "rows.parquet")


def test_a_disk_without_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "no links here")

    monkeypatch.setattr(writing.os, "link", refuse)
    make_store(tmp_path / "stores", {"a": 4, "b": 7})
    second = ActivationStore.open(tmp_path / "stores" / "b")
    second.verify()
    assert second.rows([5])["token"].to_pylist() == ["token 5"]


# ---------------------------------------------------------------------------------------------- writing


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def begun(folder, n_parts):
    """A writer that has written so many parts of make_store's."""
    folder.mkdir(exist_ok=True)
    whole = {"a": vectors(N, 4), "b": vectors(N, 7, seed=1)}
    writer = StoreWriter(folder, ["a", "b"], "float16", "token", {"model": "none"})
    if writer.is_finished:
        return writer
    done = writer.done()
    at, document = sum(SIZES[: len(done)]), sum(record.documents for record in done)
    for size in SIZES[len(done) : n_parts]:
        made = part({name: rows[at : at + size] for name, rows in whole.items()}, document)
        writer.write(made)
        at += size
        document += len(made.documents)
    return writer


def test_going_on_gives_the_same_bytes(tmp_path):
    begun(tmp_path / "whole", len(SIZES)).finish()
    for n_parts in range(len(SIZES) + 1):
        begun(tmp_path / f"at-{n_parts}", n_parts)
        begun(tmp_path / f"at-{n_parts}", len(SIZES)).finish()
        assert content(tmp_path / f"at-{n_parts}") == content(tmp_path / "whole")
    again = begun(tmp_path / "whole", 0)
    assert again.is_finished
    again.finish()


@pytest.mark.parametrize("step", range(1, 12))
def test_a_failing_disk_while_it_is_put_together(tmp_path, monkeypatch, step):
    """Wherever finishing ends, finishing again gives the same bytes."""
    begun(tmp_path / "whole", len(SIZES)).finish()
    writer = begun(tmp_path / "store", len(SIZES))
    calls = 0

    def fail_at(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == step:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("atomic_write", "atomic_writer", "_share", "write_parquet", "_sha256"):
            patch.setattr(writing, name, fail_at(getattr(writing, name)))
        try:
            writer.finish()
        except OSError:
            assert not writer.is_finished
    begun(tmp_path / "store", len(SIZES)).finish()
    assert content(tmp_path / "store") == content(tmp_path / "whole")


def test_going_on_with_other_settings_is_refused(tmp_path):
    begun(tmp_path / "store", 1)
    with pytest.raises(ValueError, match="begun with model 'none', and not 'other'"):
        StoreWriter(tmp_path / "store", ["a", "b"], "float16", "token", {"model": "other"})


def test_values_that_the_dtype_cannot_hold(tmp_path):
    (tmp_path / "store").mkdir()
    writer = StoreWriter(tmp_path / "store", ["a"], "float16", "token", {})
    with pytest.raises(ValueError, match="float16 cannot hold; bfloat16 or float32 holds"):
        writer.write(part({"a": torch.tensor([[1.0, 1e6]]).half()}, 0))
    assert not list((tmp_path / "store").glob("shard-*"))


def test_nothing_to_store(tmp_path):
    (tmp_path / "store").mkdir()
    writer = StoreWriter(tmp_path / "store", ["a"], "float16", "token", {})
    with pytest.raises(ValueError, match="nothing to store"):
        writer.finish()


def test_a_layer_that_can_be_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"'\.\./a' can be no folder"):
        StoreWriter(tmp_path, ["../a", "b"], "float16", "token", {})


# ---------------------------------------------------------------------------------------------- as data


def collected(source, **options):
    batches = list(source.batches(16, **options))
    return torch.cat([b.x for b in batches]), torch.cat([b.rows for b in batches])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shuffle_bytes", [1 << 20, 700])
def test_a_store_is_a_source(tmp_path, dtype, shuffle_bytes):
    written = make_store(tmp_path / "store", dtype=dtype)["layer"].float()
    source = ff.open_source(str(tmp_path / "store"), shuffle_bytes=shuffle_bytes)
    assert isinstance(source, StoreSource) and isinstance(source, Source)
    assert source.fits == (shuffle_bytes == 1 << 20)
    x, rows = collected(source, shuffle=False)
    assert torch.equal(x, written) and rows.tolist() == list(range(N))
    x, rows = collected(source, seed=3, epoch=1)
    assert x.dtype == torch.float32
    assert torch.equal(x, written[rows]) and sorted(rows.tolist()) == list(range(N))
    later, later_rows = collected(source, seed=3, epoch=1, start=2)
    assert torch.equal(later, x[32:]) and torch.equal(later_rows, rows[32:])
    assert not torch.equal(collected(source, seed=3, epoch=2)[1], rows)
    train, held = source.split(0.25)
    assert sorted(torch.cat([collected(train)[1], collected(held)[1]]).tolist()) == list(range(N))


def test_the_fingerprint_is_the_content(tmp_path):
    make_store(tmp_path / "a")
    make_store(tmp_path / "b")
    make_store(tmp_path / "c", producer={"model": "another"})
    a, b, c = (ff.open_source(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def test_labels_come_along(tmp_path):
    make_store(tmp_path / "store")
    source = ff.open_source(tmp_path / "store")
    assert source.labels.shape == (N,)
    assert source.labels[0] == "label 0"
    assert source.labels[9] is None


def test_the_mean_and_scale_need_no_pass(tmp_path, monkeypatch):
    """``center`` with them is ``center`` fitted on the rows; of a large store, that pass takes as long as an epoch."""
    make_store(tmp_path / "store", dtype="float32")
    source = ff.open_source(tmp_path / "store")
    assert source.suggested_preprocess == "center"
    fitted = [ff.Autoencoder(6, 8, "topk", preprocess="center") for _ in range(2)]
    ff.Trainer(fitted[0], source, config=ff.TrainConfig(steps=1), progress=False).fit()
    monkeypatch.delattr(StoreSource, "mean_and_scale")
    ff.Trainer(fitted[1], source, config=ff.TrainConfig(steps=1), progress=False).fit()
    known, seen = (model.preprocess for model in fitted)
    torch.testing.assert_close(known.mean, seen.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(known.scale, seen.scale, rtol=1e-12, atol=0)


def test_a_large_store_is_not_read_for_its_mean(tmp_path, monkeypatch):
    make_store(tmp_path / "store")
    source = ff.open_source(tmp_path / "store", shuffle_bytes=700)
    model = ff.Autoencoder(6, 8, "topk", preprocess="center")
    monkeypatch.setattr(type(model.preprocess), "fit", lambda *_: pytest.fail("it was read"))
    ff.Trainer(model, source, config=ff.TrainConfig(steps=1), progress=False).fit()


def test_a_damaged_block_ends_the_reading(tmp_path):
    make_store(tmp_path / "store")
    path = tmp_path / "store" / "shard-00003.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    source = ff.open_source(tmp_path / "store")
    with pytest.raises(StoreError, match=r"shard-00003\.safetensors, block 5, does not match its checksum"):
        collected(source)


def test_a_model_knows_the_store_that_it_was_trained_on(tmp_path):
    make_store(tmp_path / "store")
    config = {"data": {"path": str(tmp_path / "store")}, "train": {"steps": 5, "batch_size": 16}}
    run = runs.train(runs.RunConfig.model_validate(config), tmp_path / "run", progress=False)
    store = ActivationStore.open(tmp_path / "store")
    assert run.provenance["origin"]["store_sha256"] == store.sha256
    assert run.provenance["origin"]["layer"] == "layer"
    assert run.provenance["origin"]["producer"] == {"model": "none"}
    assert run.source().store.sha256 == store.sha256
    make_store(tmp_path / "other", sizes=(76,))
    (tmp_path / "store").rename(tmp_path / "gone")
    (tmp_path / "other").rename(tmp_path / "store")
    with pytest.raises(ValueError, match="no longer, what"):
        run.source()
