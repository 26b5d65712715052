"""AnomalyDetector: how unusual the rows of a table are, and why."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from fewfire.anomaly import (
    MAX_ROWS,
    THRESHOLDS,
    Detector,
    Part,
    Sample,
    load_detector,
    p_values,
    save_detector,
    threshold,
)
from fewfire.disk import ModelFileError, one_line
from fewfire.estimators.building import draw_seed
from fewfire.estimators.constraints import check_parameters, share, whole
from fewfire.estimators.inputs import checked_rows, names_data, open_data
from fewfire.estimators.saving import plain
from fewfire.rows import Categories, check_finite, column_names
from fewfire.rows.tables import is_table

__all__ = ["AnomalyDetector"]

ROWS_AT_ONCE = 4096


class AnomalyDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """How unusual the rows of a table are, by ensembles of small autoencoders; with reasons.

    Works as it stands on columns of any scale, with heavy tails, constant columns, few rows, and rows among the
    training data that are anomalies themselves. Three scores are brought to one scale and fused: the surprise of
    autoencoders at a row, their disagreement over it, and its distance from training rows (``fewfire.anomaly``; docs/
    anomaly.md says why these).

    Parameters
    ----------
    contamination
        The share of training rows that are anomalies: so many are found among them. "auto": not known.
    threshold
        Where usual ends, if ``contamination`` is "auto"; a number, or a rule about the scores of training rows, each
        judged by autoencoders that had not seen it. "auto": the exponential tail of most of the scores goes on;
        "quantile"; "mad": median and 3.5 robust deviations; "tail": a Pareto tail; "conformal": false alarms are at
        most ``false_alarms``, whatever the distribution; "novelty": above all training rows, which are all usual.
    false_alarms
        The share of usual rows that a rule may find.
    window
        Rows are moments of a time series: each is judged together with the ``window - 1`` before it. The first ones,
        which have fewer before them, take the first row as often as needed.
    random_state
        Two fits on the same rows with the same number give the same scores.

    Attributes
    ----------
    threshold_
        Scores above it are anomalies. ``score_samples`` gives scores with the other sign, as scikit-learn has them.
    offset_
        ``-threshold_``.
    usual_scores_
        (m,) ascending: scores of training rows by members that had not seen them; what ``p_values`` compares with.
    detector_
        The ``fewfire.anomaly.Detector`` inside.
    categories_
        For each column its categories, or None where it holds numbers; None: no column holds text.
    n_features_in_, feature_names_in_
        As scikit-learn has them.

    Notes
    -----
    Columns of text in a DataFrame become a column of 0 and 1 for each category (``fewfire.rows.Categories``); a
    category that was not in the training rows is unusual in itself. NaN in numbers is refused, with its place. Of
    more than 65,536 rows a uniform sample of so many is learned from.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "threshold": [StrOptions(set(THRESHOLDS)), Interval(Real, None, None, closed="neither")],
        "false_alarms": [share],
        "window": [whole, None],
        "random_state": ["random_state", Interval(Integral, 0, None, closed="left")],
    }

    _sample: Sample | None = None
    _seed: int
    _window: int
    """of the last fit"""
    _last: Tensor | None
    """the window that the last row taken in ends: the next row's starts with all but its first"""
    _stale: bool = False

    def __init__(
        self,
        *,
        contamination: float | str = "auto",
        threshold: float | str = "auto",
        false_alarms: float = 0.01,
        window: int | None = None,
        random_state: Any = 0,
    ) -> None:
        self.contamination = contamination
        self.threshold = threshold
        self.false_alarms = false_alarms
        self.window = window
        self.random_state = random_state

    # ------------------------------------------------------------------------------ learning

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn what is usual.

        Parameters
        ----------
        X
            (n, columns): an array, list, DataFrame, tensor or scipy sparse matrix, or whatever ``open_source`` takes,
            such as the path of a file larger than memory.
        y
            Ignored; here for pipelines.

        Raises
        ------
        TypeError, ValueError
            The rows are not finite real numbers or categories, or a parameter is not what it may be. The estimator is
            then as it was before.
        """
        before = self.__dict__.copy()
        try:
            self._sample = None
            self._take(X, reset=True)
            self._learn()
        except BaseException:
            self.__dict__ = before
            raise
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Take in more rows of a stream.

        Of all rows so far a uniform sample of at most 65,536 is kept, the same whatever the calls they came in, and the
        detector is learned anew from it when it is next asked. The first call decides the columns and categories, and
        ``window``: the first rows of a call follow the last ones of the call before.

        Raises
        ------
        TypeError, ValueError
            As ``fit``.
        """
        fresh = self._sample is None
        if fresh and hasattr(self, "_detector"):
            raise ValueError("a loaded detector has no rows to add to; fit it again on rows old and new")
        before = self.__dict__.copy()
        try:
            self._take(X, reset=fresh)
        except BaseException:
            self.__dict__ = before
            raise
        self._stale = True
        return self

    def _take(self, X: Any, *, reset: bool) -> None:
        check_parameters(self)
        if self.contamination != "auto" and self.threshold != "auto":
            raise ValueError(
                f"contamination={self.contamination!r} and threshold={self.threshold!r} both say where usual ends; "
                "set one of them"
            )
        if reset:
            self._seed, self._window, self._last = draw_seed(self.random_state), self.window or 1, None
        sample = Sample(MAX_ROWS, self._seed)
        if not reset:
            sample.__dict__.update(vars(self._sample))
        for rows in self._blocks(X, reset=reset, last=self._last):
            sample.add(rows)
            self._last = rows[-1].clone()
        if not sample.n_seen:
            raise ValueError("X has no rows; expected at least 1")
        self._sample = sample

    def _learn(self) -> None:
        assert self._sample is not None
        self._detector = Detector(self._parts(), seed=self._seed).fit(self._sample.rows)
        usual = self._detector.usual
        if self.contamination != "auto" or self.threshold == "novelty":
            usual = self._detector(self._sample.rows).score.sort().values  # of all rows: ``usual`` may be of some
        if self.contamination == "auto":
            self._threshold = threshold(self.threshold, usual, self.false_alarms)
        else:
            self._threshold = float(np.percentile(usual.numpy(), 100 * (1 - float(self.contamination))))
        self._stale = False

    def _parts(self) -> Sequence[Part] | None:
        """The parts of the detector; None: the default."""
        return None

    # ------------------------------------------------------------------------------ judging

    def score_samples(self, X: Any) -> npt.NDArray[np.float64]:
        """(n,) the lower, the more unusual: minus the surprisal of each row, in nats.

        A score depends on its row alone, or with ``window`` on the rows before it.
        """
        return -self._scores(X)

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """(n,) below 0 for anomalies: ``score_samples(X) - offset_``."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """(n,) -1 for anomalies, 1 for usual rows."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Any) -> npt.NDArray[np.float64]:
        """(n,) conformal p-values: the share of training rows, itself counted, at least as unusual as each row.

        Of rows like the training rows, at most a share p has a p-value of p or less (Vovk, Gammerman & Shafer 2005,
        "Algorithmic Learning in a Random World", section 2.2); near enough, as training rows are judged by a quarter
        of the autoencoders and new ones by all.
        """
        return p_values(torch.from_numpy(self._scores(X)), self.detector_.usual).numpy()

    def explain(self, X: Any) -> npt.NDArray[np.float64]:
        """(n, columns) the share of each column in its row's score, of sum 1; 0 where nothing is unusual at all.

        By column, how much less likely its value is than usual, for the surprise of autoencoders and their
        disagreement, and how far it is from the nearest training rows, for the distance; weighted by the nats of each
        score. The shares of a category's columns, and of a column's moments in a window, are added up.
        """
        detector = self.detector_
        found = []
        for rows in self._blocks(X, reset=False):
            shares = detector(rows, explain=True).share
            assert shares is not None
            shares = shares.view(len(rows), self._window, -1).sum(1)
            found.append(shares.new_zeros(len(rows), self.n_features_in_).index_add_(1, self._column_of(), shares))
        return torch.cat(found).numpy()

    def _column_of(self) -> Tensor:
        if self.categories_ is None:
            return torch.arange(self.n_features_in_)
        return torch.from_numpy(Categories(self.categories_).column_of)

    def _scores(self, X: Any) -> npt.NDArray[np.float64]:
        detector = self.detector_
        found = [detector(rows).score for rows in self._blocks(X, reset=False)]
        return torch.cat(found).numpy() if found else np.empty(0)

    # ------------------------------------------------------------------------------ rows

    def _blocks(self, X: Any, *, reset: bool, last: Tensor | None = None) -> Iterator[Tensor]:
        """Encoded rows in blocks, (B, window * columns) float64, checked; after the window ``last``."""
        for block in self._encoded(X, reset=reset):
            if self._window == 1:
                yield block
                continue
            before = block[:1].expand(self._window, -1) if last is None else last.view(self._window, -1)
            windows = torch.cat([before[1:], block]).unfold(0, self._window, 1).transpose(1, 2).flatten(1)
            last = windows[-1]
            yield windows

    def _encoded(self, X: Any, *, reset: bool) -> Iterator[Tensor]:
        if names_data(X):
            yield from self._read(X, reset=reset)
            return
        rows = self._table(X, reset=reset) if is_table(X) else None
        if rows is None:
            rows = checked_rows(self, X, reset=reset)
            self._settle(None, reset)
        for first in range(0, rows.shape[0], ROWS_AT_ONCE):
            block = rows[first : first + ROWS_AT_ONCE]
            dense = block if isinstance(block, np.ndarray) else block.toarray()
            yield torch.tensor(dense, dtype=torch.float64)

    def _read(self, X: Any, *, reset: bool) -> Iterator[Tensor]:
        source = open_data(self, X, reset=reset)
        self._settle(None, reset)
        for batch in source.batches(ROWS_AT_ONCE, shuffle=False):
            check_finite(batch.x_in, "X", batch.rows, source.layout.columns)
            yield batch.x_in.flatten(1).double()

    def _table(self, X: Any, *, reset: bool) -> npt.NDArray[np.float64] | None:
        """A table with text as numbers; None: it has none, and is read as any array."""
        categories = Categories.fit(X) if reset else Categories(self.categories_ or [None] * X.shape[1])
        if categories.is_plain:
            return None
        validate_data(self, X, reset=reset, skip_check_array=True)
        rows = categories(X)
        numbers = np.zeros(X.shape)  # as the table has its columns, so that an error names the place there
        for column, first in enumerate(np.searchsorted(categories.column_of, np.arange(X.shape[1]))):
            numbers[:, column] = rows[:, first]
        check_finite(torch.from_numpy(numbers), "X", columns=column_names(X))
        self._settle(categories.found, reset)
        return rows

    def _settle(self, found: Any, reset: bool) -> None:
        if reset:
            self.categories_ = found
        elif (found is None) != (self.categories_ is None):
            raise ValueError(
                "X has no names of columns, but the detector was fitted on a table with text; pass a table"
            )

    # ------------------------------------------------------------------------------ what was learned

    def __sklearn_is_fitted__(self) -> bool:
        return self._sample is not None or hasattr(self, "_detector")

    @property
    def detector_(self) -> Detector:
        check_is_fitted(self)
        if self._stale:
            self._learn()
        return self._detector

    @property
    def threshold_(self) -> float:
        return self._threshold if self.detector_ is not None else 0.0

    @property
    def offset_(self) -> float:
        return -self.threshold_

    @property
    def usual_scores_(self) -> npt.NDArray[np.float64]:
        return self.detector_.usual.numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # ------------------------------------------------------------------------------ on disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the detector's folder, whole or not at all; without the sample of rows, so it takes in no more."""
        save_detector(
            self.detector_,
            path,
            {
                "parameters": {
                    **{k: plain(v) for k, v in self.get_params().items() if k != "random_state"},
                    "window": None if self._window == 1 else int(self._window),
                },
                "threshold": self.threshold_ if math.isfinite(self.threshold_) else "inf",  # JSON has no infinity
                "n_features_in": self.n_features_in_,
                "names": list(map(str, getattr(self, "feature_names_in_", ()))),
                "categories": self.categories_,
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The estimator that ``save`` wrote, or the detector of a run that the command line trained.

        Raises
        ------
        FileNotFoundError, ModelFileError
            There is none at ``path``, or it is damaged.
        """
        detector, about = load_detector(path)
        try:
            estimator = cls(**about["parameters"])
            check_parameters(estimator)
            estimator._restore(detector, about)
        except (KeyError, TypeError, ValueError) as error:
            what = one_line(error, 150)
            raise ModelFileError(f"{path} does not say what an AnomalyDetector is made of ({what})") from error
        return estimator

    def _restore(self, detector: Detector, about: dict[str, Any]) -> None:
        """Be fitted, as a file says. KeyError, TypeError or ValueError: it does not say it."""
        match about:
            case {"n_features_in": int(n), "names": [*names], "categories": None | [*_] as categories}:
                found = None if categories is None else Categories([_labels(labels) for labels in categories])
            case _:
                raise ValueError("it has no columns")
        self._window = self.window or 1
        width = (n if found is None else len(found.column_of)) * self._window
        if width != detector.n_columns or (found is not None and len(found.found) != n):
            raise ValueError(f"its columns are {width}, its detector's {detector.n_columns}")
        if names and not (len(names) == n and all(isinstance(name, str) for name in names)):
            raise ValueError(f"it has {len(names)} names of {n} columns")
        self._threshold = float(about["threshold"])
        if math.isnan(self._threshold):
            raise ValueError("its threshold is no number")
        self.n_features_in_, self.categories_ = n, None if found is None else found.found
        if names:
            self.feature_names_in_ = np.array(names, dtype=object)
        self._detector, self._stale = detector, False


def _labels(labels: Any) -> Sequence[str] | None:
    if labels is None or (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        return labels
    raise ValueError("its categories are not text")
