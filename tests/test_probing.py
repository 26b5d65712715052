"""What the codes know of the labels."""

import numpy as np
import pandas as pd
import pytest

import fewfire as ff
from fewfire.probing import MEANINGS, probe, read_labels


@pytest.fixture(scope="module")
def trained():
    """Three bundles of directions, each class using its own with either sign: in the columns they cancel."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, size=600)
    directions = generator.normal(size=(12, 20))
    weights = generator.exponential(size=(600, 12)) * (generator.random((600, 12)) < 0.4)
    weights *= (np.arange(12) // 4) == labels[:, None]
    weights *= generator.choice([-1, 1], size=weights.shape)
    x = weights @ directions + 0.05 * generator.normal(size=(600, 20))
    model = ff.Autoencoder(20, 40, ff.TopK(k=2), preprocess="center")
    ff.Trainer(model, x, config=ff.TrainConfig(steps=2000), progress=False).fit()
    return model, x, labels


def test_codes_beside_columns_and_pca(trained):
    model, x, labels = trained
    found = probe(model, x, labels)
    assert list(found) == ["codes", "columns", "pca"]
    assert all(set(view) == {"size", *MEANINGS} for view in found.values())
    assert [view["size"] for view in found.values()] == [40, 20, 20]
    assert found["codes"]["probe_accuracy"] > 0.75
    assert found["columns"]["probe_accuracy"] < 0.6
    assert found["columns"]["trustworthiness"] == pytest.approx(1)
    # a rotation changes no distance
    assert found["pca"]["knn_accuracy"] == pytest.approx(found["columns"]["knn_accuracy"], abs=0.01)


def test_labels_that_say_nothing_score_as_chance(trained):
    model, x, _ = trained
    found = probe(model, x, np.random.default_rng(1).permutation(np.arange(600) % 3).astype(str))
    assert found["codes"]["probe_accuracy"] == pytest.approx(1 / 3, abs=0.12)
    assert abs(found["codes"]["ari"]) < 0.05


def test_it_repeats_itself_and_reads_no_further_than_it_must(trained):
    model, x, labels = trained
    assert probe(model, x, labels, max_rows=200) == probe(model, x, labels, max_rows=200)
    spoiled = x.copy()
    spoiled[400:] = 1e6
    assert probe(model, spoiled, labels, max_rows=200) == probe(model, x, labels, max_rows=200)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros(599), "one label for each of 600 rows"),
        (np.zeros((600, 1)), "labels of shape"),
        (np.zeros(600), "two or more classes"),
        (np.arange(600), "each on at least two rows"),
    ],
    ids=["too few", "2-d", "one class", "all different"],
)
def test_labels_that_do_not_fit(trained, labels, says):
    with pytest.raises(ValueError, match=says):
        probe(trained[0], trained[1], labels)


def test_where_labels_come_from(trained, tmp_path):
    _, x, labels = trained
    source = ff.ArraySource(x)
    np.save(tmp_path / "y.npy", labels)
    (tmp_path / "y.csv").write_text("kind\n" + "\n".join(map(str, labels)) + "\n")
    (tmp_path / "y.txt").write_text("\n".join(map(str, labels)))
    for name in ("y.npy", "y.csv", "y.txt"):
        assert (read_labels(tmp_path / name, source).astype(int) == labels).all()
    table = pd.DataFrame(x).add_prefix("c").assign(kind=labels)
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet", index=False)
    for name in ("t.csv", "t.parquet"):
        assert (read_labels("kind", source, str(tmp_path / name)) == labels).all()
    assert (read_labels("labels", ff.digits()) == ff.digits().labels).all()
    with pytest.raises(ValueError, match=r"no labels 'sort'.*own: c0, c1"):
        read_labels("sort", source, str(tmp_path / "t.csv"))
    with pytest.raises(ValueError, match=r"own: nothing"):
        read_labels("sort", source)
