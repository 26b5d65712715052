"""What the codes know of the labels."""

import math

import numpy as np
import pandas as pd
import pytest

import fewfire as ff
from fewfire.probing import MEANINGS, _sparse_probes, _split, probe, read_labels
from fewfire.trainer.before import fit_preprocess


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


def test_the_share_of_variance_that_is_not_rebuilt(trained):
    model, x, labels = trained
    found = {name: view["fvu"] for name, view in probe(model, x, labels).items()}
    assert found["columns"] == 0 and found["pca"] == pytest.approx(0, abs=1e-12)  # as many components as columns
    held_out = x[_split(labels, 0)[1]]
    assert found["codes"] == pytest.approx(ff.evaluate(model, held_out)["fvu"], rel=1e-5)
    narrow = ff.Autoencoder(20, 3, "relu")
    of_three = probe(narrow, x, labels)["pca"]["fvu"]
    spread = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    assert of_three == pytest.approx(spread[3:].sum() / spread.sum(), rel=0.1)
    of_others = probe(ff.Autoencoder(20, 3, d_out=5), ff.ArraySource(x, x[:, :5]), labels)
    assert [math.isnan(view["fvu"]) for view in of_others.values()] == [False, True, True]


def test_targets_are_what_is_rebuilt(trained):
    """Of a denoiser's pairs, the columns themselves are off by the noise."""
    model, x, labels = trained
    noisy = x + np.random.default_rng(3).normal(size=x.shape)
    found = probe(model, ff.ArraySource(noisy, x), labels)
    assert found["columns"]["fvu"] == pytest.approx(1 / x.var(0).mean(), rel=0.1)


def test_how_many_numbers_a_class_takes():
    """Column 7 is class 0, column 9 is class 1, and class 2 is what is neither."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.array(["a", "b", "c"]), [600, 200, 100])
    values = 0.1 * generator.normal(size=(900, 20)) + 50
    values[:, 7] += labels == "a"
    values[:, 9] += labels == "b"
    found = _sparse_probes(values, labels, *_split(labels, 0))
    assert list(found) == ["probe_1", "probe_2", "probe_5", "probe_all"]
    third = (1 + 600 / 800) / 2  # by column 7, which is as low in b as in c
    assert found["probe_1"] == pytest.approx((1 + 1 + third) / 3, abs=0.02)
    assert found["probe_2"] == pytest.approx(1, abs=0.01) and found["probe_all"] == pytest.approx(1, abs=0.02)


def test_sparse_probes_choose_by_the_largest_difference_of_means_among_rows_learned_from():
    labels = np.arange(400) % 2
    train, test = _split(labels, 0)
    values = np.random.default_rng(0).normal(size=(400, 3))
    values[:, 0] = labels + 0.01 * values[:, 0]  # tells all, by a difference of 1
    values[:, 1] = 40 * values[:, 1] + 12 * labels  # a larger difference, and a larger spread
    assert _sparse_probes(values, labels, train, test)["probe_1"] < 0.7
    assert _sparse_probes(values, labels, train, test)["probe_2"] == 1
    values[:, 1] = -0.1 * labels
    values[test, 1] = 1e3 * labels[test]  # would be chosen if held-out rows had a say, and tell the opposite
    assert _sparse_probes(values, labels, train, test)["probe_1"] == 1


def test_a_rare_class_is_not_told_by_saying_no():
    labels = (np.arange(2000) % 20 == 0).astype(int)
    values = np.random.default_rng(0).normal(size=(2000, 6))
    for name, share in _sparse_probes(values, labels, *_split(labels, 0)).items():
        assert share == pytest.approx(0.5, abs=0.15), name


def test_the_most_frequent_classes_are_probed(monkeypatch):
    """The two first of three: class 2, which nothing tells, does not count."""
    monkeypatch.setattr("fewfire.probing.MOST_CLASSES", 2)
    labels = np.repeat([2, 0, 1], [40, 100, 120])
    values = np.random.default_rng(0).normal(size=(260, 3))
    values[labels == 0, 0] += 20
    values[labels == 1, 1] += 20
    values[labels == 2] = np.random.default_rng(1).permutation(values)[:40]
    assert _sparse_probes(values, labels, *_split(labels, 0))["probe_1"] > 0.9


@pytest.mark.parametrize("counts", [(198, 2), (2, 3, 4, 191), (50, 150)])
def test_every_class_is_learned_and_tested(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    for seed in range(5):
        train, test = _split(labels, seed)
        assert sorted([*train, *test]) == list(range(len(labels)))
        assert set(labels[train]) == set(labels[test]) == set(labels)
        assert len(test) == pytest.approx(len(labels) / 4, abs=3)


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
        (["a", "b"] * 299 + ["", "a"], "1 of 600 have none, first row 598"),
        ([None, *([0, 1] * 299), math.nan], "2 of 600 have none, first row 0"),
        (pd.array([None, *([0, 1] * 299), 1], dtype="Int64"), "1 of 600 have none, first row 0"),
    ],
    ids=["too few", "2-d", "one class", "all different", "empty", "None and NaN", "pandas.NA"],
)
def test_labels_that_do_not_fit(trained, labels, says):
    with pytest.raises(ValueError, match=says):
        probe(trained[0], trained[1], labels)


def test_labels_of_any_type_and_a_fitted_estimator(trained):
    model, x, labels = trained
    expected = probe(model, x, labels)["codes"]
    assert probe(model, x, pd.array(labels, dtype="Int64"))["codes"] == expected
    mixed = np.array(["none" if label == 0 else label for label in labels.tolist()], dtype=object)
    assert probe(model, x, mixed)["codes"]["ari"] == pytest.approx(expected["ari"])
    estimator = ff.SparseAutoencoder(8, max_epochs=2, random_state=0).fit(x)
    assert probe(estimator, x, labels) == probe(estimator.module_, x, labels)
    with pytest.raises(ValueError, match="max_rows of at least 1, got -5"):
        probe(model, x, labels, max_rows=-5)


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
    for delimiter, decimal in ((";", ","), ("\t", ".")):
        table.to_csv(tmp_path / "t.csv", index=False, sep=delimiter, decimal=decimal)
        assert (read_labels("kind", source, str(tmp_path / "t.csv")) == labels).all()
    with pytest.raises(ValueError, match=r"no labels 'sort'.*own: c0, c1"):
        read_labels("sort", source, str(tmp_path / "t.csv"))
    with pytest.raises(ValueError, match=r"own: nothing"):
        read_labels("sort", source)


def test_a_gap_among_labels_is_no_label(trained, tmp_path):
    model, x, labels = trained
    words = np.array(["ant", "bee", "cow"])[labels].tolist()
    words[7] = ""
    (tmp_path / "y.txt").write_text("\n".join(words) + "\n")
    table = pd.DataFrame(x).add_prefix("c").assign(kind=words, number=labels)
    table.loc[7, "number"] = None
    table.to_csv(tmp_path / "t.csv", index=False)
    for spec in (tmp_path / "y.txt", "kind", "number"):
        found = read_labels(spec, ff.ArraySource(x), str(tmp_path / "t.csv"))
        with pytest.raises(ValueError, match="1 of 600 have none, first row 7"):
            probe(model, x, found)


def test_blank_lines_are_passed_over_as_in_the_rows(tmp_path):
    (tmp_path / "t.csv").write_text('\na,kind\n1,x\n\n2,"y, z"\n')
    assert read_labels("kind", ff.ArraySource(np.zeros((2, 1))), str(tmp_path / "t.csv")).tolist() == ["x", "y, z"]


@pytest.mark.parametrize("name", ["y.csv", "y.txt"])
def test_a_file_of_labels_has_one_column(tmp_path, name):
    (tmp_path / name).write_text("id,label\n" + "".join(f"{i},{i % 2}\n" for i in range(40)))
    with pytest.raises(ValueError, match=r"one label a line in .*, got 2 columns such as '"):
        read_labels(tmp_path / name, ff.ArraySource(np.zeros((40, 1))))
    (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="text in UTF-8 with one a line"):
        read_labels(tmp_path / name, ff.ArraySource(np.zeros((40, 1))))


def test_all_are_compared_on_the_same_scales():
    """One column a million times as large as the others is no reason for neighbours not to see these."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 400)
    rows = generator.normal(size=(400, 6)) + 4 * labels[:, None] * np.array([1, 1, 0, 0, 0, 0])
    rows[:, 5] *= 1e6
    model = ff.Autoencoder(6, 8, "relu", preprocess="standardize")
    fit_preprocess(ff.Trainer(model, rows, config=ff.TrainConfig(steps=5), progress=False))
    found = probe(model, rows, labels)
    assert found["columns"]["knn_accuracy"] > 0.9
    assert found["pca"]["knn_accuracy"] > 0.9
