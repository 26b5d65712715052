"""What a harvest feeds a model, whatever it is made of: portions, each of which becomes a shard."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from fewfire.store import SHARD_BYTES, Done, Part

__all__ = ["Feed", "Portion", "Settings", "one_row_each", "same_inputs"]


@dataclass(frozen=True)
class Settings:
    """What a harvest was asked for."""

    per: str = "token"
    """"token", or one row a document: the "mean" over its tokens, its "first" token or its "last" """
    dtype: str = "float16"
    special_tokens: bool = False
    max_tokens: int = 0
    """of an input of the model; longer documents become several. 0: not settled yet"""
    batch_tokens: int = 0
    """given to the model at once, about. 0: not settled yet"""
    shard_bytes: int = SHARD_BYTES
    device: str = "cpu"
    padding: int = 0
    """what stands behind the shorter texts of a batch; the model does not see it"""
    channel_dim: int = -1
    """which dimension of what a layer puts out are the columns; of batches only"""

    def rows_of(self, documents: int, tokens: int) -> int:
        return tokens if self.per == "token" else documents


class Portion(Protocol):
    """Inputs that become one shard."""

    n_rows: int
    """that are done"""

    def __iter__(self) -> Iterator[Any]:
        """What the model is given, in turn."""
        ...

    def take(self, layer: str, hidden: Tensor) -> None:
        """What a layer made of it. Copies what it keeps: the model may write into ``hidden`` later on."""
        ...

    def finish(self) -> Part:
        """The rows in their order. Called once, maybe in another thread."""
        ...


class Feed(Protocol):
    """Inputs in portions. The same inputs give the same portions, from wherever it goes on."""

    def skip(self, done: Sequence[Done]) -> None:
        """Pass over what is stored already.

        Raises
        ------
        ValueError
            These are not the inputs that it was made of.
        """
        ...

    def portions(self) -> Generator[Portion, None, None]:
        """What is not stored yet. One portion is used up before the next is asked for."""
        ...


def same_inputs(record: Done, count: int, digest: str, what: str) -> None:
    """Refuse to go on with other inputs than those that the harvest was begun with.

    Raises
    ------
    ValueError
        They differ.
    """
    if (count, digest) != (record.units, record.digest):
        raise ValueError(f"these are not the {what} that this harvest was begun with; give it those, or another folder")


def one_row_each(layer: str, hidden: Tensor, shape: tuple[int, int]) -> None:
    """Refuse what has not a row for each token.

    Raises
    ------
    ValueError
        The message says what shape it has.
    """
    if hidden.dim() < 2 or math.prod(hidden.shape[:-1]) != math.prod(shape):
        raise ValueError(
            f"the layer {layer!r:.80} puts out {tuple(hidden.shape)} for {shape[0]} texts of {shape[1]} tokens; "
            "expected a row for each token; choose a layer before it"
        )
