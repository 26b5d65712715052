"""The rows a detector finds unusual: how scores lie, the worst rows with their reasons, the columns behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewfire import plot
from fewfire.contracts import Source
from fewfire.report.charts import Bar, Chart, even_ticks, short
from fewfire.runs import Run
from fewfire.runs.detecting import RunDetector, detector_of

__all__ = ["Anomalies", "anomalies"]

MAX_ROWS = 20_000
BATCH = 4096
N_WORST = 8
N_COLUMNS = 3
N_BARS = 40


@dataclass(frozen=True)
class Anomalies:
    """What the page shows of them."""

    n_rows: int
    n_found: int
    threshold: float
    scores: Chart
    worst: list[dict[str, Any]]
    """rows: number, score, share of the worst score, and columns (name, value, usual value, share)"""
    columns: list[tuple[str, float]]
    """name, and share of the anomalies' scores; the largest first"""


def anomalies(run: Run, source: Source) -> Anomalies | None:
    """Of the first 20,000 finite rows; None where the run has no detector (``fewfire score`` learns it)."""
    found = detector_of(run, learn=False)
    if not isinstance(found, RunDetector):
        return None
    rows, numbers, scores, shares = _judged(found, source)
    if not len(scores):
        return None
    above = scores > found.threshold
    usual = rows.median(0).values
    names = [plot.column_name(source.layout, i) for i in range(rows.shape[1])]
    worst = scores.topk(min(N_WORST, len(scores)))
    highest = max(float(worst.values[0]), 1e-12)
    described = []
    for place in worst.indices.tolist():
        top = shares[place].topk(min(N_COLUMNS, len(names)))
        columns = [
            (names[i], float(rows[place, i]), float(usual[i]), share)
            for i, share in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        score = float(scores[place])
        described.append(
            {
                "row": int(numbers[place]),
                "score": score,
                "share": score / highest,
                "is_anomaly": score > found.threshold,
                "columns": columns,
            }
        )
    of_columns = shares[above].mean(0) if above.any() else shares[:0].sum(0)
    ranked = of_columns.topk(min(5, len(names)))
    return Anomalies(
        n_rows=len(scores),
        n_found=int(above.sum()),
        threshold=found.threshold,
        scores=_histogram(scores, found.threshold),
        worst=described,
        columns=[(names[i], share) for i, share in zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True)],
    )


def _judged(found: RunDetector, source: Source) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (n, D), their numbers, scores and shares."""
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    n_rows = 0
    for batch in source.batches(BATCH, shuffle=False):
        rows = batch.x_in.flatten(1).double()
        finite = torch.isfinite(rows).all(1)
        rows = rows[finite]
        findings = found.detector(rows, explain=True)
        assert findings.share is not None
        kept.append((rows, batch.rows[finite], findings.score, findings.share))
        n_rows += len(rows)
        if n_rows >= MAX_ROWS:
            break
    rows, numbers, scores, shares = (torch.cat(part)[:MAX_ROWS] for part in zip(*kept, strict=True))
    return rows, numbers, scores, shares


def _histogram(scores: Tensor, threshold: float) -> Chart:
    """How many rows have which score; those above the threshold in the colour of what stands out.

    The axis ends at three times the threshold, or all anomalies but one would stand in the first bar.
    """
    end = max(min(float(scores.max()), 3 * threshold), threshold * 1.05, 1e-9)
    width = end / N_BARS
    counts = torch.bincount((scores / width).long().clamp(max=N_BARS - 1), minlength=N_BARS).tolist()
    ticks = [t for t in even_ticks(0, max(counts), 4) if t == int(t)]
    top = max(max(counts), ticks[-1]) ** 0.5  # roots, or the few would not be seen beside the many
    bars = []
    for i, count in enumerate(counts):
        if count:
            title = f"{count:,} rows of {short(i * width)} to {short((i + 1) * width)} nats"
            title += " and more" if i == N_BARS - 1 and float(scores.max()) > end else ""
            bars.append(
                Bar(100 * i / N_BARS, 100 / N_BARS, 96 * count**0.5 / top, title, (i + 0.5) * width > threshold)
            )
    x_ticks = [(100 * t / end, short(t)) for t in even_ticks(0, end, 6) if t <= end]
    y_ticks = [(100 - 96 * t**0.5 / top, f"{t:,.0f}") for t in ticks]
    return Chart("", "", bars=bars, x_ticks=x_ticks, y_ticks=y_ticks)
