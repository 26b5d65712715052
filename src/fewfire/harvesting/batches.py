"""Batches as the caller has them: any torch module, and whatever it takes."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from fewfire.disk import one_line
from fewfire.harvesting.feed import Settings, same_inputs
from fewfire.store import DTYPES, Done, Part

__all__ = ["BatchFeed"]


class BatchFeed:
    """Batches of inputs as portions. A document is one input: one of B.

    Parameters
    ----------
    batches
        A tensor, a tuple of arguments or a mapping of keywords each; tensors with B inputs in their first dimension. Of
        inputs with an ``attention_mask`` (B, T), only places where it is not 0 give rows.
    labels
        One per input, or None.
    settings
        Of the harvest.
    """

    def __init__(self, batches: Iterable[Any], labels: Sequence[Any] | None, settings: Settings) -> None:
        self._batches, self._labels, self._settings = iter(batches), labels, settings
        self._n_inputs = 0

    def skip(self, done: Sequence[Done]) -> None:
        for record in done:
            batches = list(islice(self._batches, record.units))
            same_inputs(record, len(batches), _digest(batches), "inputs")
            self._n_inputs += record.documents

    def portions(self) -> Generator[BatchPortion, None, None]:
        for first in self._batches:  # takes one, and the portion takes more of the same iterator
            portion = BatchPortion(chain([first], self._batches), self._n_inputs, self._labels, self._settings)
            yield portion
            self._n_inputs += portion.n_inputs


class BatchPortion:
    """As many batches as fill a shard."""

    def __init__(self, batches: Iterator[Any], first: int, labels: Sequence[Any] | None, settings: Settings) -> None:
        self._batches, self._first, self._labels, self._settings = batches, first, labels, settings
        self._digests = hashlib.sha256()
        self._out: dict[str, list[Tensor]] = {}
        self._documents: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._mask: Tensor | None = None
        self._is_new = False
        self._units = self._before = self.n_inputs = self.n_rows = 0

    def __iter__(self) -> Iterator[Any]:
        while self._n_bytes() < self._settings.shard_bytes:
            batch = next(self._batches, None)
            if batch is None:
                return
            self._digests.update(_digest_of(batch).encode())
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            self._mask = mask.cpu() != 0 if isinstance(mask, Tensor) else None
            self._is_new, self._before = True, self.n_inputs
            self._units += 1
            yield _moved(batch, self._settings.device)

    def _n_bytes(self) -> int:
        return max((sum(part.nbytes for part in parts) for parts in self._out.values()), default=0)

    def take(self, layer: str, hidden: Tensor) -> None:
        """Rows of (B, ..., d), the columns at ``channel_dim``."""
        dim = self._settings.channel_dim
        if hidden.dim() < 2 or not -hidden.dim() <= dim < hidden.dim() or dim in (0, -hidden.dim()):
            raise ValueError(f"the layer {layer!r:.80} puts out {tuple(hidden.shape)}, which has no columns at {dim}")
        rows = hidden.movedim(dim, -1).cpu()
        rows = rows.reshape(len(rows), -1, rows.shape[-1])  # (B, positions, d)
        mask = torch.ones(rows.shape[:2], dtype=torch.bool)
        if self._mask is not None and self._mask.shape == mask.shape:
            mask = self._mask
        kept, inputs, positions = _pooled(rows, mask, self._settings.per)
        if self._is_new:
            self._documents.append(inputs + self._first + self._before)
            self._positions.append(positions)
            self._is_new = False
            self.n_inputs += len(rows)
            self.n_rows += len(inputs)
        elif len(inputs) != len(self._documents[-1]):
            raise ValueError(
                f"the layer {layer!r:.80} puts out {len(inputs):,} rows for a batch, another one "
                f"{len(self._documents[-1]):,}; harvest them one by one, or pooled (per='mean')"
            )
        self._out.setdefault(layer, []).append(kept.to(DTYPES[self._settings.dtype][1]))

    def finish(self) -> Part:
        document, position = torch.cat(self._documents).numpy(), torch.cat(self._positions).numpy()
        inputs = np.arange(self._first, self._first + self.n_inputs)
        labels = pa.array(self._labels_of(inputs), pa.string())
        n, pooled = len(document), self._settings.per == "mean"
        rows = {
            "document": pa.array(document),
            "position": pa.nulls(n, pa.int32()) if pooled else pa.array(position),
            "token_id": pa.nulls(n, pa.int32()),
            "token": pa.nulls(n, pa.string()),
            "start": pa.nulls(n, pa.int32()),
            "end": pa.nulls(n, pa.int32()),
            "label": labels.take(pa.array(document - self._first)),
        }
        documents = {"document": pa.array(inputs), "text": pa.nulls(len(inputs), pa.string()), "label": labels}
        vectors = {layer: torch.cat(parts) for layer, parts in self._out.items()}
        return Part(vectors, pa.table(rows), pa.table(documents), self._digests.hexdigest(), self._units)

    def _labels_of(self, inputs: Any) -> list[str | None]:
        if self._labels is None:
            return [None] * len(inputs)
        if inputs[-1] >= len(self._labels):
            raise ValueError(f"expected a label for every input; there are {len(self._labels):,}, and more inputs")
        return [None if self._labels[i] is None else str(self._labels[i]) for i in inputs.tolist()]


def _pooled(rows: Tensor, mask: Tensor, per: str) -> tuple[Tensor, Tensor, Tensor]:
    """(the rows that are kept, which input each is of, its position there), inputs in order."""
    if per == "mean":
        inputs = mask.any(1).nonzero()[:, 0]
        weights = mask[inputs].float()
        means = torch.einsum("bpd,bp->bd", rows[inputs].float(), weights) / weights.sum(1, keepdim=True)
        return means, inputs, torch.zeros_like(inputs)
    if per in ("first", "last"):
        rank = mask.cumsum(1) if per == "first" else mask.flip(1).cumsum(1).flip(1)
        mask = mask & (rank == 1)
    inputs, positions = mask.nonzero(as_tuple=True)
    return rows[mask], inputs, positions


def _moved(batch: Any, device: str) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: _moved(value, device) for name, value in batch.items()}
    return type(batch)(_moved(value, device) for value in batch) if type(batch) in (tuple, list) else batch


def _digest(batches: Sequence[Any]) -> str:
    return hashlib.sha256("".join(map(_digest_of, batches)).encode()).hexdigest()


def _digest_of(batch: Any) -> str:
    digest = hashlib.sha256()
    _feed(digest, batch)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(memoryview(value.reshape(-1).view(torch.uint8).numpy()))
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            digest.update(str(name).encode())
            _feed(digest, value[name])
    elif isinstance(value, tuple | list):
        for inner in value:
            _feed(digest, inner)
    else:
        digest.update(one_line(repr(value), 10_000).encode())
