"""Tensors out of a file that somebody else may have written: compared with what they must be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["expect"]


def expect(
    tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, *shape: int | None, positive: bool = False
) -> Tensor:
    """The tensor of this name, finite; None in ``shape``: any size but 0.

    Raises
    ------
    KeyError, ValueError
        There is none, or it is another.
    """
    tensor = tensors[name]
    sizes = tuple(have if want is None and have else want for have, want in zip(tensor.shape, shape, strict=False))
    if tensor.dtype != dtype or tensor.ndim != len(shape) or sizes != tuple(tensor.shape):
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}")
    if not torch.isfinite(tensor).all() or (positive and not (tensor > 0).all()):
        raise ValueError(f"{name} holds a value that is not {'positive' if positive else 'finite'}")
    return tensor
