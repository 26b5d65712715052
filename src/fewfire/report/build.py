"""The page: what ``gather`` found and the run folder holds, laid out for ``template.html.jinja``."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire import plot
from fewfire._version import __version__
from fewfire.contracts import Source
from fewfire.report import METRICS, charts, words
from fewfire.report.anomalies import Anomalies, anomalies
from fewfire.report.gallery import TILE, Gallery, tile_size
from fewfire.report.gather import N_TOP, Example, Gathered, gather
from fewfire.report.labels import Clouds, clouds
from fewfire.runs import Run

__all__ = ["render"]

PIXEL_BYTES = 1_800_000
"""of all pictures together; larger ones are shrunk to stay within it, because noise does not compress"""
CURVES = {
    "loss": "Loss",
    "fvu": "Variance unexplained",
    "l0": "Features firing per row",
    "dead": "Dead features",
}


def render(run: Run, source: Source) -> bytes:
    """The page, as UTF-8."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fewfire.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": words.percent, "short": charts.short, "brief": brief, "by": words.by}
    page = Page(run, source, gather(run.model, source))
    return environment.get_template("template.html.jinja").render(page=page, version=__version__).encode()


class Page:
    """What the template asks for, by the name it asks with."""

    def __init__(self, run: Run, source: Source, gathered: Gathered) -> None:
        self.run = run
        self.model = run.model
        self.source = source
        self.gathered = gathered
        self.gallery = Gallery(run.model, gathered)
        self.result = gathered.evaluation.result()
        self.title = words.title(run, source)
        # of a table each column has the same say: one in millions would speak for all the others
        of_rows, of_columns = self.result["explained_variance"], 1 - self.result["fvu_columns"]
        self.explained = of_rows if self.model.layout.kind == "image" else of_columns
        self.verdict = words.verdict(
            {**self.result, "explained_variance": self.explained}, self.gallery.kind, self.model.latent_shape[1:]
        )
        self.warnings = words.warnings(run, source, gathered, self.result)
        self.records = run.history()
        self.is_image = self.model.layout.kind == "image"

    # ------------------------------------------------------------------------------------- at a glance

    @property
    def subtitle(self) -> str:
        l0 = self.result["l0"]
        if self.gallery.normal:
            return f"{self.gallery.n_varying:,} of them vary from row to row"
        if self.gallery.logistic and l0 < 0.5:
            return f"mean activation {charts.short(self.result['mean_activation'])}"
        return f"about {words.per_row(l0)}{' places' if self.gallery.are_maps else ''} fire per row"

    @property
    def rows_read(self) -> str:
        n, total = self.gathered.evaluation.n_rows, self.source.n_rows
        if n == total:
            return f"all {words.count(n, 'row')}"
        return f"the first {n:,} of {total:,} rows" if total else f"the first {words.count(n, 'row')}"

    @property
    def glance(self) -> list[tuple[str, str, str]]:
        """(number, what it is, what it means)."""
        over = "" if self.model.layout.kind == "image" else "Each column by itself, averaged; "
        scale = f"{over}100% would be perfect, the mean alone gives 0%"
        numbers = [(words.percent(self.explained), "of the variance explained", scale), *self._of_latents()]
        if self.seconds is not None:
            numbers.append((duration(self.seconds), "of training", words.count(self.steps or 0, "step")))
        return numbers

    def _of_latents(self) -> Iterator[tuple[str, str, str]]:
        l0, n_latents, *grid = self.result["l0"], *self.model.latent_shape
        what, n_places = ("place", math.prod(self.model.latent_shape)) if grid else ("feature", n_latents)
        all_of_them = f"{n_places:,}" + (f": {n_latents:,} maps of {words.by(grid)}" if grid else "")
        if self.gallery.normal:
            yield (
                f"{self.gallery.n_varying:,}",
                "latents vary",
                f"of {n_latents:,}, by more than {words.STILL} over the rows",
            )
        elif self.gallery.logistic:
            rho = next((term["rho"] for term in self.run.provenance.get("objective") or [] if "rho" in term), None)
            meaning = "of a unit, over all rows" + (f"; the target is {rho:g}" if rho else "")
            yield charts.short(self.result["mean_activation"]), "mean activation", meaning
            above = f"{'units' if not grid else 'places'} above ½ per row"
            yield words.per_row(l0), above, f"of {all_of_them}; above ½ counts as firing"
        else:
            yield words.per_row(l0), f"{what}s fire per row", f"{words.percent(l0 / n_places)} of all {all_of_them}"
            n_silent = self.gallery.n_silent
            silent = f"{words.percent(n_silent / n_latents)} of all {n_latents:,}, on the rows read"
            yield f"{n_silent:,}", "features never fired", silent

    @property
    def seconds(self) -> float | None:
        return next((r["seconds"] for r in reversed(self.records) if isinstance(r.get("seconds"), float)), None)

    @property
    def steps(self) -> int | None:
        steps = self.run.provenance.get("steps")
        return steps if isinstance(steps, int) else None

    # ----------------------------------------------------------------------------------------- pictures

    @property
    def tile_size(self) -> tuple[int, int]:
        """(width, height) in CSS pixels of a row's picture."""
        return tile_size(self.model.layout)

    def png(self, picture: npt.NDArray[np.float64]) -> str:
        """(h, w) or (h, w, 3), 0 to 1 -> a data URI."""
        return png(picture, self._max_side)

    @cached_property
    def _max_side(self) -> int:
        """Pixels; the longer side of every picture is at most this."""
        n_pictures = len(self.gallery.features) + len(self.gathered.top) * (1 + N_TOP) + 2 * len(self.gathered.pairs)
        channels = 3 if len(self.model.layout.shape) == 3 and self.model.layout.shape[0] in (3, 4) else 1
        return max(16, math.isqrt(PIXEL_BYTES // (n_pictures * channels)))

    @property
    def smooth(self) -> bool:
        """Whether a browser should blend pixels: they are more than a tile has, or were blended to be fewer."""
        return max(self.model.layout.shape[-2:], default=0) > min(TILE, self._max_side)

    # --------------------------------------------------------------------------------------------- rows

    @cached_property
    def reconstructions(self) -> list[dict[str, Any]]:
        examples = [self.gathered.examples[p] for p in self.gathered.pairs]
        if self.draws_targets:
            return list(self._picture_pairs(examples))
        return list(self._line_pairs(examples[:6]))

    @property
    def draws_targets(self) -> bool:
        """Whether a target is a picture, as an input is."""
        return self.is_image and math.prod(self.model.target_shape) == math.prod(self.model.layout.shape)

    def _picture_pairs(self, examples: list[Example]) -> Iterator[dict[str, Any]]:
        target, recon = (torch.stack([getattr(e, side) for e in examples]) for side in ("target", "recon"))
        limits = (target.amin(1), target.amax(1))  # one scale for both, so that they compare
        above, below = (plot.tiles(rows, self.model.layout, limits=limits) for rows in (target, recon))
        for e, original, rebuilt in zip(examples, above, below, strict=True):
            mean = self.gathered.evaluation.target.mean.flatten()
            missed = _missed(e.target - mean, e.recon - mean)
            yield {"example": e, "missed": missed, "original": original, "rebuilt": rebuilt}

    def _line_pairs(self, examples: list[Example]) -> Iterator[dict[str, Any]]:
        for e in examples:
            target, recon = self._standard(e.target), self._standard(e.recon)
            low, high = (float(f(torch.cat([target, recon, torch.zeros(1)]))) for f in (torch.min, torch.max))
            worst = int((target - recon).abs().argmax())
            yield {
                "example": e,
                "missed": _missed(target, recon),
                "original": _staircase(target, low, high),
                "rebuilt": _staircase(recon, low, high),
                "zero": round(_from_top(0.0, low, high), 2),
                "worst": plot.column_name(self.model.layout, worst),
                "worst_was": float(e.target[worst]),
                "worst_is": float(e.recon[worst]),
            }

    def _standard(self, row: Tensor) -> Tensor:
        """A target row in standard deviations from the mean of the rows read; constant columns at 0."""
        moments = self.gathered.evaluation.target
        spread = moments.variance.flatten().sqrt()
        return torch.where(spread > 0, (row - moments.mean.flatten()) / spread.clamp_min(1e-300), 0.0)

    @cached_property
    def exciting(self) -> list[dict[str, Any]]:
        """The most used features, each with the rows on which it fires most."""
        named = {f.number: f for f in self.gallery.features}
        groups = []
        for j, top in self.gathered.top.items():
            rows = [(value, self.gathered.examples[position]) for value, position in top]
            if rows:
                groups.append(
                    {
                        "number": j,
                        "feature": named.get(j),
                        "how_often": self.gallery.how_often(j),
                        "rows": self.gallery.examples(j, rows) if self.is_image else self._example_columns(rows[:4]),
                    }
                )
        return groups

    def _example_columns(self, rows: list[tuple[float, Example]]) -> list[dict[str, Any]]:
        """Each row by the columns in which it is most unusual: (name, value, standard deviations)."""
        highest = max(abs(value) for value, _ in rows)
        groups = []
        for value, e in rows:
            z = self._standard(e.x) if e.x.shape == e.target.shape else e.x
            unusual = z.abs().topk(min(3, len(z))).indices.tolist()
            columns = [(plot.column_name(self.model.layout, i), float(e.x[i]), float(z[i])) for i in unusual]
            groups.append({"row": e.row, "value": value, "share": abs(value) / highest, "columns": columns})
        return groups

    @cached_property
    def clouds(self) -> Clouds | None:
        """Rows as dots, coloured by label, where the data have labels."""
        return clouds(self.model, self.source)

    @cached_property
    def anomalies(self) -> Anomalies | None:
        """What the run's detector finds, where it has one."""
        return anomalies(self.run, self.source)

    # --------------------------------------------------------------------------------- training and the rest

    @property
    def curves(self) -> list[charts.Chart]:
        titles = {**CURVES, "l0": "Places firing per row"} if self.gallery.are_maps else CURVES
        shown = [name for name in titles if not (self.gallery.logistic and name == "dead")]
        drawn = (charts.curve_chart(self.records, name, titles[name]) for name in shown)
        return [chart for chart in drawn if chart is not None]

    @property
    def rates(self) -> charts.Chart:
        return charts.rate_chart(self.gathered.evaluation.density)

    @property
    def metrics(self) -> list[tuple[str, str, str, str]]:
        """(name, on these rows and how sure that is, at the end of training, meaning)."""
        then = self.run.provenance.get("summary") or {}
        return [
            (name, _number(self.result[name]) + self._plus_minus(name), _number(then.get(name)), meaning)
            for name, meaning in METRICS.items()
        ]

    def _plus_minus(self, name: str) -> str:
        """How far the 95 % confidence limits are, in two digits: " ± 0.012"; nothing where there are none."""
        low, high = (self.result.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
        reach = max(high - self.result[name], self.result[name] - low)
        return f" ± {charts.short(float(f'{reach:.2g}'))}" if math.isfinite(reach) and reach > 0 else ""

    @property
    def config_text(self) -> str | None:
        file = self.run.path / "config.yaml"
        return file.read_text(encoding="utf-8") if self.run.config is not None and file.is_file() else None

    @property
    def provenance(self) -> list[tuple[str, str]]:
        p, train = self.run.provenance, self.run.provenance.get("train") or {}
        preprocess = self.model.preprocess
        facts = [
            ("data", p.get("data")),
            ("rows trained on", _number(p.get("rows"))),
            ("data fingerprint", str(p.get("data_fingerprint") or "")[:12]),
            ("a row", " × ".join(map(str, self.model.input_shape)) + " values"),
            ("preprocess", _settings(preprocess.config()) if preprocess else "none"),
            ("activation", _settings(self.model.activation.config())),
            ("network", _settings(self.model.network.config())),
            ("objective", " + ".join(_settings(term) for term in p.get("objective") or [])),
            ("steps", _number(self.steps)),
            ("rows per step", _number(train.get("batch_size"))),
            ("seed", _number(train.get("seed"))),
            ("engine", p.get("engine")),
            ("time", duration(self.seconds) if self.seconds is not None else None),
            ("fewfire", __version__),
        ]
        return [(name, str(value)) for name, value in facts if value]


# -------------------------------------------------------------------------------------------------- pieces


def png(picture: npt.NDArray[np.float64], max_side: int) -> str:
    """(h, w) or (h, w, 3), 0 to 1 -> a data URI, shrunk to ``max_side`` pixels."""
    from PIL import Image

    image = Image.fromarray((picture * 255).round().astype(np.uint8))
    image.thumbnail((max_side, max_side), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def brief(value: float) -> str:
    """Two significant digits, all of a whole number's: for a value beside its usual one."""
    return charts.short(value if value == round(value) else float(f"{value:.2g}"))


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds:.0f} s"


def _missed(target: Tensor, recon: Tensor) -> float:
    """Squared error of a row as a share of its squared distance from the mean row, which both are given relative to."""
    spread = float(target.square().sum())
    return float((target - recon).square().sum()) / spread if spread > 0 else 0.0


def _staircase(row: Tensor, low: float, high: float) -> str:
    """A row as the points of a line with a step per column, in percent of the plot."""
    width = 100 / len(row)
    heights = [round(_from_top(float(v), low, high), 2) for v in row]
    return " ".join(f"{i * width:.2f},{y} {(i + 1) * width:.2f},{y}" for i, y in enumerate(heights))


def _from_top(value: float, low: float, high: float) -> float:
    return 96 - 92 * (value - low) / (high - low) if high > low else 50.0


def _number(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return charts.short(value) if isinstance(value, float) else ""


def _settings(config: dict[str, Any]) -> str:
    """``{"name": "topk", "k": 16}`` -> "topk (k 16)"; a chain as its steps; what is off is not shown."""
    if "steps" in config:
        return ", then ".join(_settings(step) for step in config["steps"])
    given = {k: v for k, v in config.items() if k != "name" and v is not None and v is not False}
    rest = ", ".join(k if v is True else f"{k} {_number(v) or v}" for k, v in given.items())
    return f"{config.get('name')} ({rest})" if rest else str(config.get("name"))
