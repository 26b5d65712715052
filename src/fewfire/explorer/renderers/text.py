"""Tokens in their texts, from an activation store: what was read, and how strongly the feature fired on each token."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Source
from fewfire.explorer.choosing import Examples
from fewfire.explorer.packing import to_json
from fewfire.explorer.renderers.family import Marks, Numbers, Renderer
from fewfire.explorer.scan import Codes
from fewfire.store import ActivationStore

__all__ = ["Text"]

AROUND = 12
"""tokens of context on either side"""
LONGEST = 400
"""characters of a text that is one row"""
LONGEST_DOCUMENT = 20_000
"""characters, on the page of a row"""
N_NAMED = 3
"""tokens in a label"""
LEAST_SHARE = 0.12
"""of a feature's activation, from which a token is in its label"""
TELLING = 26
"""examples that label a feature: all but the near misses"""


class Text(Renderer, name="text"):
    """Rows that are tokens of documents, or whole documents."""

    names_well = True

    def __init__(self, model: Autoencoder, source: Source, codes: Codes) -> None:
        super().__init__(model, source, codes)
        self.store: ActivationStore = source.store  # type: ignore[attr-defined]
        self.documents_shown: set[int] = set()
        self.noun = "token" if self.store.per == "token" else "text"

    @classmethod
    def fits(cls, model: Autoencoder, source: Source) -> bool:
        store = getattr(source, "store", None)
        return isinstance(store, ActivationStore) and store.documents([0])["text"].null_count == 0

    def about(self) -> dict[str, Any]:
        return {"per": self.store.per, "around": AROUND, "layer": self.store.layer}

    def rows(self, x: Tensor, target: Tensor, recon: Tensor, numbers: Numbers) -> list[dict[str, Any]]:
        windows = self._windows(numbers)
        documents, starts, ends = (self._places[name] for name in ("document", "start", "end"))
        found = []
        for number, (pieces, at) in zip(numbers.tolist(), windows, strict=True):
            document = int(documents[number])
            self.documents_shown.add(document)
            span = [int(starts[number]), int(ends[number])]
            found.append({"document": document, "span": span, "pieces": pieces, "at": at})
        return found

    def reasons(self, share: Tensor) -> list[dict[str, Any]]:
        """Columns of a hidden state have no names: nothing a person could use."""
        return [{}] * len(share)

    def marks(self, x: Tensor, features: Tensor, numbers: Numbers) -> Marks:
        """ "heat" (n, 2 * AROUND + 1): activations of the tokens around, in 255ths of the largest."""
        span = int(numbers.min()) - AROUND, int(numbers.max()) + AROUND + 1
        entries = self.codes.between(*span)
        n_features = self.model.latent_shape[0]
        keys = entries.rows * n_features + entries.features
        order = np.argsort(keys)
        keys, values = keys[order], np.maximum(entries.values[order], 0)
        around = numbers[:, None] + np.arange(-AROUND, AROUND + 1)
        wanted = around * n_features + features.numpy()[:, None]
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        documents = self._places["document"]
        inside = (around >= 0) & (around < len(documents))
        same = documents[np.clip(around, 0, len(documents) - 1)] == documents[numbers][:, None]
        heat = np.where((keys[place] == wanted) & inside & same, values[place], 0.0)
        scale = np.maximum(heat.max(1, keepdims=True), np.finfo(np.float32).tiny)
        return {"heat": np.round(heat / scale * 255).astype(np.uint8)}

    def labels(self, examples: Examples) -> list[str]:
        """The tokens that are most of a feature's activation and most above their share of the text."""
        if self.store.per != "token":
            return super().labels(examples)
        tokens, names = self._tokens
        common = np.bincount(tokens, minlength=len(names)) / len(tokens)
        rows, values = examples.rows[:, :TELLING].tolist(), np.maximum(examples.values[:, :TELLING], 0).tolist()
        numbers = tokens.tolist()
        return [_telling(r, v, numbers, names, common) for r, v in zip(rows, values, strict=True)]

    def words(self, rows: npt.NDArray[np.int64]) -> list[str]:
        kept = rows[rows >= 0]
        texts = dict(zip(kept.tolist(), ("".join(pieces) for pieces, _ in self._windows(kept)), strict=True))
        return [" ".join(texts[row] for row in line if row >= 0) for line in rows.tolist()]

    def documents(self) -> Iterator[tuple[int, str]]:
        numbers = sorted(self.documents_shown)
        found = self.store.documents(np.array(numbers, dtype=np.int64)).to_pydict()
        for number, text, label in zip(numbers, found["text"], found["label"], strict=True):
            yield number, to_json({"text": text[:LONGEST_DOCUMENT], "label": label, "length": len(text)})

    # ----------------------------------------------------------------------------------- where rows come from

    @cached_property
    def _table(self) -> pa.Table:
        return self.store.rows(np.arange(self.store.n_rows))

    @cached_property
    def _places(self) -> dict[str, npt.NDArray[np.int64]]:
        """Of every row: document, start and end."""
        names = ("document", "start", "end")
        return {name: self._table[name].fill_null(0).to_numpy().astype(np.int64) for name in names}

    @cached_property
    def _tokens(self) -> tuple[npt.NDArray[np.int32], list[str]]:
        """The token of every row, by number, and how tokens are written; pieces of words begin with "-"."""
        coded = self._table["token"].fill_null("").combine_chunks().dictionary_encode()
        names = [name.strip().removeprefix("Ġ").removeprefix("▁") for name in coded.dictionary.to_pylist()]
        return coded.indices.to_numpy(), [f"-{name[2:]}" if name.startswith("##") else name for name in names]

    @cached_property
    def _texts(self) -> list[str]:
        return [str(text) for text in self.store.documents(np.arange(self.store.n_documents))["text"].to_pylist()]

    def _windows(self, numbers: npt.NDArray[np.int64]) -> list[tuple[list[str], int]]:
        """Of each row: the text about it, cut at the tokens, and which of the pieces is its own."""
        documents, starts, ends = (self._places[name] for name in ("document", "start", "end"))
        if self.store.per != "token":
            return [([self._texts[documents[n]][:LONGEST]], 0) for n in numbers.tolist()]
        found = []
        for n in numbers.tolist():
            first, last = max(0, n - AROUND), min(len(documents), n + AROUND + 1)
            same = np.flatnonzero(documents[first:last] == documents[n]) + first
            cuts = [*starts[same].tolist(), int(ends[same[-1]])]
            text = self._texts[documents[n]]
            found.append(([text[a:b] for a, b in itertools.pairwise(cuts)], int(n - same[0])))
        return found


def _telling(
    rows: Sequence[int], values: Sequence[float], tokens: Sequence[int], names: Sequence[str], common: Any
) -> str:
    """A label from examples; "" where no token stands out."""
    mass: dict[int, float] = defaultdict(float)
    for row, value in zip(rows, values, strict=True):
        if row >= 0:
            mass[tokens[row]] += value
    total = sum(mass.values())
    if not total:
        return ""
    score = {t: m / total * math.log(m / total / common[t]) for t, m in mass.items() if m / total > LEAST_SHARE}
    best = sorted(score, key=lambda t: -score[t])[:N_NAMED]
    return " ".join(names[t] for t in best if score[t] > 0)
