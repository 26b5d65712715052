"""The second reading: the rows that the page shows, as JSON, and what of them made features fire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Batch, Source
from fewfire.explorer.choosing import Examples
from fewfire.explorer.packing import packed, rounded, to_json
from fewfire.explorer.renderers import Marks, Renderer
from fewfire.explorer.scan import Codes, Scan, as_sparse, batches
from fewfire.explorer.smallest import Entries
from fewfire.scoring import score_rows
from fewfire.sparse_codes import finds_codes

__all__ = ["Anomalies", "show", "shown_rows"]

EVENLY = 10_000
"""rows in the data view beside those that are examples, spread evenly over the data"""
MOST_ANOMALIES = 500
MOST_CODES = 48
"""features named of a row, the strongest"""
Line = tuple[int, float | None, int, int, str, str, int | None, str]
"""id, score, n_active, anomaly, label, page, document, features"""


class Anomalies(NamedTuple):
    """Which rows are unusual, (n,) each."""

    score: npt.NDArray[np.float64]
    is_anomaly: npt.NDArray[np.bool_]


def shown_rows(examples: Examples, anomalies: Anomalies, n_rows: int) -> npt.NDArray[np.bool_]:
    """(n,) which rows the bundle holds: all examples, the worst anomalies, and some spread evenly over the data."""
    shown = np.zeros(n_rows, dtype=bool)
    shown[examples.rows[examples.rows >= 0]] = True
    shown[:: -(-n_rows // EVENLY)] = True
    worst = np.argsort(np.where(anomalies.is_anomaly, -anomalies.score, np.inf), kind="stable")[:MOST_ANOMALIES]
    shown[worst[anomalies.is_anomaly[worst]]] = True
    return shown


def show(
    model: Autoencoder,
    source: Source,
    renderer: Renderer,
    found: Scan,
    examples: Examples,
    anomalies: Anomalies,
    labels: Callable[[npt.NDArray[np.int64]], list[str]],
    advance: Callable[[int], Any],
    codes: Codes,
    marks: Marks,
) -> Iterator[Line]:
    """Lines of the table ``rows``, in order. On the way ``marks`` fills: name -> (L * E, ...) of the examples."""
    wanted = shown_rows(examples, anomalies, found.n_rows)
    flat = examples.rows.ravel()
    order = np.argsort(flat, kind="stable")
    order = order[np.searchsorted(flat[order], 0) :]
    sorted_rows, width = flat[order], examples.rows.shape[1]
    for first, batch in batches(model, source, found.n_rows):
        last = first + len(batch.rows)
        where = order[np.searchsorted(sorted_rows, first) : np.searchsorted(sorted_rows, last)]
        _mark(renderer, batch, first, flat[where], where, width, marks, len(flat))
        inside = np.flatnonzero(wanted[first:last])
        if len(inside):
            own = codes.between(first, last)
            own = own.where(wanted[own.rows])
            own = own._replace(rows=np.searchsorted(inside, own.rows - first))
            yield from _lines(model, renderer, batch, inside, first, own, found, anomalies, labels)
        advance(last - first)


def _mark(
    renderer: Renderer,
    batch: Batch,
    first: int,
    rows: npt.NDArray[np.int64],
    where: npt.NDArray[np.int64],
    width: int,
    marks: Marks,
    n: int,
) -> None:
    """What of these rows made features fire, into ``marks``: they are examples ``where`` of L * E = n in all."""
    if not len(where):
        return
    found = renderer.marks(batch.x_in[torch.from_numpy(rows - first)], torch.from_numpy(where // width), rows)
    for name, values in found.items():
        if name not in marks:
            marks[name] = np.zeros((n, *values.shape[1:]), dtype=values.dtype)
        marks[name][where] = values


def _lines(
    model: Autoencoder,
    renderer: Renderer,
    batch: Batch,
    inside: npt.NDArray[np.int64],
    first: int,
    entries: Entries,
    found: Scan,
    anomalies: Anomalies,
    labels: Callable[[npt.NDArray[np.int64]], list[str]],
) -> Iterator[Line]:
    """Of some rows of a batch; ``entries`` are their codes, rows counted as in ``inside``."""
    x, x_target = batch.x_in[inside], batch.x[inside]
    target = x if batch.x is batch.x_in else x_target
    codes = as_sparse(entries, len(inside)) if finds_codes(model) else None
    like = x if x.shape == target.shape else None
    recon = (model.reconstruct(x) if codes is None else model.decode(codes, like=like)).cpu()
    share = score_rows(model, x, None if target is x else target, codes).share
    looks, reasons = renderer.rows(x, target, recon, first + inside), renderer.reasons(share)
    starts = np.searchsorted(entries.rows, np.arange(len(inside) + 1))
    names = labels(batch.rows[inside].numpy())
    for i, place in enumerate(inside.tolist()):
        number = first + place
        part = slice(starts[i], starts[i + 1])
        strongest = np.argsort(-np.abs(entries.values[part]), kind="stable")[:MOST_CODES]
        features = entries.features[part][strongest]
        strengths = {"features": features.tolist(), "values": packed(entries.values[part][strongest])}
        score, n_active = rounded(float(anomalies.score[number])), int(found.n_active[number])
        is_anomaly = int(anomalies.is_anomaly[number])
        page = {
            "id": number,
            "row": int(batch.rows[place]),
            "score": score,
            "n_active": n_active,
            "anomaly": is_anomaly,
        }
        page |= {"label": names[i], "look": looks[i], "why": reasons[i], "codes": strengths}
        document, listed = looks[i].get("document"), ",".join(map(str, features.tolist()))
        yield number, score, n_active, is_anomaly, names[i], to_json(page), document, listed
