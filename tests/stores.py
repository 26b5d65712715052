"""Activation stores for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from fewfire.disk import locked
from fewfire.store import DTYPES, Part, StoreWriter

SIZES = (30, 1, 0, 45)
"""rows of the shards"""


def vectors(n: int, d: int, dtype: str = "float16", seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(size=(n, d)) * 3 + np.arange(d)
    return torch.from_numpy(values).to(DTYPES[dtype][1])


def part(rows: dict[str, torch.Tensor], first_document: int) -> Part:
    """A document for each three rows or fewer, and at last one that has none."""
    n = len(next(iter(rows.values())))
    documents = first_document + np.arange(-(-n // 3) + 1)
    owner = np.arange(n) // 3
    labels = [None if i % 4 == 3 else f"label {i % 4}" for i in documents]
    table = {
        "document": first_document + owner,
        "position": np.arange(n) % 3,
        "token_id": np.arange(n),
        "token": [f"token {i}" for i in range(n)],
        "start": np.arange(n) % 3,
        "end": np.arange(n) % 3 + 1,
        "label": pa.array([labels[i] for i in owner], pa.string()),
    }
    texts = [f"text {i}" for i in documents]
    described = {"document": documents, "text": texts, "label": pa.array(labels, pa.string())}
    return Part(rows, pa.table(table), pa.table(described), f"digest {first_document}", n)


def make_store(
    folder: Path, widths: dict[str, int] | None = None, dtype: str = "float16", sizes=SIZES, producer=None
) -> dict[str, torch.Tensor]:
    """A store, or one for each of several layers; what is in them."""
    widths = {"layer": 6} if widths is None else widths
    whole = {name: vectors(sum(sizes), d, dtype, seed) for seed, (name, d) in enumerate(widths.items())}
    with locked(folder):
        writer = StoreWriter(folder, list(widths), dtype, "token", {"model": "none"} if producer is None else producer)
        at = document = 0
        for size in sizes:
            made = part({name: rows[at : at + size] for name, rows in whole.items()}, document)
            writer.write(made)
            at += size
            document += len(made.documents)
        writer.finish()
    return whole
