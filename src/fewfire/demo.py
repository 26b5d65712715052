"""The demo: real data that ships with scikit-learn, a dictionary, a report. Under a minute, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewfire.report import write_report
from fewfire.runs import RunConfig, train

__all__ = ["DEMOS", "run_demo"]

DEMOS: dict[str, dict[str, Any]] = {
    # The course's second autoencoder on photographs: rectified units, an L1 penalty. Its features are edges.
    "patches": {
        "data": {"path": "patches", "options": {"size": 12}},
        "model": {"n_latents": 256, "activation": "relu"},
        "objective": [{"name": "mse", "weight": 0.5}, {"name": "l1", "weight": 1.0}],
        "train": {"steps": 4000, "learning_rate": 2e-3},
    },
    # A modern dictionary on handwriting: exactly 8 of 128 features describe each digit.
    "digits": {
        "data": {"path": "digits"},
        "model": {"n_latents": 128, "activation": {"name": "topk", "k": 8}},
        "train": {"steps": 3000, "learning_rate": 2e-3},
    },
}


def run_demo(what: str = "patches", out: str | Path | None = None, *, progress: bool | None = None) -> Path:
    """Train one of ``DEMOS`` and write its report; returns the path of ``report.html``.

    ``out`` None: ``fewfire-demo-WHAT``, or with a number behind it when that name is taken.

    Raises
    ------
    ValueError
        There is no such demo.
    FileExistsError
        ``out`` holds something.
    """
    if what not in DEMOS:
        raise ValueError(f"no demo {what!r}; choose from: {', '.join(DEMOS)}")
    if out is not None and Path(out).is_dir() and any(Path(out).iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another folder")  # a demo is not resumed
    run = train(RunConfig.model_validate(DEMOS[what]), out or _free_name(f"fewfire-demo-{what}"), progress=progress)
    return write_report(run, run.source())


def _free_name(name: str) -> Path:
    number = 1
    while (path := Path(name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path
