"""Texts through a tokenizer, in batches of one length, and the tokens' hidden states back in the order of the text."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from fewfire.harvesting.documents import Document
from fewfire.harvesting.feed import Settings, one_row_each, same_inputs
from fewfire.sources.ahead import ahead
from fewfire.store import DTYPES, Done, Part, rows_per_shard

__all__ = ["TextFeed"]

Ints = npt.NDArray[np.int64]

TOGETHER = 64
"""documents that are given to the tokenizer at once; a shard ends behind such a number of them"""
MAX_DOCUMENTS = 4096
"""of a shard: pooled rows are small, and what a kill costs is bounded all the same"""


@dataclass(frozen=True)
class _Tokens:
    """Every token of some documents, in their order, special tokens and all. (n,) each, but for the last."""

    window: Ints
    """which input of the model it is in: a document longer than the model takes has several"""
    place: Ints
    """in its window"""
    document: Ints
    position: Ints
    ids: Ints
    start: Ints
    end: Ints
    special: npt.NDArray[np.bool_]
    lengths: Ints
    """(windows,)"""


class TextFeed:
    """Documents as portions, each of which becomes a shard.

    Parameters
    ----------
    documents
        In the order of the rows to be.
    tokenizer
        A fast one of transformers.
    widths
        Columns of each layer.
    settings
        Of the harvest.
    """

    def __init__(
        self, documents: Iterator[Document], tokenizer: Any, widths: dict[str, int], settings: Settings
    ) -> None:
        self._documents, self._tokenizer = documents, tokenizer
        self._widths, self._settings = widths, settings
        self._spelled: dict[int, str] = {}
        self._read = 0
        self._shard_rows = rows_per_shard(max(widths.values()), settings.dtype, settings.shard_bytes)

    def skip(self, done: Sequence[Done]) -> None:
        for record in done:
            documents = list(islice(self._documents, record.units))
            same_inputs(record, len(documents), _digest(documents), "documents")
            self._read += len(documents)

    def portions(self) -> Generator[TextPortion, None, None]:
        """The next portion is tokenised while this one goes through the model."""
        stop = Event()
        return ahead(self._portions(stop), stop)

    def _portions(self, stop: Event) -> Generator[TextPortion, None, None]:
        while not stop.is_set():
            documents: list[Document] = []
            parts: list[_Tokens] = []
            n_rows = 0
            while n_rows < self._shard_rows and len(documents) < MAX_DOCUMENTS:
                if not (more := list(islice(self._documents, TOGETHER))):
                    break
                tokens = self._tokenise(more, len(documents))
                parts.append(tokens)
                documents += more
                n_rows += self._settings.rows_of(len(more), int((~tokens.special).sum()))
            if not documents:
                return
            portion = TextPortion(documents, self._read, _joined(parts), self._widths, self._settings)
            self._spell(portion)
            self._read += len(documents)
            yield portion

    def _tokenise(self, documents: Sequence[Document], first: int) -> _Tokens:
        found = self._tokenizer(
            [document.text for document in documents],
            truncation=True,
            max_length=self._settings.max_tokens,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        lengths = np.array([len(ids) for ids in found["input_ids"]], np.int64)
        of_window = np.asarray(found["overflow_to_sample_mapping"], np.int64)
        document = np.repeat(of_window, lengths)
        spans = _flat(found["offset_mapping"], lengths.sum(), 2)
        return _Tokens(
            window=np.repeat(np.arange(len(lengths)), lengths),
            place=_counted(lengths),
            document=document + first,
            position=_counted(np.bincount(document, minlength=len(documents))),
            ids=_flat(found["input_ids"], lengths.sum(), 1)[:, 0],
            start=spans[:, 0],
            end=spans[:, 1],
            special=_flat(found["special_tokens_mask"], lengths.sum(), 1)[:, 0] == 1,
            lengths=lengths,
        )

    def _spell(self, portion: TextPortion) -> None:
        """The text of every token of the portion, each looked up once in a harvest."""
        for number in np.unique(portion.tokens.ids[portion.chosen]).tolist():
            if number not in self._spelled:
                self._spelled[number] = self._tokenizer.decode([number], clean_up_tokenization_spaces=False)
        portion.spelled = self._spelled


class TextPortion:
    """Documents that become one shard: what the model is given of them, and where its answers go."""

    spelled: dict[int, str]

    def __init__(
        self, documents: list[Document], first: int, tokens: _Tokens, widths: dict[str, int], settings: Settings
    ) -> None:
        self.documents, self.tokens, self._first, self._settings = documents, tokens, first, settings
        self.n_rows = 0
        self.chosen = _chosen(tokens, settings)
        """tokens whose hidden states count, rising"""
        self._pooled = settings.per == "mean"
        owners = tokens.document[self.chosen]
        self._owners: Ints = owners
        self._places: Ints | None = None
        """of each row its document, and of each token its row, where that is not its own"""
        if self._pooled:
            self._owners, self._places = np.unique(owners, return_inverse=True)
        n_rows = len(self._owners)
        dtype = torch.float32 if self._pooled else DTYPES[settings.dtype][1]
        self._out = {layer: torch.zeros(n_rows, d, dtype=dtype) for layer, d in widths.items()}
        self._shape = (0, 0)
        self._picks = self._targets = torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Inputs of the model, windows of one length together, the longest first."""
        tokens, device = self.tokens, self._settings.device
        windows = np.argsort(-tokens.lengths, kind="stable")
        windows = windows[tokens.lengths[windows] > 0]
        begins = np.concatenate([[0], np.cumsum(tokens.lengths)])
        bounds = np.searchsorted(tokens.window[self.chosen], np.arange(len(tokens.lengths) + 1))
        at = 0
        while at < len(windows):
            longest = int(tokens.lengths[windows[at]])
            batch = windows[at : at + max(self._settings.batch_tokens // longest, 1)]
            at += len(batch)
            if not (bounds[batch + 1] > bounds[batch]).any():
                continue  # nothing in it is asked for
            ids = np.full((len(batch), longest), self._settings.padding)
            mask = np.zeros((len(batch), longest), np.int64)
            for row, window in enumerate(batch):
                length = tokens.lengths[window]
                ids[row, :length] = tokens.ids[begins[window] : begins[window] + length]
                mask[row, :length] = 1
            rows = np.concatenate([np.arange(bounds[w], bounds[w + 1]) for w in batch])
            line = np.repeat(np.arange(len(batch)), bounds[batch + 1] - bounds[batch])
            self._shape = (len(batch), longest)
            self._picks = torch.from_numpy(line * longest + tokens.place[self.chosen[rows]]).to(device)
            self._targets = torch.from_numpy(rows if self._places is None else self._places[rows])
            self.n_rows += len(rows)
            yield {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)}

    def take(self, layer: str, hidden: Tensor) -> None:
        """Keep what was asked for of (B, T, d)."""
        out = self._out[layer]
        one_row_each(layer, hidden, self._shape)
        picked = hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._picks).to("cpu", out.dtype)
        if self._pooled:
            out.index_add_(0, self._targets, picked)
        else:
            out[self._targets] = picked

    def finish(self) -> Part:
        vectors = self._out
        if self._places is not None:
            counts = torch.from_numpy(np.bincount(self._places, minlength=len(self._owners)))[:, None]
            vectors = {name: (out / counts).to(DTYPES[self._settings.dtype][1]) for name, out in self._out.items()}
        labels = pa.array([document.label for document in self.documents], pa.string())
        documents = {
            "document": pa.array(self._first + np.arange(len(self.documents))),
            "text": pa.array([document.text for document in self.documents], pa.string()),
            "label": labels,
        }
        return Part(vectors, self._rows(labels), pa.table(documents), _digest(self.documents), len(self.documents))

    def _rows(self, labels: pa.Array) -> pa.Table:
        tokens, chosen, n = self.tokens, self.chosen, len(self._owners)
        if self._pooled:
            ends = [len(self.documents[i].text) for i in self._owners.tolist()]
            found = {name: pa.nulls(n, pa.int32()) for name in ("position", "token_id")}
            found |= {
                "token": pa.nulls(n, pa.string()),
                "start": pa.array(np.zeros(n, np.int32)),
                "end": pa.array(ends),
            }
        else:
            none = tokens.special[chosen]  # a special token has no characters
            ids = tokens.ids[chosen]
            found = {
                "position": pa.array(tokens.position[chosen]),
                "token_id": pa.array(ids),
                "token": pa.array([self.spelled[number] for number in ids.tolist()], pa.string()),
                "start": pa.array(tokens.start[chosen], mask=none),
                "end": pa.array(tokens.end[chosen], mask=none),
            }
        columns = {
            "document": pa.array(self._first + self._owners),
            **found,
            "label": labels.take(pa.array(self._owners)),
        }
        return pa.table(columns)


def _chosen(tokens: _Tokens, settings: Settings) -> Ints:
    """Tokens that count. ``first`` is the first of all, [CLS] where there is one; else special ones are as asked."""
    everything = settings.special_tokens or settings.per == "first"
    kept = np.flatnonzero(np.ones_like(tokens.special) if everything else ~tokens.special)
    owners = tokens.document[kept]
    if settings.per == "first":
        return kept[np.flatnonzero(np.diff(owners, prepend=-1))]
    if settings.per == "last":
        return kept[np.flatnonzero(np.diff(owners, append=-1))]
    return kept


def _joined(parts: Sequence[_Tokens]) -> _Tokens:
    windows = np.cumsum([0, *(len(part.lengths) for part in parts)])
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("place", "document", "position", "ids", "start", "end", "special", "lengths")
    }
    window = np.concatenate([part.window + first for part, first in zip(parts, windows, strict=False)])
    return _Tokens(window=window, **joined)


def _flat(lists: Sequence[Sequence[Any]], n: int, width: int) -> Ints:
    """(n, width) out of lists in a list."""
    return np.array([value for inner in lists for value in inner], np.int64).reshape(n, width)


def _counted(lengths: Ints) -> Ints:
    """0, 1, ... length - 1 for each length, one after another."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _digest(documents: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for text, label in documents:
        for part in (text, "" if label is None else f"label {label}"):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
    return digest.hexdigest()
