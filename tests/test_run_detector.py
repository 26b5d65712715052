"""The detector of a run: learned when first asked for, kept in its folder; what `fewfire score` and the report say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow.csv as pa_csv
import pytest
from typer.testing import CliRunner

import fewfire as ff
from fewfire.anomaly import find_detector, load_detector
from fewfire.cli import app
from fewfire.report import write_report
from fewfire.runs import open_run
from fewfire.runs.detecting import RunDetector, detector_of, scorer


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """400 rows on a plane in 6 columns of different scales, the last 8 of them with one value from elsewhere."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6)) + 0.1 * rng.normal(size=(400, 6))
    rows = rows * 10.0 ** np.arange(-3, 3) + 5
    rows[np.arange(392, 400), np.arange(8) % 6] += 30 * rows.std(0)[np.arange(8) % 6]
    path = tmp_path_factory.mktemp("data") / "rows.csv"
    path.write_text("\n".join([",".join("abcdef"), *(",".join(map(repr, row)) for row in rows.tolist())]))
    return path


@pytest.fixture
def run(table, tmp_path):
    done = call("train", table, "--out", tmp_path / "run", "--set", "train.steps=20")
    assert done.exit_code == 0, done.output
    return tmp_path / "run"


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_score_learns_the_detector_and_finds_what_was_planted(run, table, tmp_path):
    done = call("score", run, table, "--out", tmp_path / "s.csv")
    assert done.exit_code == 0, done.output
    assert "by a detector that learned from 400 rows" in done.output
    scores = pa_csv.read_csv(tmp_path / "s.csv").to_pydict()
    assert scores["row"] == list(range(400))
    assert set(np.argsort(scores["score"])[-8:]) == set(range(392, 400))
    assert all(scores["is_anomaly"][392:])
    assert sum(scores["is_anomaly"]) < 30
    right = [scores["column_1"][392 + i] == "abcdefab"[i] for i in range(8)]
    assert sum(right) >= 7


def test_it_is_kept_and_gives_the_same_scores_again(run, table, tmp_path):
    call("score", run, table, "--out", tmp_path / "first.csv")
    written = find_detector(run).read_bytes()
    call("score", run, table, "--out", tmp_path / "second.csv")
    assert find_detector(run).read_bytes() == written
    assert (tmp_path / "first.csv").read_bytes() == (tmp_path / "second.csv").read_bytes()
    detector = ff.AnomalyDetector.load(run)
    rows = pd.read_csv(table)
    scores = pa_csv.read_csv(tmp_path / "first.csv").to_pydict()["score"]
    np.testing.assert_allclose(-detector.score_samples(rows), scores, rtol=1e-9)
    assert list(detector.feature_names_in_) == list("abcdef")


def test_the_models_own_reconstruction_is_still_there(run, table, tmp_path):
    done = call("score", run, table, "--out", tmp_path / "s.csv", "--by", "reconstruction")
    assert "by the error of reconstruction" in done.output
    assert find_detector(run) is None, "it was not asked for"
    with pytest.raises(ValueError, match="expected --by to be auto, detector or reconstruction; got 'magic'"):
        scorer(open_run(run), "magic")


def test_a_run_without_its_data_says_why_it_has_none(run, table, tmp_path):
    elsewhere = tmp_path / "other.csv"
    elsewhere.write_bytes(table.read_bytes())
    bare = run / "model"
    assert detector_of(open_run(bare)) == "it is a bare model, which does not know the rows it was trained on"
    done = call("score", bare, elsewhere, "--out", tmp_path / "s.csv")
    assert done.exit_code == 0
    assert "by the error of reconstruction (it is a bare model" in done.output
    with pytest.raises(ValueError, match="has no detector: it is a bare model"):
        scorer(open_run(bare), "detector")


def test_a_damaged_detector_is_refused_and_not_learned_anew(run, table, tmp_path):
    call("score", run, table, "--out", tmp_path / "s.csv")
    file = find_detector(run)
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ff.ModelFileError):
        load_detector(run)
    done = call("score", run, table, "--out", tmp_path / "s.csv")
    assert done.exit_code == 1
    assert file.read_bytes() == damaged


def test_the_report_shows_them_once_there_is_a_detector(run, table):
    opened = open_run(run)
    assert "Unusual rows" not in write_report(opened, opened.source()).read_text()
    assert isinstance(detector_of(opened), RunDetector)
    page = write_report(opened, opened.source()).read_text()
    assert "Unusual rows" in page
    assert "Row 399" in page
    assert "of 400 rows are above" in page


def test_a_model_of_pairs_is_judged_by_its_reconstruction(tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    np.save(tmp_path / "in.npy", rows)
    np.save(tmp_path / "out.npy", rows @ np.ones((4, 3), np.float32))
    target = f"data.options.target={tmp_path / 'out.npy'}"
    call("train", tmp_path / "in.npy", "--out", tmp_path / "run", "--set", "train.steps=5", "--set", target)
    assert detector_of(open_run(tmp_path / "run")) == "the model's targets are not its inputs"
