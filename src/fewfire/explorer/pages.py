"""What the page asks for of the features: the lines of the table, a page each, the map."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fewfire import metrics
from fewfire.evaluation import kind_of
from fewfire.explorer.choosing import GROUPS, Examples
from fewfire.explorer.describing import Classes, density_bins
from fewfire.explorer.neighbours import Near
from fewfire.explorer.packing import packed, rounded, to_json
from fewfire.explorer.renderers import Marks, Renderer
from fewfire.explorer.scan import N_BINS, Scan

__all__ = ["Pages"]

MOSTLY = 0.6
"""share of the rows of one class from which a feature is called after it"""
LEANING, MOST_NEEDED = 3.0, 0.75
"""so many even shares of its rates over the classes, or this share, give a feature a class's colour on the map"""
SPARK = "0123456789"
"""heights of a sparkline's bars"""
N_WORDS = 8
"""examples whose words are found by a search"""


class Pages:
    """The features of a model as JSON, L of them with E examples each."""

    def __init__(
        self,
        renderer: Renderer,
        found: Scan,
        examples: Examples,
        marks: Marks,
        near: Mapping[str, Near],
        vectors: Tensor,
        classes: Classes,
    ) -> None:
        self.renderer, self.found, self.examples, self.near = renderer, found, examples, near
        self.classes, self.class_counts = classes.names, classes.counts
        self.n_features, width = examples.rows.shape
        self.marks = {name: values.reshape(self.n_features, width, *values.shape[1:]) for name, values in marks.items()}
        self.kind = kind_of(renderer.model)
        self.density, self.norm = found.density, vectors.norm(dim=1).numpy()
        self.mean = found.total / np.maximum(found.fired, 1)
        self.dead = (found.fired == 0) & (self.kind == "sparse")
        self.dense = (self.density > metrics.DENSE) & (self.kind != "normal")
        self.labels = self._labels()

    def write(self, connection: sqlite3.Connection, advance: Callable[[int], Any]) -> None:
        """Fill the tables ``features``, ``pages`` and ``search``."""
        connection.executemany("INSERT INTO features VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", self._lines())
        connection.executemany("INSERT INTO pages VALUES (?, ?, ?, ?)", self._pages(advance))
        connection.executemany("INSERT INTO looks VALUES (?, ?)", self._looks())
        connection.executemany("INSERT INTO search(rowid, label, words) VALUES (?, ?, ?)", self._words())

    def about(self) -> dict[str, Any]:
        """What the page reads once."""
        found = self.found
        return {
            "renderer": self.renderer.name,
            "noun": self.renderer.noun,
            "about": self.renderer.about(),
            "classes": self.classes,
            "class_counts": self.class_counts,
            "groups": [{"name": name, "n": n} for name, n in GROUPS],
            "n_rows": found.n_rows,
            "n_dead": int(self.dead.sum()),
            "n_dense": int(self.dense.sum()),
            "l0": float(found.n_active.mean()),
            "density": density_bins(self.density, found.n_rows),
            "most_often": float(self.density.max()),
        }

    def atlas(self, places: npt.NDArray[np.float32]) -> dict[str, Any]:
        """Places of all features, as arrays."""
        return {
            "places": packed(np.round(places * 32767).astype(np.int16)),
            "density": packed(self.density.astype(np.float32)),
            "max": packed(self.found.high),
            "dead": packed(self.dead.astype(np.uint8)),
            "group": packed(self._leaning().astype(np.int16)),
        }

    def _labels(self) -> list[str]:
        """After the class on whose rows it mostly fires, unless the renderer has better words."""
        own = self.renderer.labels(self.examples)
        main = self._main_class()
        named = [self.classes[c] if c >= 0 else "" for c in main.tolist()]
        words = zip(own, named, strict=True)
        if self.renderer.names_well:
            return [label or (f"mostly {name}" if name else "") for label, name in words]
        return [f"mostly {name}" if name else label for label, name in words]

    def _main_class(self) -> npt.NDArray[np.int64]:
        """(L,) the class of most of the rows on which it fires, -1 where there is none."""
        counts = self.found.by_class
        if counts is None:
            return np.full(self.n_features, -1)
        known = counts.sum(1)
        mostly = counts.max(1) > MOSTLY * np.maximum(known, 1)
        return np.where(mostly & (known >= 5), counts.argmax(1), -1)

    def _leaning(self) -> npt.NDArray[np.int64]:
        """(L,) the class that it fires on far more often than on the others, whatever their sizes; -1 for none."""
        if self.found.by_class is None:
            return np.full(self.n_features, -1)
        rates = self.found.by_class / np.maximum(self.class_counts, 1)
        share = rates.max(1) / np.maximum(rates.sum(1), 1e-12)
        return np.where(share > min(MOST_NEEDED, LEANING / len(self.classes)), rates.argmax(1), -1)

    def _lines(self) -> Iterator[tuple[Any, ...]]:
        sparks = self._sparks()
        columns = (self.density, self.found.high, self.mean, self.norm)
        numbers = zip(*([rounded(float(v)) or 0.0 for v in column] for column in columns), strict=True)
        flags = zip(self.dead.astype(int).tolist(), self.dense.astype(int).tolist(), strict=True)
        rest = zip(numbers, flags, self.labels, sparks, strict=True)
        for i, (values, marks, label, spark) in enumerate(rest):
            yield (i, *values, *marks, label, spark)

    def _sparks(self) -> list[str]:
        """A digit a bin: the root of its count as a share of the highest, so that tails are seen."""
        counts = np.sqrt(self.found.histogram)
        scale = np.maximum(counts.max(1, keepdims=True), 1)
        digits = np.ceil(counts / scale * (len(SPARK) - 1)).astype(np.uint8) + ord("0")
        text = digits.tobytes().decode("ascii")
        return [text[i : i + N_BINS] for i in range(0, len(text), N_BINS)]

    def _pages(self, advance: Callable[[int], Any]) -> Iterator[tuple[int, str, str, str]]:
        drawings = self.renderer.drawings()
        low, counts = np.minimum(self.found.low, 0), self.found.histogram.tolist()
        for i in range(self.n_features):
            rows, values = self.examples.rows[i], self.examples.values[i]
            marks = {name: packed(table[i]) for name, table in self.marks.items()}
            page = {
                "id": i,
                "density": rounded(self.density[i]),
                "fired": int(self.found.fired[i]),
                "max": rounded(self.found.high[i]),
                "mean": rounded(self.mean[i]),
                "norm": rounded(self.norm[i]),
                "dead": int(self.dead[i]),
                "dense": int(self.dense[i]),
                "label": self.labels[i],
                "histogram": {"low": rounded(low[i]), "high": rounded(self.found.high[i]), "counts": counts[i]},
                "examples": {"rows": rows.tolist(), "values": packed(values), **marks},
                "near": {name: self._near(near, i) for name, near in self.near.items()},
                "drawing": drawings[i],
            }
            if self.found.by_class is not None:
                page["by_class"] = self.found.by_class[i].tolist()
            shown = ",".join(map(str, sorted({int(row) for row in rows if row >= 0})))
            if i % 256 == 0:
                advance(min(256, self.n_features - i))
            yield i, to_json(page), shown, self._numbers_near(i)

    def _near(self, near: Near, i: int) -> list[list[Any]]:
        """(feature, likeness) of each."""
        pairs = zip(near.features[i].tolist(), near.likeness[i].astype(np.float64).round(3).tolist(), strict=True)
        return [[j, likeness] for j, likeness in pairs if j >= 0]

    def _numbers_near(self, i: int) -> str:
        numbers = {j for near in self.near.values() for j in near.features[i].tolist() if j >= 0}
        return ",".join(map(str, sorted(numbers)))

    def _looks(self) -> Iterator[tuple[int, str]]:
        return ((i, to_json(d["writes"])) for i, d in enumerate(self.renderer.drawings()) if "writes" in d)

    def _words(self) -> Iterator[tuple[int, str, str]]:
        top = self.examples.rows[:, :N_WORDS]
        words = self.renderer.words(top)
        for i, (label, text) in enumerate(zip(self.labels, words, strict=True)):
            if label or text:
                yield i, label, text
