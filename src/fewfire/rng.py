"""Randomness without state: a generator is a pure function of its key.

``generator(seed, "shuffle", epoch)`` gives the same numbers whenever it is asked, so a killed run resumes by
counting, nothing random has to be saved, and the caller's global generators are never touched.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["generator", "permutation"]


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A private torch generator for this key. Keys that differ anywhere give unrelated streams."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    # 63 bits: manual_seed reads a negative number as another seed.
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)


def permutation(n: int, *key: int | str) -> Tensor:
    """(n,) int64: a random order of ``range(n)``."""
    return torch.randperm(n, generator=generator(*key, "permutation"))
