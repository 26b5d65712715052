"""Bundles: what is in them is what the model does, and they are built when they should be."""

import itertools
import json
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fewfire as ff
import nursery
from fewfire.contracts import Layout
from fewfire.disk import FolderInUseError, locked
from fewfire.evaluation import Evaluation
from fewfire.explorer import build as building
from fewfire.explorer import neighbours, renderers, smallest
from fewfire.explorer.atlas import lay_out
from fewfire.explorer.build import BUILDING, build
from fewfire.explorer.choosing import GROUPS
from fewfire.explorer.export import export
from fewfire.explorer.neighbours import by_angle, by_firing
from fewfire.explorer.opening import open_bundle
from fewfire.explorer.renderers import contributions, family
from fewfire.explorer.renderers.patterns import describe
from fewfire.explorer.scan import N_BINS, N_SAMPLED, N_TOP, Codes
from fewfire.explorer.server import page_files
from fewfire.explorer.smallest import Entries, Smallest, hashed, strongest_first
from fewfire.explorer.store import FILE, Store
from fewfire.runs import Run, RunConfig, train
from fewfire.scoring import score_rows
from stores import make_store

DTYPES = {"u1": np.uint8, "i1": np.int8, "i2": np.int16, "i4": np.int32, "f4": np.float32}


def unpack(packed):
    import base64

    values = np.frombuffer(base64.b64decode(packed["data"]), DTYPES[packed["dtype"]])
    return values.reshape(packed["shape"])


def run_of(path, model, **provenance):
    path.mkdir(parents=True, exist_ok=True)
    return Run(path=path, model=model, config=None, provenance=provenance)


def start(k):
    """The first column of a group of examples."""
    return list(itertools.accumulate((n for _, n in GROUPS), initial=0))[k]


# ------------------------------------------------------------------------------------------- a run, looked at closely


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """A small dictionary on labelled rows: (store, model, rows, latents, labels, folder)."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(3000, 6)).astype(np.float32)
    labels = np.where(rows[:, 0] > 0, "positive", "negative")
    source = ff.ArraySource(rows, layout={"kind": "table", "columns": list("abcdef")}, labels=labels)
    model = ff.Autoencoder(6, 40, ff.TopK(k=4), layout=source.layout)
    with torch.no_grad():
        model.encoder.b_enc[7] = -100.0  # never fires
        model.encoder.W_enc[3] = torch.tensor([5.0, 0, 0, 0, 0, 0])  # fires on the positive
        model.decoder.W_dec[3] = torch.tensor([1.0, 0, 0, 0, 0, 0])
    folder = tmp_path_factory.mktemp("looked")
    run = run_of(folder, model, score={"threshold": 1.5})
    bundle = build(run, source, progress=False)
    latents = model.encode(rows).numpy()
    return Store(bundle), model, rows, latents, labels, folder


def features_of(store):
    return {f["id"]: f for f in json.loads(store.features(limit=500))["features"]}


def test_the_numbers_are_those_of_evaluate(looked):
    store, model, rows, _, _, _ = looked
    measured = Evaluation.over(model, ff.ArraySource(rows, layout=model.layout))
    found = features_of(store)
    assert len(found) == 40
    for i in range(40):
        assert found[i]["density"] == pytest.approx(float(measured.density[i]), rel=1e-4)
        assert found[i]["max"] == pytest.approx(max(0.0, float(measured.largest[i])), rel=1e-4)
        assert found[i]["norm"] == pytest.approx(float(model.decoder.W_dec[i].detach().norm()), rel=1e-4)
    assert [i for i in found if found[i]["dead"]] == [7]
    assert {i for i in found if found[i]["dense"]} == {i for i in range(40) if float(measured.density[i]) > 0.1}


def test_the_codes_are_complete(looked):
    store, _model, _rows, latents, _, _ = looked
    table = pq.read_table(store.path.parent / "codes.parquet")
    dense = np.zeros_like(latents)
    for i, (indices, values) in enumerate(zip(table["indices"].to_pylist(), table["values"].to_pylist(), strict=True)):
        dense[i, indices] = values
    assert (dense == latents).all()


def test_the_examples_are_the_strongest(looked):
    store, _, _, latents, _, _ = looked
    for i in (0, 3, 11):
        page = json.loads(store.feature(i))
        rows, values = page["examples"]["rows"][:N_TOP], unpack(page["examples"]["values"])[:N_TOP]
        order = np.argsort(-latents[:, i], kind="stable")[:N_TOP]
        assert rows == order.tolist()
        assert values == pytest.approx(latents[order, i])
        assert page["mean"] == pytest.approx(latents[:, i][latents[:, i] != 0].mean(), rel=1e-4)


def test_examples_at_quantiles_lie_about_them(looked):
    store, _, _, latents, _, _ = looked
    page = json.loads(store.feature(3))
    fires = np.sort(latents[:, 3][latents[:, 3] != 0])
    values, rows = unpack(page["examples"]["values"]), page["examples"]["rows"]
    for k, (name, n) in list(enumerate(GROUPS))[1:-1]:
        for place in range(start(k), start(k) + n):
            if rows[place] >= 0:
                assert values[place] == pytest.approx(latents[rows[place], 3])
                share = (fires < values[place]).mean()
                assert abs(share - int(name[1:]) / 100) < 0.25  # of a sample of 32
    shown = [row for row in rows if row >= 0]
    assert len(shown) == len(set(shown))


def test_near_misses_are_silent_and_nearest_to_firing(looked):
    store, model, rows, latents, _, _ = looked
    pre_acts = model.codes(torch.from_numpy(rows))[0].detach()
    margins = model.activation.margins(pre_acts)
    height = (pre_acts if margins is None else margins).numpy()
    candidates = np.arange(0, len(rows), -(-len(rows) // 2048))
    for i in (0, 3, 7):
        page = json.loads(store.feature(i))
        at = start(len(GROUPS) - 1)
        missed = page["examples"]["rows"][at:]
        assert (latents[missed, i] == 0).all()
        silent = candidates[latents[candidates, i] == 0]
        assert missed == silent[np.argsort(-height[silent, i], kind="stable")][: len(missed)].tolist()


def test_histograms_count_every_firing(looked):
    store, _, _, latents, _, _ = looked
    for i in range(40):
        page = json.loads(store.feature(i))
        assert sum(page["histogram"]["counts"]) == (latents[:, i] != 0).sum() == page["fired"]
        assert len(page["histogram"]["counts"]) == N_BINS
    page = json.loads(store.feature(3))
    counts, _ = np.histogram(latents[:, 3][latents[:, 3] != 0], N_BINS, (0, latents[:, 3].max()))
    assert page["histogram"]["counts"] == counts.tolist()


def test_a_feature_is_named_after_the_class_on_which_it_fires(looked):
    store, _, _, latents, labels, _ = looked
    page = json.loads(store.feature(3))
    meta = json.loads(store.text("meta"))
    assert page["label"] == "mostly positive"
    assert meta["classes"] == ["negative", "positive"]
    assert meta["class_counts"] == [int((labels == name).sum()) for name in meta["classes"]]
    assert page["by_class"] == [int(((latents[:, 3] != 0) & (labels == name)).sum()) for name in meta["classes"]]


def test_rows_have_their_codes_reconstructions_and_scores(looked):
    store, model, rows, latents, labels, _ = looked
    scores = score_rows(model, rows).score.numpy()
    recon = model.reconstruct(rows).numpy()
    for i in (0, 17, 2999):
        page = json.loads(store.row(i))
        assert page["label"] == labels[i]
        assert page["score"] == pytest.approx(scores[i], rel=1e-4)
        assert page["anomaly"] == int(scores[i] > 1.5)
        assert dict(zip(page["codes"]["features"], unpack(page["codes"]["values"]), strict=True)) == pytest.approx(
            {j: latents[i, j] for j in np.flatnonzero(latents[i])}
        )
        assert unpack(page["look"]["x"]) == pytest.approx(rows[i])
        assert unpack(page["look"]["recon"]) == pytest.approx(recon[i], abs=1e-5)
        assert set(map(int, page["named"])) == set(page["codes"]["features"])
    anomalies = json.loads(store.rows(anomalies=True, sort="score", descending=True))
    assert anomalies["total"] == (scores > 1.5).sum()
    assert [row["id"] for row in anomalies["rows"][:5]] == np.argsort(-scores)[:5].tolist()


def test_sorting_filtering_and_searching(looked):
    store, _, _, _, _, _ = looked
    found = features_of(store)
    for name in ("density", "max", "mean", "norm"):
        listed = [f[name] for f in json.loads(store.features(sort=name, limit=500))["features"]]
        assert listed == sorted((f[name] for f in found.values()), reverse=True)
    assert [f["id"] for f in json.loads(store.features(sort="id", descending=False, limit=500))["features"]] == list(
        range(40)
    )
    pages = [json.loads(store.features(offset=offset, limit=7))["features"] for offset in range(0, 40, 7)]
    assert sorted(f["id"] for page in pages for f in page) == list(range(40))
    dead = json.loads(store.features(show="dead"))
    assert [f["id"] for f in dead["features"]] == [7] and dead["total"] == 1
    assert 3 in [f["id"] for f in json.loads(store.features(query="posit"))["features"]]
    assert 3 in [f["id"] for f in json.loads(store.features(query="MOSTLY positive"))["features"]]
    assert json.loads(store.features(query="positive nowhere"))["total"] == 0
    assert json.loads(store.features(query="+++"))["total"] == 0
    by_fit = json.loads(store.features(query="positive", sort="match"))
    assert by_fit["total"] == len(by_fit["features"]) > 0
    assert [f["id"] for f in json.loads(store.features(sort="match"))["features"]] == [
        f["id"] for f in json.loads(store.features())["features"]
    ]


def test_what_is_not_there_is_none(looked):
    store, *_ = looked
    assert store.feature(40) is None
    assert store.row(3000) is None


# ------------------------------------------------------------------------------------------------- when it is built


def small(tmp_path, seed=0, **provenance):
    rows = np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32)
    return run_of(tmp_path / "run", ff.Autoencoder(4, 8, ff.TopK(k=2), seed=seed), **provenance), ff.ArraySource(rows)


def stamp(bundle):
    return (bundle / FILE).stat().st_mtime_ns


def test_it_is_built_when_model_or_data_change_and_not_otherwise(tmp_path):
    run, source = small(tmp_path)
    bundle = build(run, source, progress=False)
    first = stamp(bundle)
    assert stamp(build(run, source, progress=False)) == first
    same, _ = small(tmp_path)
    assert stamp(build(same, source, progress=False)) == first
    other, _ = small(tmp_path, seed=1)
    second = stamp(build(other, source, progress=False))
    assert second != first
    changed = ff.ArraySource(np.random.default_rng(2).normal(size=(200, 4)).astype(np.float32))
    third = stamp(build(other, changed, progress=False))
    assert third != second
    assert stamp(build(other, changed, rows=50, progress=False)) != third
    assert json.loads(Store(bundle).text("meta"))["n_rows"] == 50


def test_a_damaged_bundle_is_built_again(tmp_path):
    run, source = small(tmp_path)
    bundle = build(run, source, progress=False)
    for damage in (b"", b"SQLite format 3\0", (bundle / FILE).read_bytes()[:5000]):
        (bundle / FILE).write_bytes(damage)
        build(run, source, progress=False)
        assert Store(bundle).feature(0) is not None


def test_a_build_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    run, source = small(tmp_path)
    bundle = build(run, source, progress=False)
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    monkeypatch.setattr(building, "lay_out", lambda *_: 1 / 0)
    other, _ = small(tmp_path, seed=1)
    with pytest.raises(ZeroDivisionError):
        build(other, source, progress=False)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_what_a_killed_build_left_is_removed(tmp_path):
    run, source = small(tmp_path)
    left = tmp_path / "run" / "explorer" / f"{BUILDING}abc"
    left.mkdir(parents=True)
    (left / "codes.parquet").write_text("half")
    bundle = build(run, source, progress=False)
    assert sorted(path.name for path in bundle.iterdir()) == ["codes.parquet", FILE]


@nursery.needs_fork
def test_one_builds_at_a_time(tmp_path):
    run, source = small(tmp_path)
    folder = tmp_path / "run" / "explorer"
    folder.mkdir()
    with nursery.children(nursery.start(_hold, folder)) as (child,):
        assert child.answer() == "held"
        with pytest.raises(FolderInUseError):
            build(run, source, progress=False)


def _hold(send, folder):
    with locked(folder):
        send("held")
        time.sleep(60)


@pytest.mark.parametrize(("rows", "match"), [(0, "at least 1 row"), (-3, "at least 1 row")])
def test_how_many_rows(tmp_path, rows, match):
    run, source = small(tmp_path)
    with pytest.raises(ValueError, match=match):
        build(run, source, rows=rows)


def test_rows_that_are_not_finite_are_named(tmp_path):
    run, _ = small(tmp_path)
    rows = np.zeros((10, 4), dtype=np.float32)
    rows[6, 1] = np.nan
    with pytest.raises(ValueError, match="row 6"):
        build(run, ff.ArraySource(rows), progress=False)
    assert not any((tmp_path / "run" / "explorer").glob("*.sqlite"))


def test_the_same_bundle_every_time(tmp_path):
    contents = []
    for name in ("a", "b"):
        run, source = small(tmp_path / name)
        store = Store(build(run, source, progress=False))
        with sqlite3.connect(store.path) as connection:
            contents.append(list(connection.iterdump()))
    assert contents[0] == contents[1]


def test_a_detectors_table_says_what_is_unusual(tmp_path):
    import pyarrow as pa

    run, source = small(tmp_path, score={"threshold": 0.0})
    flags = np.arange(200) % 50 == 3
    table = pa.table({"row": np.arange(200), "score": np.where(flags, 9.0, 1.0), "is_anomaly": flags})
    pq.write_table(table, tmp_path / "run" / "anomalies.parquet")
    store = Store(build(run, source, progress=False))
    found = json.loads(store.rows(anomalies=True))
    assert [row["id"] for row in found["rows"]] == [3, 53, 103, 153]
    assert {row["score"] for row in found["rows"]} == {9.0}


def test_without_a_detector_nothing_is_unusual(tmp_path):
    run, source = small(tmp_path)
    assert json.loads(Store(build(run, source, progress=False)).rows(anomalies=True))["total"] == 0


# ------------------------------------------------------------------------------------------------- any run explores

IMAGES = Layout("image", (6, 6))
MODELS = {
    "topk": lambda: ff.Autoencoder(36, 20, ff.TopK(k=3)),
    "relu": lambda: ff.Autoencoder(36, 20, "relu"),
    "jumprelu": lambda: ff.Autoencoder(36, 20, "jumprelu"),
    "gated": lambda: ff.Autoencoder(36, 20, "gated"),
    "batchtopk": lambda: ff.Autoencoder(36, 20, {"name": "batchtopk", "k": 3}),
    "sigmoid": lambda: ff.Autoencoder(36, 20, "sigmoid"),
    "plain": lambda: ff.Autoencoder(36, 20, "plain"),
    "pursuit": lambda: ff.Autoencoder(36, 20, {"name": "matching_pursuit", "k": 3}),
    "gaussian": lambda: ff.Autoencoder(36, 20, "gaussian"),
    "tied": lambda: ff.Autoencoder(36, 20, "relu", network={"name": "linear", "tied": True}),
    "deep": lambda: ff.Autoencoder(36, 20, "relu", network={"name": "mlp", "hidden": [24]}),
    "images": lambda: ff.Autoencoder(36, 20, "topk", layout=IMAGES),
    "colour": lambda: ff.Autoencoder(48, 20, "topk", layout=Layout("image", (3, 4, 4))),
    "large pictures": lambda: ff.Autoencoder(
        120 * 100, 5, {"name": "topk", "k": 2}, layout=Layout("image", (120, 100))
    ),
    "deep images": lambda: ff.Autoencoder(36, 20, "relu", network={"name": "mlp", "hidden": [24]}, layout=IMAGES),
    "convolution": lambda: ff.Autoencoder((1, 8, 8), 6, "relu", network="conv", layout=Layout("image", (1, 8, 8))),
    "series": lambda: ff.Autoencoder((2, 12), 20, "topk", layout=Layout("series", (2, 12), ("x", "y"))),
    "1-D convolution": lambda: ff.Autoencoder((2, 12), 6, "relu", network="conv", layout=Layout("series", (2, 12))),
    "transcoder": lambda: ff.Autoencoder(36, 20, "topk", d_out=7),
    "image transcoder": lambda: ff.Autoencoder(36, 20, "topk", d_out=7, layout=IMAGES),
    "crosscoder": lambda: ff.Autoencoder((2, 18), 20, "topk"),
    "one feature": lambda: ff.Autoencoder(5, 1, "relu"),
    "two features": lambda: ff.Autoencoder(5, 2, {"name": "topk", "k": 1}),
    "half precision": lambda: ff.Autoencoder(36, 20, "topk", dtype=torch.bfloat16),
    "double precision": lambda: ff.Autoencoder(36, 20, "topk", dtype=torch.float64),
}


@pytest.mark.parametrize("kind", MODELS)
def test_any_model_explores(tmp_path, kind):
    model = MODELS[kind]()
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, *model.input_shape)).astype(np.float32)
    target = None
    if model.target_shape != model.input_shape:
        target = generator.normal(size=(60, *model.target_shape)).astype(np.float32)
    source = ff.ArraySource(rows, target=target, layout=model.layout)
    store = Store(build(run_of(tmp_path / "run", model), source, progress=False))
    n = model.latent_shape[0]
    found = features_of(store)
    assert sorted(found) == list(range(n))
    latents = model.encode(rows)
    height = (latents.flatten(2).amax(2) if latents.ndim > 2 else latents).float().numpy()
    for i in range(n):
        page = json.loads(store.feature(i))
        for row, value in zip(
            page["examples"]["rows"][:N_TOP], unpack(page["examples"]["values"])[:N_TOP], strict=True
        ):
            if row >= 0:
                assert value == pytest.approx(height[row, i], rel=1e-2 if model.dtype == torch.bfloat16 else 1e-4)
                assert str(row) in page["rows"]
        assert found[i]["max"] == pytest.approx(
            max(0, height[:, i].max()) if (height[:, i] > 0).any() else height[:, i].max(), rel=1e-2, abs=1e-6
        )
    assert json.loads(store.row(0))["look"]
    assert len(unpack(json.loads(store.text("map"))["places"])) == n
    assert json.loads(store.text("run"))["metrics"]


def test_a_run_explores_by_its_folder_and_when_its_data_are_gone(tmp_path):
    rows = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    config = RunConfig.model_validate({"data": {"path": str(tmp_path / "rows.npy")}, "train": {"steps": 30}})
    train(config, tmp_path / "run", progress=False)
    bundle = open_bundle(tmp_path / "run", progress=False)
    run = json.loads(Store(bundle).text("run"))
    assert [curve["name"] for curve in run["curves"]][:1] == ["loss"]
    assert "train:" in run["config"]
    assert open_bundle(bundle) == bundle
    (tmp_path / "rows.npy").unlink()
    with pytest.warns(UserWarning, match="bundle of before"):
        assert open_bundle(tmp_path / "run", progress=False) == bundle
    (bundle / FILE).unlink()
    with pytest.raises(FileNotFoundError, match="rows.npy"):
        open_bundle(tmp_path / "run", progress=False)


def test_two_runs_side_by_side(tmp_path):
    run, source = small(tmp_path)
    turned = ff.Autoencoder(4, 8, ff.TopK(k=2))
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    with torch.no_grad():
        turned.decoder.W_dec.copy_(run.model.decoder.W_dec[order])
    store = Store(build(run, source, compare=run_of(tmp_path / "other", turned), progress=False))
    found = json.loads(store.text("comparison"))
    assert found["name"] == "other"
    assert dict(zip(found["own"], found["other"], strict=True)) == {int(own): i for i, own in enumerate(order)}
    assert min(found["cosine"]) > 0.999
    assert {m["name"] for m in found["metrics"]} >= {"mcc", "above_0.9"}


def test_a_run_of_other_rows_cannot_stand_beside(tmp_path):
    run, source = small(tmp_path)
    with pytest.raises(ValueError, match="two models of the same rows"):
        build(run, source, compare=run_of(tmp_path / "other", ff.Autoencoder(5, 8)), progress=False)


# ------------------------------------------------------------------------------------------------------------ parts


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_smallest_of_a_stream(data):
    n_features, keep = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    chunks = data.draw(st.lists(st.integers(0, 30), max_size=6))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    before = smallest.BUFFERED
    smallest.BUFFERED = data.draw(st.sampled_from([1, 10, 1000]))
    try:
        kept, everything, first = Smallest(n_features, keep), [], 0
        for n in chunks:
            values = generator.integers(-4, 5, n).astype(np.float32)
            entries = Entries(generator.integers(0, n_features, n), np.arange(first, first + n), values)
            kept.add(strongest_first(values), entries)
            everything += list(zip(*(side.tolist() for side in entries), strict=True))
            first += n
        rows, values = kept.table()
    finally:
        smallest.BUFFERED = before
    for i in range(n_features):
        own = sorted(((-value, row) for feature, row, value in everything if feature == i))[:keep]
        assert [(-v, r) for r, v in zip(rows[i].tolist(), values[i].tolist(), strict=True) if r >= 0] == own


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2))
def test_keys_sort_as_values_fall(values):
    array = np.array(values, dtype=np.float32)
    keys = strongest_first(array)
    order = np.argsort(keys, kind="stable")
    assert (np.diff(array[order]) <= 0).all()


def test_the_sample_is_uniform():
    n, keep = 20_000, N_SAMPLED
    kept = Smallest(300, keep)
    for first in range(0, n, 1000):
        rows = np.repeat(np.arange(first, first + 1000), 3)
        features = np.tile(np.arange(300), 10)
        entries = Entries(features, rows, rows.astype(np.float32))
        kept.add(hashed(entries), entries)
    rows, _ = kept.table()
    shares = np.sort(rows.ravel()) / n
    assert np.abs(shares - np.linspace(0, 1, len(shares))).max() < 0.03  # Kolmogorov's distance, of 9,600


def test_contributions_add_up_to_the_activation():
    model = ff.Autoencoder(7, 9, "relu", preprocess="standardize")
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)) * 3 + 1
    model.preprocess.fit(lambda: iter([x]))
    features = torch.arange(50) % 9
    added = contributions(model, x, features)
    pre_acts = model.codes(model.to_model_space(x))[0].detach()
    wanted = pre_acts[torch.arange(50), features] - model.encoder.b_enc[features].detach()
    assert torch.allclose(added.sum(1), wanted, atol=1e-5)


def test_gradients_times_values_are_the_products_of_a_linear_encoder():
    model = ff.Autoencoder(7, 9, "relu")
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32))
    features = torch.arange(50) % 9
    assert torch.allclose(family._gradients(model, x, features), family._products(model, x, features), atol=1e-6)


def test_neighbours_by_angle(monkeypatch):
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(40, 16))
    vectors = torch.from_numpy(np.repeat(centres, 10, axis=0) + 0.3 * generator.normal(size=(400, 16))).float()
    vectors[5] = 0
    exact = by_angle(vectors)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-2).numpy()
    assert exact.likeness == pytest.approx(-np.sort(-cosine, axis=1)[:, :10], abs=1e-5)
    assert np.take_along_axis(cosine, exact.features, 1) == pytest.approx(exact.likeness, abs=1e-5)
    monkeypatch.setattr(neighbours, "MOST_EXACT", 100)
    monkeypatch.setattr(neighbours, "N_PROBED", 4)
    some = by_angle(vectors)
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(exact.features, some.features, strict=True)]
    assert 0.8 < np.mean(shares) < 1
    assert all(i not in near for i, near in enumerate(some.features.tolist()))


def test_neighbours_by_firing(monkeypatch):
    generator = np.random.default_rng(0)
    fires = generator.random((500, 12)) < 0.15
    fires[:, 4] = fires[:, 3] | (generator.random(500) < 0.02)
    rows, features = np.nonzero(fires)
    entries = Entries(features, rows, np.ones(len(rows), dtype=np.float32))
    near = by_firing([entries.where(rows < 200), entries.where(rows >= 200)], fires.sum(0), 500)
    assert near.features[3, 0] == 4 and near.features[4, 0] == 3
    for i in range(12):
        for j, likeness in zip(near.features[i], near.likeness[i], strict=True):
            if j >= 0:
                both = (fires[:, i] & fires[:, j]).sum()
                assert likeness == pytest.approx(both / np.sqrt(fires[:, i].sum() * fires[:, j].sum()), rel=1e-5)
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 500)  # then every so-many-th row is counted
    assert by_firing([entries], fires.sum(0), 500).features[3, 0] == 4


def test_the_map_is_the_same_every_time_and_keeps_groups_together():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(5, 16))
    vectors = torch.from_numpy(np.repeat(centres, 30, axis=0) + 0.2 * generator.normal(size=(150, 16))).float()
    near = by_angle(vectors)
    places = lay_out(vectors, near)
    assert (places == lay_out(vectors, near)).all()
    assert np.abs(places).max() <= 1
    group = np.repeat(np.arange(5), 30)
    distance = np.linalg.norm(places[:, None] - places, axis=2) + 9 * np.eye(150)
    assert (group[distance.argmin(1)] == group).mean() > 0.95


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_map_of_a_few(n):
    vectors = torch.eye(4)[:n]
    assert np.isfinite(lay_out(vectors, by_angle(vectors))).all()


def test_patterns_are_named_after_what_they_look_like():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 12), torch.linspace(-1, 1, 12), indexing="ij")
    waves = [torch.sin(9 * x), torch.sin(9 * y), torch.sin(6 * (x + y)), torch.sin(6 * (x - y))]
    spot = torch.exp(-20 * ((x - 0.5) ** 2 + (y + 0.5) ** 2))
    assert describe(torch.stack(waves)) == ["vertical edge", "horizontal edge", "diagonal ╱ edge", "diagonal ╲ edge"]
    assert describe(torch.stack([spot, torch.zeros(12, 12)])) == ["spot, upper right", ""]


# ------------------------------------------------------------------------------------------------------------ texts


def test_texts_have_heat_where_the_feature_fires(tmp_path):
    make_store(tmp_path / "store")
    source = ff.open_source(tmp_path / "store")
    model = ff.Autoencoder(6, 12, ff.TopK(k=4), layout=source.layout)
    store = Store(build(run_of(tmp_path / "run", model), source, progress=False))
    (batch,) = source.batches(1000, shuffle=False)
    latents = model.encode(batch.x).numpy()
    places = source.store.rows(range(len(source))).to_pydict()
    for i in range(12):
        page = json.loads(store.feature(i))
        heat = unpack(page["examples"]["heat"])
        for row, warmth in zip(page["examples"]["rows"], heat, strict=True):
            if row < 0:
                continue
            same = [
                n
                for n in range(max(0, row - 12), min(len(source), row + 13))
                if places["document"][n] == places["document"][row]
            ]
            wanted = np.zeros(25)
            for n in same:
                wanted[n - row + 12] = max(0, latents[n, i])
            assert warmth == pytest.approx(np.round(wanted / max(wanted.max(), 1e-30) * 255), abs=1)
            look = page["rows"][str(row)]["look"]
            assert look["at"] == same.index(row)
            text = source.store.documents([places["document"][row]])["text"][0].as_py()
            assert "".join(look["pieces"]) == text[places["start"][same[0]] : places["end"][same[-1]]]
    page = json.loads(store.row(4))
    assert page["documents"]["1"]["text"] == "text 1"
    assert json.loads(store.text("meta"))["noun"] == "token"


def test_a_feature_of_one_token_is_named_after_it(tmp_path):
    rows = make_store(tmp_path / "store")["layer"].float()
    source = ff.open_source(tmp_path / "store")
    model = ff.Autoencoder(6, 12, "relu", layout=source.layout)
    with torch.no_grad():
        model.encoder.W_enc[2] = 100 * rows[17] / rows[17].norm()
        scores = rows @ model.encoder.W_enc[2]
        second = scores.topk(2).values[1]
        best = int(scores.argmax())
        model.encoder.b_enc[2] = -(scores.max() + second) / 2
    store = Store(build(run_of(tmp_path / "run", model), source, progress=False))
    page = json.loads(store.feature(2))
    assert page["fired"] == 1
    token = source.store.rows([best])["token"][0].as_py()
    assert page["label"] == token
    assert 2 in [f["id"] for f in json.loads(store.features(query=token))["features"]]
    assert 2 in [f["id"] for f in json.loads(store.features(query="t"))["features"]]


# ----------------------------------------------------------------------------------------------------------- export


def test_an_export_has_the_servers_answers(looked, tmp_path):
    store, *_ = looked
    out = tmp_path / "site"
    count = export(store.path.parent, out, progress=False)
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert count == len(files)
    assert {"index.html", "page.js", "page.css", "api/meta.json", "api/features.json", "api/run.json"} <= files
    assert json.loads((out / "api/meta.json").read_text()) == {**json.loads(store.text("meta")), "static": True}
    for i in range(40):
        assert (out / f"api/features/{i}.json").read_text() == store.feature(i)
    assert (out / "api/map.json").read_text() == store.text("map")
    listed = json.loads((out / "api/features.json").read_text())
    assert listed["features"] == json.loads(store.features(limit=500))["features"]
    for i in store.numbers("rows")[::100]:
        assert (out / f"api/rows/{i}.json").read_text() == store.row(i)
    assert (out / "index.html").read_bytes() == page_files()["index.html"]


def test_an_export_does_not_write_over_anything(looked, tmp_path):
    store, *_ = looked
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        export(store.path.parent, tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


# ----------------------------------------------------------------------------------------------- the page, as a file


def test_the_page_asks_nobody_and_writes_no_markup():
    """What the browser tests cannot see: addresses that are asked for later, and text taken for markup."""
    page = page_files()
    assert {"index.html", "page.js", "page.css", "spark.svg"} == set(page)
    script, style, html = (page[name].decode() for name in ("page.js", "page.css", "index.html"))
    for text in (style, html):
        assert "//" not in text.replace("http://www.w3.org/2000/svg", "")
    addresses = {part.split('"')[0].split("`")[0].split("'")[0] for part in script.split("http")[1:]}
    assert {a for a in addresses if a.startswith(("://", "s://"))} <= {
        "://www.w3.org/2000/svg",
        "://www.w3.org/1998/Math/MathML",
        "://www.w3.org/1999/xhtml",
    }
    for forbidden in ("eval(", "new Function", "document.write", "Function.apply", "srcdoc"):
        assert forbidden not in script
    assert "default-src 'none'" in html


def test_no_source_of_the_page_takes_text_for_markup():
    from pathlib import Path

    sources = list((Path(__file__).parent.parent / "frontend" / "src").rglob("*.js*"))
    assert len(sources) > 10
    for path in sources:
        text = path.read_text()
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "javascript:"):
            assert forbidden not in text, (path.name, forbidden)


def test_every_kind_of_layout_has_a_renderer_on_both_sides():
    from pathlib import Path

    here = Path(__file__).parent.parent / "frontend" / "src" / "renderers"
    assert set(renderers.Renderer.registry) == {"image", "table", "series", "text"}
    for name in renderers.Renderer.registry:
        assert (here / f"{name}.jsx").is_file()


def test_codes_are_read_by_rows(looked):
    store, _, _, latents, _, _ = looked
    codes = Codes(store.path.parent / "codes.parquet")
    for first, last in [(0, 5), (-7, 3), (2990, 3050), (10, 10)]:
        found = codes.between(first, last)
        rows = np.arange(max(0, first), min(3000, last))
        assert len(found.rows) == (latents[rows] != 0).sum()
        assert (latents[found.rows, found.features] == found.values).all()


def test_opening_something_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_bundle(tmp_path / "nothing")
    (tmp_path / FILE).write_text("not a database")
    with pytest.raises(ValueError, match="not a bundle"):
        Store(tmp_path)


# ------------------------------------------------------------------------------------------------- the command line


def call(*arguments, **settings):
    command = [sys.executable, "-c", "from fewfire.cli import main; main()", "explore", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **settings)


def test_the_command_line(looked, tmp_path):
    bundle = looked[0].path.parent
    done = call(bundle, "--export", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").is_file()
    again = call(bundle, "--export", tmp_path / "site")
    assert again.returncode == 2 and "not empty" in again.stderr and len(again.stderr) < 400
    nothing = call(tmp_path / "nothing")
    assert nothing.returncode == 2 and len(nothing.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_well_when_it_is_told_to(looked, number):
    """A signal is how a server ends: that is no failure."""
    program = [sys.executable, "-c", "from fewfire.cli import main; main()"]
    command = [*program, "explore", looked[0].path.parent, "--port", "0", "--no-open"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        address = process.stderr.readline().split()[0]
        with urllib.request.urlopen(address + "api/meta.json") as answer:
            assert json.loads(answer.read())["n_features"] == 40
        process.send_signal(number)
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()


def test_looking_at_help_imports_no_server():
    code = "import sys, fewfire, fewfire.cli; print({'starlette', 'uvicorn', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
