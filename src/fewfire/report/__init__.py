"""A run as one page: what was learned, as pictures, in a file that needs nothing else.

``gather`` reads rows and keeps what the page shows, ``words`` turns numbers into sentences, ``charts`` into curves,
``labels`` into dots, and ``build`` puts them into ``template.html.jinja``. The page loads nothing and runs no script.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fewfire.evaluation import METRICS

if TYPE_CHECKING:
    from fewfire.contracts import Source
    from fewfire.runs import Run

__all__ = ["METRICS", "write_report"]


def write_report(run: Run, source: Source) -> Path:
    """Write ``report.html`` into the run folder and return its path. Up to 5,000 rows are read, in constant memory.

    Raises
    ------
    ValueError
        The rows do not have the model's shape, or there are none.
    """
    from fewfire.disk import atomic_write  # imported here: METRICS alone must not cost what drawing does
    from fewfire.report.build import render

    path = run.path if run.path.is_dir() else run.path.parent
    page = path / "report.html"
    atomic_write(page, render(run, source))
    return page
