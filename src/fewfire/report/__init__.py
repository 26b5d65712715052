"""A run as one page: what was learned, as pictures, in a file that needs nothing else.

``gather`` reads rows and keeps what the page shows, ``words`` turns numbers into sentences, ``charts`` into curves,
``labels`` into dots, and ``build`` puts them into ``template.html.jinja``. The page loads nothing and runs no script.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewfire.contracts import Source
    from fewfire.runs import Run

__all__ = ["METRICS", "write_report"]

METRICS: dict[str, str] = {
    "n_rows": "rows that were measured",
    "n_latents": "features of the model",
    "mse": "squared error of the reconstruction, mean over rows and columns, in the units of the data",
    "fvu": "variance unexplained: squared error / squared distance from the mean of the rows; 0 is perfect",
    "fvu_columns": "the same for each column by itself, then averaged: no column speaks for the others by its scale",
    "explained_variance": "1 - fvu: 1 is perfect, the mean of the rows alone gives 0",
    "cosine": "between a row and its reconstruction, mean over rows: 1 is the same direction",
    "l2_ratio": "length of the reconstruction / length of the row, mean over rows: below 1 it shrinks",
    "relative_bias": "1: on average as far out as the rows; below 1, shrunk in the rows' own direction",
    "l0": "features that fire on a row, mean over rows",
    "dead_fraction": "share of the features that fired on none of the rows",
    "dense_fraction": "share of the features that fired on more than a tenth of the rows",
    "mean_activation": "mean of the latents over rows and features, silent ones included",
}
"""What each number of ``evaluate``'s dict means, in a line; its limits stand beside it."""


def write_report(run: Run, source: Source) -> Path:
    """Write ``report.html`` into the run folder and return its path. Up to 5,000 rows are read, in constant memory.

    Raises
    ------
    ValueError
        The rows do not have the model's shape, or there are none.
    """
    from fewfire.disk import atomic_write  # imported here, because METRICS alone must not cost a second
    from fewfire.report.build import render

    path = run.path if run.path.is_dir() else run.path.parent
    page = path / "report.html"
    atomic_write(page, render(run, source))
    return page
