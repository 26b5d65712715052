"""Numbers into sentences: the title, the verdict and the warnings."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewfire.contracts import Source
from fewfire.report.charts import short
from fewfire.report.gather import Gathered, Kind, kind_of
from fewfire.runs import Run
from fewfire.terms import Term

__all__ = ["count", "percent", "title", "verdict", "warnings"]

STILL = 0.1
"""standard deviation below which a normal latent says nothing (Burda et al. 2016, 5.2: a variance of .01)"""
ROWS_OF = {"patches": "image patches", "digits": "handwritten digits"}
"""what people call the rows of the built-in data"""


def count(n: float, one: str, many: str | None = None) -> str:
    """``count(2, "row")`` -> "2 rows"."""
    return f"{n:,.0f} {one if n == 1 else many or one + 's'}"


def percent(share: float) -> str:
    """Two digits, and never "0%" or "100%" of what is not quite."""
    if share in (0, 1) or share < 0:
        return f"{share:.0%}"
    if share < 0.001:
        return "<0.1%"
    if share > 0.999:
        return ">99.9%"
    return f"{share:.1%}" if share < 0.0995 or share > 0.985 else f"{share:.0%}"


def per_row(l0: float) -> str:
    """A mean number of features: whole when large, with a digit when small."""
    return f"{l0:,.0f}" if l0 >= 9.95 or l0 == round(l0) else f"{l0:.1f}"


def data_name(run: Run, source: Source) -> str:
    """A short name: never a path."""
    path = (run.config.data.path if run.config else None) or run.provenance.get("data")
    return Path(path).name if path else str(getattr(source, "name", "") or "data")


def title(run: Run, source: Source) -> str:
    """What was trained on what: "256 features of 50,000 image patches"."""
    name = data_name(run, source)
    rows = run.provenance.get("rows") or source.n_rows
    features = count(run.model.latent_shape[0], "feature" if len(run.model.latent_shape) == 1 else "feature map")
    if name in ROWS_OF:
        return f"{features} of {rows:,} {ROWS_OF[name]}" if rows else f"{features} of {ROWS_OF[name]}"
    noun = "image" if run.model.layout.kind == "image" else "row"
    return f"{features} of {count(rows, noun)} of {name}" if rows else f"{features} of {name}"


def by(sides: Sequence[int]) -> str:
    """(7, 9) -> "7 × 9", on one line."""
    return "\u00a0×\u00a0".join(map(str, sides))


def verdict(result: Mapping[str, float], kind: Kind = "sparse", grid: Sequence[int] = ()) -> str:
    """What came out, in a plain sentence or two. ``grid``: sides of a feature map."""
    explained, l0, n_latents = result["explained_variance"], result["l0"], result["n_latents"]
    if explained >= 0.9:
        quality = "The features describe the rows faithfully"
    elif explained >= 0.7:
        quality = "The features describe the main shape of the rows; finer detail is lost"
    elif explained >= 0.3:
        quality = "The features give a rough outline of the rows"
    elif explained > 0:
        quality = "The features say little about the rows"
    else:
        return "The reconstructions are worse than the mean of the rows: this model has not learned them."
    sentence = f"{quality}: {percent(explained)} of the variance is explained"
    if kind == "normal":
        return f"{sentence} by {count(n_latents, 'normal latent')}."
    if kind == "logistic" and l0 < 0.5:
        return f"{sentence}, with a mean activation of {short(result['mean_activation'])}."
    if l0 == 0:
        return f"{sentence}, though no feature fires on any row."
    share = l0 / (n_latents * math.prod(grid))
    manner = "sparsely" if share <= 1 / 8 else "rather densely" if share <= 1 / 2 else "densely"
    which = f"{per_row(l0)} of {count(n_latents, 'feature')}"
    if grid:
        which = f"{per_row(l0)} places in {count(n_latents, 'feature map')} of {by(grid)}"
    return f"{sentence}, {manner}, with {which} firing on an average row."


def warnings(run: Run, source: Source, gathered: Gathered, result: Mapping[str, float]) -> list[str]:
    """What a person should know before trusting the rest of the page."""
    return [
        *_other_data(run, source),
        *_penalties(run, result),
        *_silent(run, gathered, result),
        *_always_on(run, gathered),
        *_still(run, gathered),
        *_overfitted(run.history()),
    ]


def _other_data(run: Run, source: Source) -> Iterator[str]:
    trained_on = run.provenance.get("data_fingerprint")
    if trained_on and trained_on not in _fingerprints(run, source):
        yield "These rows are not those that the model was trained on: their fingerprints differ."


def _fingerprints(run: Run, source: Source) -> Iterator[str]:
    """Of the rows, and of the part of them that a run with held-out rows was trained on."""
    yield source.fingerprint
    train = run.provenance.get("train") or {}
    if train.get("validation_fraction"):
        yield source.split(train["validation_fraction"], train.get("seed", 0))[0].fingerprint


def _penalties(run: Run, result: Mapping[str, float]) -> Iterator[str]:
    """What each sparsity term has to say of its own failure."""
    logistic = float(kind_of(run.model) != "normal")
    found = {**result, "n_positions": math.prod(run.model.latent_shape), "logistic": logistic}
    for config in run.provenance.get("objective") or []:
        with contextlib.suppress(ValueError, TypeError):  # a term of somebody's own, not loaded here
            said = Term.from_config(config).verdict(found)
            if said is not None:
                yield said[:1].upper() + said[1:] + "."


def _silent(run: Run, gathered: Gathered, result: Mapping[str, float]) -> Iterator[str]:
    dead, n_latents = int((gathered.evaluation.fired == 0).sum()), int(result["n_latents"])
    rows = count(gathered.evaluation.n_rows, "row")
    if kind_of(run.model) == "logistic" and dead:
        which = "No unit" if dead == n_latents else f"{dead:,} of {count(n_latents, 'unit')} never"
        mean = short(result["mean_activation"])
        yield (
            f"{which} rose above one half on these {rows}, which is when a logistic unit counts as firing. The mean "
            f"activation is {mean}: a small sparsity target keeps units low, and low units can tell rows apart too."
        )
    elif dead > 0.05 * n_latents:
        linear = "linear_decoder" in run.model.gives
        revival = "revive them with auxk" if linear else "keep them alive with activation wta"
        yield (
            f"{dead:,} of {count(n_latents, 'feature')} ({percent(dead / n_latents)}) never fired on these {rows}. "
            f"Some may be rare; the rest are unused: train longer, {revival}, or ask for fewer latents."
        )


def _always_on(run: Run, gathered: Gathered) -> Iterator[str]:
    if kind_of(run.model) == "normal" or len(run.model.latent_shape) > 1:  # of a map, the place says something
        return
    rates = gathered.evaluation.density
    always = int((rates > 0.9).sum())
    if always > max(1, 0.05 * len(rates)):
        yield (
            f"{count(always, 'feature fires', 'features fire')} on more than 90% of the rows: they say little about "
            "any one row. More sparsity, or preprocessing that removes the mean, sets them free."
        )


def _still(run: Run, gathered: Gathered) -> Iterator[str]:
    still = int((gathered.spread <= STILL).sum())
    if kind_of(run.model) == "normal" and still:
        yield (
            f"{still:,} of {count(len(gathered.spread), 'normal latent')} hardly vary over the rows, and say nothing: "
            "lower the weight of gaussian_kl, raise it slowly by a schedule, or give it free_bits."
        )


def _overfitted(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    seen = [r["fvu"] for r in records if isinstance(r.get("fvu"), float)]
    held_out = [r["val_fvu"] for r in records if isinstance(r.get("val_fvu"), float)]
    if seen and held_out and held_out[-1] > 1.5 * seen[-1] and held_out[-1] > seen[-1] + 0.05:
        yield (
            f"Held-out rows are described worse than those trained on (unexplained: {percent(held_out[-1])} against "
            f"{percent(seen[-1])}): the features know the training rows by heart. More rows or fewer latents help."
        )
