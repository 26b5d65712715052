"""Activation stores: what a layer of a model put out (docs/harvest.md)."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fewfire.contracts import Layout
from fewfire.preprocess import Spec
from fewfire.sources.blocks import SHUFFLE_BYTES, BlockSource, Rows
from fewfire.sources.registry import folder

if TYPE_CHECKING:
    from fewfire.store import ActivationStore

# The store is imported when one is opened: it needs Arrow, which takes a tenth of a second.

__all__ = ["StoreSource"]


MOST_LABELS = 1 << 22


def _is_store(path: Path) -> bool:
    from fewfire.store import MANIFEST, stores_in

    return (path / MANIFEST).is_file() or bool(stores_in(path))


class StoreSource(BlockSource):
    """An activation store, as ``fewfire harvest`` makes it, of any size.

    How rows are shuffled and what memory is needed: :class:`BlockSource`; a block is some 4 MiB of rows, and is held
    against its checksum whenever it is read. The preprocess suggested is ``center``, whose mean and scale stand in the
    manifest: columns of hidden states keep their relative scales.

    Parameters
    ----------
    path
        The folder of one layer's store.
    layout, suggested_preprocess, shuffle_bytes
        As in :class:`BlockSource`.

    Raises
    ------
    FileNotFoundError
        There is no store.
    StoreError
        It is damaged. From the iterator: a block is not what was written.
    ValueError
        It holds a store for each of several layers; the message names them.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        layout: Layout | Mapping[str, Any] | None = None,
        suggested_preprocess: Spec = "center",
        shuffle_bytes: int = SHUFFLE_BYTES,
    ) -> None:
        from fewfire.store import ActivationStore

        self.store = ActivationStore.open(path)
        super().__init__(
            _Blocks(self.store),
            name=self.store.layer,
            layout=layout,
            suggested_preprocess=suggested_preprocess,
            shuffle_bytes=shuffle_bytes,
        )

    @cached_property
    def labels(self) -> Any:  # type: ignore[override]  # a table has none, and here they are read when asked for
        """(n,) of each row its document's label; None where there is none, or where rows are too many for memory."""
        if self.store.n_rows > MOST_LABELS:
            return None
        found = self.store.rows(range(self.store.n_rows))["label"]
        return None if found.null_count == len(found) else found.to_numpy()

    @property
    def mean_and_scale(self) -> tuple[Tensor, Tensor]:
        """(d,) and (), of all rows of the store."""
        said = self.store.described
        return torch.tensor(said.mean, dtype=torch.float64), torch.tensor(said.scale, dtype=torch.float64)

    @property
    def origin(self) -> dict[str, Any]:
        """Where the rows come from, for the model that is trained on them."""
        said = self.store.described
        return {"store_sha256": self.store.sha256, "layer": said.layer, "per": said.per, "producer": said.producer}


folder("activations", _is_store)(StoreSource)


class _Blocks:
    """The blocks of a store, as a BlockReader."""

    first_row = 0

    def __init__(self, store: ActivationStore) -> None:
        self._store = store
        self.dtype = np.dtype(np.float16 if store.dtype == "float16" else np.float32)  # numpy knows no bfloat16
        self.row_shape = (store.d,)
        self.block_rows = store.block_rows

    def read(self, block: int) -> Generator[Rows, None, None]:
        rows = self._store.block(block)
        yield rows.float().numpy() if rows.dtype == torch.bfloat16 else rows.numpy()

    def digest(self) -> str:
        return f"store {self._store.sha256}"
