"""The detector of a run: what is usual in the rows that it was trained on, learned when it is first asked for."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from fewfire.anomaly import MAX_ROWS, Detector, Sample, find_detector, load_detector, save_detector, threshold
from fewfire.contracts import Source
from fewfire.runs.folder import Run

__all__ = ["Judge", "RunDetector", "detector_of", "scorer"]

SEED = 0
MAX_COLUMNS = 16_384
"""of a row; wider ones are judged by the model's own reconstruction"""
BATCH = 4096


@dataclass(frozen=True)
class RunDetector:
    """A detector, and where usual ends for it."""

    detector: Detector
    threshold: float
    n_rows: int
    """rows it has learned from, or drawn its sample of"""


def detector_of(run: Run, *, learn: bool = True) -> RunDetector | str:
    """The run's detector, or a sentence that says why there is none.

    It is read from ``RUN/detector``; else learned from the rows that the run was trained on, which takes seconds, and
    written there, if that can be done.

    Parameters
    ----------
    learn
        False: only read it.

    Raises
    ------
    ModelFileError
        The one that is there is damaged.
    """
    if find_detector(run.path) is not None:
        detector, about = load_detector(run.path)
        return RunDetector(detector, float(about["threshold"]), int(about.get("n_rows", detector.n_seen)))
    if not learn:
        return "there is none yet; `fewfire score` learns it"
    if refusal := _refuses(run):
        return refusal
    try:
        source = run.source()
    except (OSError, ValueError) as error:
        return f"the rows it was trained on cannot be read ({error})"
    found = _learn(source)
    with suppress(OSError):  # a folder that may not be written to
        save_detector(found.detector, run.path / "detector", _about(run, source, found))
    return found


class Judge(NamedTuple):
    """What `fewfire score` asks."""

    detector: Detector | None
    """None: the model's reconstruction"""
    threshold: float
    how: str
    """for a person"""


def scorer(run: Run, by: str = "auto", wanted: float | None = None) -> Judge:
    """Who judges rows, and where usual ends.

    Parameters
    ----------
    by
        "detector", "reconstruction", or "auto": the detector where there is one or can be.
    wanted
        The threshold; None: the judge's own.

    Raises
    ------
    ValueError
        There can be no detector and it was asked for, or no threshold is known.
    """
    if by not in ("auto", "detector", "reconstruction"):
        raise ValueError(f"expected --by to be auto, detector or reconstruction; got {by!r:.60}")
    found = "" if by == "reconstruction" else detector_of(run)
    if isinstance(found, RunDetector):
        end = found.threshold if wanted is None else wanted
        return Judge(found.detector, end, f"by a detector that learned from {found.n_rows:,} rows")
    if by == "detector":
        raise ValueError(f"{run.path} has no detector: {found}; score by reconstruction")
    why = f" ({found})" if found else ""
    return Judge(None, run.threshold(wanted), f"by the error of reconstruction{why}")


def _refuses(run: Run) -> str | None:
    if run.model.target_shape != run.model.input_shape or run.model.preprocess_out is not None:
        return "the model's targets are not its inputs"
    if math.prod(run.model.input_shape) > MAX_COLUMNS:
        return f"rows have more than {MAX_COLUMNS:,} values"
    if run.config is None or run.config.data.path is None:
        return "it is a bare model, which does not know the rows it was trained on"
    return None


def _learn(source: Source) -> RunDetector:
    sample = Sample(MAX_ROWS, SEED)
    for batch in source.batches(BATCH, shuffle=False):
        rows = batch.x_in.flatten(1).double()
        sample.add(rows[torch.isfinite(rows).all(1)])
    detector = Detector(seed=SEED).fit(sample.rows)
    return RunDetector(detector, threshold("auto", detector.usual), sample.n_seen)


def _about(run: Run, source: Source, found: RunDetector) -> dict[str, Any]:
    """As ``AnomalyDetector`` writes it, so that it can be opened as one."""
    width = math.prod(run.model.input_shape)
    names = source.layout.columns if source.layout.kind == "table" and len(source.layout.columns) == width else ()
    return {
        "parameters": {"contamination": "auto", "threshold": "auto", "false_alarms": 0.01, "window": None},
        "threshold": found.threshold,
        "n_features_in": width,
        "names": list(names),
        "categories": None,
        "n_rows": found.n_rows,
    }
