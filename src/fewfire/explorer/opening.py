"""From what a person points at to a bundle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewfire.explorer.build import MOST_ROWS, build, folder_of
from fewfire.explorer.store import FILE
from fewfire.runs import open_run

__all__ = ["open_bundle"]


def open_bundle(
    path: str | Path,
    data: Any = None,
    options: Mapping[str, Any] | None = None,
    *,
    rows: int = MOST_ROWS,
    compare: str | Path | None = None,
    progress: bool | None = None,
) -> Path:
    """The folder of a run's bundle, built where it is missing or old. A folder that is a bundle is taken as it is.

    Parameters
    ----------
    path
        A run folder, a model folder, also a peer's, or a bundle, such as a copy of ``RUN/explorer``.
    data, options
        As ``Run.source`` takes them; None: what the run was trained on.
    rows, compare, progress
        As ``build`` takes them; ``compare`` is the other run's folder.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such run, or its data are not known, gone, or do not fit; and there is no bundle of before.

    Warns
    -----
    UserWarning
        The data of the run cannot be read, and the bundle of before is shown.
    """
    path = Path(path)
    if (path / FILE).is_file():
        return path
    run = open_run(path)
    try:
        source = run.source(data, options)
    except (FileNotFoundError, ValueError) as error:
        before = folder_of(run)
        if data is not None or options or not (before / FILE).is_file():
            raise
        warnings.warn(f"showing the bundle of before, because the data cannot be read ({error!s:.200})", stacklevel=2)
        return before
    other = None if compare is None else open_run(compare)
    return build(run, source, rows=rows, compare=other, progress=progress)
