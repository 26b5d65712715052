"""From a run to a bundle: the rows are read twice, in memory that does not grow with them.

The first reading (``scan``) writes every code to ``codes.parquet`` and counts. From the codes come the examples of each
feature (``choosing``), its neighbours and its place on the map. The second reading fetches the rows that are shown
(``showing``). Everything the page will ask for is written as JSON into ``explorer.sqlite``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from fewfire import plot
from fewfire._version import __version__
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Source
from fewfire.disk import fsync_folder, locked
from fewfire.explorer import store
from fewfire.explorer.atlas import lay_out
from fewfire.explorer.choosing import choose
from fewfire.explorer.describing import about_model, about_run, comparison, labels_of
from fewfire.explorer.neighbours import by_angle, by_firing
from fewfire.explorer.packing import plain, to_json
from fewfire.explorer.pages import Pages
from fewfire.explorer.progress import Stages
from fewfire.explorer.renderers import Marks, renderer_for
from fewfire.explorer.scan import Codes, Scan, scan
from fewfire.explorer.showing import Anomalies, show
from fewfire.explorer.smallest import Entries
from fewfire.runs import Run

__all__ = ["CODES", "MOST_ROWS", "build", "folder_of"]

CODES = "codes.parquet"
MOST_ROWS = 250_000
"""that are read, unless somebody says otherwise"""
ANOMALIES = "anomalies.parquet"
"""in the run folder: what ``fewfire score`` or a detector wrote of the run's own rows; taken where it is"""
BUILDING = ".building-"


def folder_of(run: Run) -> Path:
    """Where the bundle of a run is."""
    return (run.path if run.path.is_dir() else run.path.parent) / "explorer"


def build(
    run: Run,
    source: Source,
    *,
    out: Path | None = None,
    rows: int = MOST_ROWS,
    compare: Run | None = None,
    progress: bool | None = None,
) -> Path:
    """The folder of a run's bundle, built if there is none of this model, these data and these settings.

    Parameters
    ----------
    out
        The folder; None: ``explorer`` in the run folder.
    rows
        At most so many rows are read, the first ones.
    compare
        Another run, whose features are matched with this one's.
    progress
        None: a bar on a terminal, lines elsewhere; False: nothing.

    Raises
    ------
    ValueError
        The rows do not fit the model, one is not finite, or there are none.
    FolderInUseError
        Another process builds there.
    OSError
        The disk refused; a bundle that was there before is untouched.
    """
    if rows < 1:
        raise ValueError(f"expected to read at least 1 row; got {rows}")
    run.model.layout.check_columns(source.layout.columns)
    folder = out or folder_of(run)
    key = _key(run, source, rows, compare)
    if _key_of(folder) == key:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        for left in folder.glob(f"{BUILDING}*"):  # of a build that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=BUILDING, dir=folder) as place:
            _Building(run, source, Path(place), min(rows, source.n_rows or rows), Stages(progress)).write(key, compare)
            for name in (CODES, store.FILE):  # the file that says which bundle it is comes last
                _commit(Path(place, name), folder / name)
    return folder


def _commit(new: Path, final: Path) -> None:
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(final)
    fsync_folder(final.parent)


def _key(run: Run, source: Source, rows: int, compare: Run | None) -> str:
    """Changes when the bundle would."""
    digest = hashlib.sha256(
        f"{store.FORMAT} {__version__} {rows} {source.fingerprint} {run.path.resolve().name}".encode()
    )
    for one in (run, compare):
        if one is not None:
            digest.update(json.dumps(one.model.config(), sort_keys=True).encode())
            for name, tensor in one.model.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    table = run.path / ANOMALIES
    if table.is_file():
        digest.update(f"{table.stat().st_size} {table.stat().st_mtime_ns}".encode())
    digest.update(json.dumps(run.history()[-1:], default=str).encode())
    return digest.hexdigest()


def _key_of(folder: Path) -> str | None:
    """Of the bundle that is there, if there is one that can be read."""
    try:
        found = store.Store(folder).text("key")
        return None if found is None else str(json.loads(found))
    except (FileNotFoundError, ValueError, sqlite3.Error):
        return None


@dataclass
class _Building:
    """One bundle, while it is built."""

    run: Run
    source: Source
    place: Path
    limit: int
    stages: Stages

    @property
    def model(self) -> Autoencoder:
        return self.run.model

    def write(self, key: str, compare: Run | None) -> None:
        classes = labels_of(self.source, self.limit)
        with self.stages("reading rows", self.limit) as advance:
            found = scan(
                self.model, self.source, self.place / CODES, limit=self.limit, classes=classes.number, advance=advance
            )
        codes = Codes(self.place / CODES)
        with self.stages("choosing examples"):
            examples = choose(self.model, self.source, found)
        vectors = plot.feature_vectors(self.model)
        with self.stages("finding neighbours"):
            near = {"angle": by_angle(vectors), "firing": by_firing(self._firing(codes), found.fired, found.n_rows)}
        with self.stages("drawing the map"):
            places = lay_out(vectors, near["angle"])
        renderer = renderer_for(self.model, self.source, codes)
        anomalies, threshold = _anomalies(self.run, found)
        marks: Marks = {}
        with store.create(self.place / store.FILE) as connection:
            with self.stages("showing rows", found.n_rows) as advance:
                shown = show(
                    self.model, self.source, renderer, found, examples, anomalies, classes.label, advance, codes, marks
                )
                connection.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", shown)
                connection.executemany("INSERT INTO documents VALUES (?, ?)", renderer.documents())
            with self.stages("writing features", self.model.latent_shape[0]) as advance:
                pages = Pages(renderer, found, examples, marks, near, vectors, classes)
                pages.write(connection, advance)
            meta = {**about_model(self.run, self.source), **pages.about(), "threshold": threshold}
            meta |= {"static": False, "compared": compare is not None}
            parts = {"format": store.FORMAT, "key": key, "meta": meta, "map": pages.atlas(places)}
            parts["run"] = about_run(self.run, self.source)
            if compare is not None:
                parts["comparison"] = comparison(self.model, compare)
            connection.executemany("INSERT INTO meta VALUES (?, ?)", ((n, to_json(plain(v))) for n, v in parts.items()))

    def _firing(self, codes: Codes) -> Iterator[Entries]:
        for entries in codes:
            yield entries.where(self.model.activation.active(torch.tensor(entries.values)).numpy())


def _anomalies(run: Run, found: Scan) -> tuple[Anomalies, float | None]:
    """Which rows are unusual: as a detector's table in the run folder says, else above the usual error."""
    table = run.path / ANOMALIES
    if table.is_file():
        columns = pq.read_table(table, columns=["row", "score", "is_anomaly"])
        rows, score, flags = (columns.column(name).to_numpy() for name in ("row", "score", "is_anomaly"))
        inside = (rows >= 0) & (rows < found.n_rows)
        anomalies = Anomalies(found.score.copy(), np.zeros(found.n_rows, dtype=bool))
        anomalies.score[rows[inside]], anomalies.is_anomaly[rows[inside]] = score[inside], flags[inside]
        return anomalies, None
    threshold = (run.provenance.get("score") or {}).get("threshold")
    if not isinstance(threshold, int | float):
        return Anomalies(found.score, np.zeros(found.n_rows, dtype=bool)), None
    return Anomalies(found.score, found.score > threshold), float(threshold)
