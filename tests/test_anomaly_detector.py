"""AnomalyDetector: what people do with it, on small ensembles; scikit-learn's checks are in test_estimator_checks."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fewfire as ff
from fewfire.anomaly import DETECTOR, THRESHOLDS, Ensemble, Part, Prototypes
from fewfire.disk import ModelFileError, load_tensors, save_tensors


class Small(ff.AnomalyDetector):
    """The same, of members that are fitted in no time."""

    def _parts(self) -> Sequence[Part]:
        return [Ensemble(members=4, hidden=8, steps=20), Prototypes(members=4, size=64)]


def normal(n: int, d: int = 4, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, d))


def table(n: int = 200, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"x": rng.normal(size=n), "kind": rng.choice(["a", "b", "c"], n), "y": rng.normal(size=n)})


# ------------------------------------------------------------------------------------------------ as people use it


def test_defaults_find_what_is_planted_in_a_real_table_and_say_where() -> None:
    rows = load_breast_cancer().data
    train, new = rows[:450], rows[450:].copy()
    detector = ff.AnomalyDetector().fit(train)
    assert (detector.predict(new) == -1).mean() < 0.2
    column = np.arange(len(new)) % 30
    new[np.arange(len(new)), column] += 8 * train.std(0)[column]
    assert (detector.predict(new) == -1).mean() > 0.6
    assert (detector.explain(new).argmax(1) == column).mean() >= 0.95


def test_scores_signs_and_thresholds_fit_together() -> None:
    detector = Small().fit(normal(200))
    rows = np.concatenate([normal(50, seed=1), normal(5, seed=2) + 9])
    scores = detector.score_samples(rows)
    assert scores.shape == (55,)
    assert (scores <= 0).all()
    assert scores[50:].max() < np.median(scores[:50])
    assert detector.offset_ == -detector.threshold_
    assert np.array_equal(detector.decision_function(rows), scores - detector.offset_)
    assert np.array_equal(detector.predict(rows) == -1, -scores > detector.threshold_)
    assert (detector.predict(rows)[50:] == -1).all()


@pytest.mark.parametrize("contamination", [0.01, 0.1, 0.5])
def test_contamination_finds_so_many_of_the_training_rows(contamination: float) -> None:
    rows = normal(200)
    assert (Small(contamination=contamination).fit(rows).predict(rows) == -1).sum() == 200 * contamination


@pytest.mark.parametrize("n", [1, 7, 300])
def test_novelty_finds_no_training_row(n: int) -> None:
    rows = normal(n)
    detector = Small(threshold="novelty").fit(rows)
    assert (detector.predict(rows) == 1).all()
    assert (detector.predict(rows + 50) == -1).all()


def test_novelty_looks_at_all_training_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds are from a sample of the scores; a rule about all of them must not be."""
    monkeypatch.setattr("fewfire.anomaly.detector.CALIBRATION_ROWS", 20)
    rows = normal(300)
    assert (Small(threshold="novelty").fit(rows).predict(rows) == 1).all()
    assert (Small(contamination=0.1).fit(rows).predict(rows) == -1).sum() == 30


@pytest.mark.parametrize("rule", THRESHOLDS)
@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_every_rule_takes_few_rows(rule: str, n: int) -> None:
    detector = Small(threshold=rule).fit(normal(n))
    assert set(detector.predict(normal(9, seed=1))) <= {-1, 1}
    assert detector.threshold_ >= 0


def test_a_number_is_the_threshold_and_two_ends_of_usual_are_refused() -> None:
    assert Small(threshold=2.5).fit(normal(9)).threshold_ == 2.5
    with pytest.raises(ValueError, match="both say where usual ends"):
        Small(threshold="mad", contamination=0.1).fit(normal(9))
    with pytest.raises(ValueError, match="'contamination' parameter"):
        Small(contamination=0.6).fit(normal(9))


def test_p_values_of_usual_rows_are_no_smaller_than_they_should_be() -> None:
    detector = Small().fit(normal(500))
    p = detector.p_values(normal(2000, seed=1))
    assert ((p > 0) & (p <= 1)).all()
    for level in (0.02, 0.1, 0.3):
        assert (p <= level).mean() < level + 0.04
    assert (detector.p_values(normal(5) + 50) == 1 / 501).all()


def test_shares_are_of_the_columns_and_of_sum_1() -> None:
    detector = Small().fit(normal(300))
    rows = normal(80, seed=1)
    rows[np.arange(80), np.arange(80) % 4] += 10
    shares = detector.explain(rows)
    assert shares.shape == (80, 4)
    assert np.allclose(shares.sum(1), 1)
    assert (shares.argmax(1) == np.arange(80) % 4).mean() >= 0.95


def test_one_constant_table_has_nothing_to_explain_but_what_differs() -> None:
    detector = Small().fit(np.ones((20, 3)))
    assert (detector.explain(np.ones((2, 3))) == 0).all()
    assert detector.explain(np.array([[1.0, 2.0, 1.0]])).tolist() == [[0, 1, 0]]
    assert detector.predict([[1, 1, 1], [1, 2, 1]]).tolist() == [1, -1]


# ------------------------------------------------------------------------------------------------ what goes in


WHOLE = (10 * normal(120)).round().clip(-100, 100)


@pytest.mark.parametrize(
    "rows",
    [
        WHOLE.astype(np.int8),
        WHOLE.astype(np.int64),
        WHOLE.astype(np.float16),
        WHOLE.astype(np.float32),
        WHOLE.tolist(),
        torch.tensor(WHOLE).bfloat16(),
        torch.tensor(WHOLE).half(),
        sparse.csr_array(WHOLE),
        sparse.csc_matrix(WHOLE),
        pd.DataFrame(WHOLE),
        pa.table({f"c{i}": WHOLE[:, i] for i in range(4)}),
        np.asfortranarray(WHOLE),
        WHOLE[::-1][::-1],
    ],
    ids=lambda rows: f"{type(rows).__name__}-{getattr(rows, 'dtype', '')}",
)
@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
def test_the_same_numbers_of_any_kind_are_the_same_rows(rows: Any) -> None:
    expected = Small().fit(WHOLE)
    detector = Small().fit(rows)
    assert np.array_equal(detector.score_samples(WHOLE), expected.score_samples(WHOLE))
    assert np.array_equal(detector.score_samples(rows), expected.score_samples(WHOLE))


def test_a_path_is_read_in_blocks(tmp_path: Path) -> None:
    rows = normal(5000)
    np.save(tmp_path / "rows.npy", rows)
    detector = Small().fit(tmp_path / "rows.npy")
    assert np.array_equal(detector.score_samples(str(tmp_path / "rows.npy")), Small().fit(rows).score_samples(rows))


def test_an_unseen_category_is_unusual_and_its_column_is_named() -> None:
    train, new = table(), table(6, seed=1)
    detector = Small().fit(train)
    before = -detector.score_samples(new)
    new.loc[2, "kind"], new.loc[3, "kind"] = "d", None
    after = -detector.score_samples(new)
    assert (after[[2, 3]] > before[[2, 3]] + math.log(200)).all()
    assert np.array_equal(np.delete(after, [2, 3]), np.delete(before, [2, 3]))
    shares = detector.explain(new)
    assert shares.shape == (6, 3)
    assert shares[[2, 3]].argmax(1).tolist() == [1, 1]
    assert detector.categories_ == [None, ("a", "b", "c"), None]


def test_tables_of_all_libraries_are_alike() -> None:
    expected = Small().fit(table()).score_samples(table(50, 1))
    arrow = pa.Table.from_pandas(table(), preserve_index=False)
    assert np.array_equal(Small().fit(arrow).score_samples(table(50, 1)), expected)
    frame = pytest.importorskip("polars").from_pandas(table())
    assert np.array_equal(Small().fit(frame).score_samples(table(50, 1)), expected)


def test_columns_in_another_order_or_missing_are_refused() -> None:
    detector = Small().fit(table())
    for wrong in (table()[["kind", "x", "y"]], table()[["x", "kind"]], table().assign(z=1.0)):
        with pytest.raises(ValueError, match="feature names"):
            detector.score_samples(wrong)
    nameless = "no names of columns, but the detector was fitted on a table with text"
    with pytest.raises(ValueError, match=nameless), pytest.warns(UserWarning, match="valid feature names"):
        detector.score_samples(normal(5, 3))
    with pytest.raises(TypeError, match="column 'kind'"):
        Small().fit(table().assign(kind=1.0)).score_samples(table())


def test_nan_is_named_by_its_place() -> None:
    frame = pd.DataFrame(normal(20), columns=list("abcd"))
    frame.iloc[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN, first in row 7, column 2 \('c'\)"):
        Small().fit(frame)
    with_text = table()
    with_text.loc[7, "y"] = np.nan
    with pytest.raises(ValueError, match=r"NaN, first in row 7, column 2 \('y'\), 1 of 600 values"):
        Small().fit(with_text)


# ------------------------------------------------------------------------------------------------ streams and windows


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("sizes", [[1] * 30, [29, 1], [1, 29], [10, 10, 10]])
def test_calls_of_any_size_give_the_same_detector_as_one(window: int | None, sizes: list[int]) -> None:
    rows, new = normal(30), normal(20, seed=1)
    whole = Small(window=window).fit(rows)
    stream = Small(window=window)
    for block in np.split(rows, np.cumsum(sizes)[:-1]):
        stream.partial_fit(block)
    assert np.array_equal(stream.score_samples(new), whole.score_samples(new))
    assert stream.threshold_ == whole.threshold_


def test_a_stream_goes_on_after_fit_and_forgets_at_the_next() -> None:
    rows = normal(60)
    detector = Small().fit(rows[:40])
    detector.score_samples(rows)
    detector.partial_fit(rows[40:])
    assert np.array_equal(detector.score_samples(rows), Small().fit(rows).score_samples(rows))
    assert len(detector.usual_scores_) == 60
    assert len(detector.fit(rows[:10]).usual_scores_) == 10


def test_a_window_judges_a_row_by_those_before_it() -> None:
    """A wave that stands still is unusual only as a sequence."""
    wave = np.sin(np.arange(400) / 5)[:, None]
    still = np.concatenate([wave[:50], np.full((20, 1), wave[50, 0])])
    detector = Small(window=6).fit(wave)
    scores = -detector.score_samples(still)
    assert scores[56:].min() > np.quantile(detector.usual_scores_, 0.95)
    assert detector.explain(still).shape == (70, 1)
    changed = still.copy()
    changed[60] += 9
    differs = detector.score_samples(changed) != detector.score_samples(still)
    assert np.flatnonzero(differs).tolist() == [*range(60, 66)]


def test_a_window_may_be_longer_than_the_rows() -> None:
    detector = Small(window=50).fit(normal(9, 2))
    assert np.isfinite(detector.score_samples(normal(3, 2))).all()
    assert detector.explain(normal(3, 2)).shape == (3, 2)


def test_blocks_of_a_window_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = normal(60)
    expected = Small(window=4).fit(rows).score_samples(rows)
    monkeypatch.setattr("fewfire.estimators.anomaly_detector.ROWS_AT_ONCE", 7)
    assert np.array_equal(Small(window=4).fit(rows).score_samples(rows), expected)


def test_a_window_set_after_fit_waits_for_the_next_fit() -> None:
    rows = normal(40)
    detector = Small(window=3).fit(rows)
    expected = detector.score_samples(rows)
    assert np.array_equal(detector.set_params(window=5).score_samples(rows), expected)
    assert np.array_equal(detector.fit(rows).score_samples(rows), Small(window=5).fit(rows).score_samples(rows))


# ------------------------------------------------------------------------------------------------ nothing is lost


def test_a_call_that_fails_changes_nothing() -> None:
    rows = normal(50)
    detector = Small().fit(rows)
    expected = detector.score_samples(rows)
    bad = rows.copy()
    bad[40, 1] = np.inf
    wrong = (bad, None, "there/is/no.npy", table().assign(x=np.nan), normal(0), rows.astype(str))
    for X in wrong:
        for call in (detector.fit, detector.partial_fit):
            with pytest.raises((ValueError, TypeError, OSError)):
                call(X)
            assert np.array_equal(detector.score_samples(rows), expected)
    with pytest.raises(ValueError, match="features"):
        detector.partial_fit(normal(5, 3))
    assert np.array_equal(detector.score_samples(rows), expected)
    assert detector.n_features_in_ == 4
    assert len(detector.partial_fit(rows).usual_scores_) == 100


def test_a_failing_first_call_leaves_it_unfitted() -> None:
    detector = Small()
    with pytest.raises(ValueError, match="NaN"):
        detector.partial_fit([[np.nan]])
    for ask in (detector.score_samples, detector.explain, detector.predict, detector.p_values):
        with pytest.raises(NotFittedError):
            ask(normal(2))


def test_scikit_learns_tools_work() -> None:
    rows = normal(60)
    detector = Small(window=2, random_state=3).fit(rows)
    assert clone(detector).get_params() == detector.get_params()
    again = pickle.loads(pickle.dumps(detector))
    assert np.array_equal(again.score_samples(rows), detector.score_samples(rows))
    assert len(again.partial_fit(rows).usual_scores_) == 120
    piped = make_pipeline(StandardScaler(), Small(contamination=0.1)).fit(rows)
    assert (piped.predict(rows) == -1).sum() == 6
    search = GridSearchCV(Small(), {"window": [1, 2]}, cv=2, scoring=lambda e, X, y=None: e.score_samples(X).mean())
    assert search.fit(rows).best_params_["window"] in (1, 2)


def test_random_states_are_followed() -> None:
    rows = normal(60)
    scores = [Small(random_state=seed).fit(rows).score_samples(rows) for seed in (1, 1, 2)]
    assert np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


# ------------------------------------------------------------------------------------------------ on disk


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"window": np.int64(3)},
        {"contamination": np.float32(0.1)},
        {"threshold": "conformal", "false_alarms": 1e-6},
        {"threshold": np.float32(2)},
    ],
    ids=str,
)
def test_what_was_saved_is_what_is_loaded(tmp_path: Path, parameters: dict[str, Any]) -> None:
    rows, new = normal(60), normal(60, seed=1)
    detector = Small(**parameters).fit(rows)
    detector.save(tmp_path)
    loaded = Small.load(tmp_path)
    both = np.concatenate([rows, new])
    for ask in ("score_samples", "predict", "p_values", "explain"):
        assert np.array_equal(getattr(loaded, ask)(both), getattr(detector, ask)(both))
    assert loaded.threshold_ == detector.threshold_
    with pytest.raises(ValueError, match="no rows to add to; fit it again"):
        loaded.partial_fit(rows)
    assert np.array_equal(loaded.fit(rows).score_samples(new), detector.score_samples(new))


def test_a_table_with_text_comes_back(tmp_path: Path) -> None:
    detector = Small().fit(table())
    detector.save(tmp_path)
    loaded = Small.load(tmp_path)
    assert np.array_equal(loaded.score_samples(table(20, 1)), detector.score_samples(table(20, 1)))
    assert loaded.categories_ == detector.categories_
    assert loaded.feature_names_in_.tolist() == ["x", "kind", "y"]
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(table()[["y", "kind", "x"]])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("n_features_in", bad) for bad in (None, 4, 0, -3, 10**12, 2.0, "3")),
        *(("names", bad) for bad in (None, "xyz", ["x"], [1, 2, 3], {})),
        *(("categories", bad) for bad in ([], [None, None, None], [None, "abc", None], [["a", "b", "c"], None], 5)),
        *(("threshold", bad) for bad in (None, "x", "nan", [], {})),
        *(("parameters", bad) for bad in (None, {"window": 2}, {"window": 0}, {"more": 1}, {"threshold": "best"}, [])),
    ],
)
def test_a_file_put_together_by_hand_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    Small().fit(table(30)).save(tmp_path)
    tensors, head = load_tensors(tmp_path / DETECTOR)
    for about in ({**head["about"], key: value}, {k: v for k, v in head["about"].items() if k != key}):
        save_tensors(tmp_path / DETECTOR, tensors, {**head, "about": about})
        with pytest.raises(ModelFileError) as caught:
            Small.load(tmp_path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400 + len(str(tmp_path))
