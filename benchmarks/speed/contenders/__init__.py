"""What is timed: one file a library, each with the same three verbs, and what they are all given.

A contender imports its library inside its constructor and nowhere else, so that one that is absent is skipped.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any, ClassVar, NamedTuple
from unittest.mock import MagicMock

import torch
from torch import Tensor

__all__ = ["DEAD", "KINDS", "LEARNING_RATE", "PEERS", "PREFIXES", "WITH_AUXK", "Contender", "Job", "Start", "stand_ins"]

KINDS = ("topk", "batchtopk", "l1", "kl", "jumprelu", "matryoshka")
WITH_AUXK = ("topk", "batchtopk", "matryoshka")
PEERS = ("sae_lens", "dictionary_learning", "sparsify", "overcomplete", "plain_torch", "pyod", "sklearn")
"""the modules of this folder, besides fewfire's"""

LEARNING_RATE = 3e-4
"""everyone's: it costs no time, but decides how soon latents that are dead come back"""
PREFIXES = (1 / 32, 1 / 8, 1 / 2)
"""of a Matryoshka dictionary, as shares of the latents; all of them are the fourth"""
DEAD, ASLEEP = 0.05, 0.02
"""the share of latents that are dead in a Start if nobody says otherwise, and what is left of their encoder rows"""


@dataclass(frozen=True)
class Job:
    """What everyone is asked to do. The rows are the same tensor for all."""

    kind: str
    d: int
    n_latents: int
    k: int
    batch: int
    rows: Tensor
    threads: int = 1

    def batch_at(self, step: int) -> Tensor:
        """A view: nothing is gathered in a peer's time."""
        first = step * self.batch % len(self.rows)
        return self.rows[first : first + self.batch]


class Start(NamedTuple):
    """The same weights for everyone, some of the latents dead.

    ``z = W_enc x + b_enc`` and ``x_hat = z W_dec + b_dec``. The dead have small encoder rows, and so lose against the
    others, which is how a latent of a top-k dictionary dies.
    """

    W_enc: Tensor  # (L, D)
    b_enc: Tensor  # (L,)
    W_dec: Tensor  # (L, D), rows of norm 1
    b_dec: Tensor  # (D,)
    dead: Tensor  # (L,) bool

    @classmethod
    def untrained(cls, job: Job) -> Start:
        generator = torch.Generator().manual_seed(0)
        W = torch.nn.functional.normalize(torch.randn(job.n_latents, job.d, generator=generator), dim=1)
        return cls.with_dead(W, torch.zeros(job.n_latents), W, torch.zeros(job.d), DEAD)

    @classmethod
    def with_dead(cls, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, share: float) -> Start:
        """Copies, a share of the latents put to sleep, evenly among the others."""
        n_latents = len(W_enc)
        dead = torch.zeros(n_latents, dtype=torch.bool)
        if share:
            dead[:: round(1 / share)] = True
        size = torch.where(dead, ASLEEP, 1.0)
        return cls(W_enc * size[:, None], b_enc * size, W_dec.clone(), b_dec.clone(), dead)

    @property
    def b_enc_of_centred(self) -> Tensor:
        """The same function for those who encode ``x - b_dec``."""
        return self.b_enc + self.W_enc @ self.b_dec


class Contender:
    """A library with one model in training."""

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    package: ClassVar[str] = "torch"
    """as installed; its version goes into the results"""
    note = ""
    """what it says of itself, for the results"""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.steps_done = 0

    def step(self, x: Tensor) -> Any:
        """One training step on a batch, as the library's own trainer does it."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Any:
        """Rows to codes, in the library's own form, by the model that it would save for use."""
        raise NotImplementedError

    def decode(self, codes: Any) -> Any:
        raise NotImplementedError

    def steps(self, n: int) -> None:
        for _ in range(n):
            self.step(self.job.batch_at(self.steps_done))
            self.steps_done += 1

    def take(self, start: Start) -> None:
        """Continue from these weights, and count these latents as dead. Only of kinds with an AuxK."""

    def n_dead(self) -> int | None:
        """Latents that count as dead now; None: nobody counts them."""
        return None

    def close(self) -> None:
        """Nothing more will be asked."""


def load(name: str) -> type[Contender]:
    """The class in the file of this name."""
    return importlib.import_module(f"contenders.{name}").Peer  # type: ignore[no-any-return]


class _StandIn(MagicMock):
    __path__: ClassVar[list[str]] = []
    __spec__ = None


class _Finder(MetaPathFinder, Loader):
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.made: list[str] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in self.names else None

    def create_module(self, spec: ModuleSpec) -> Any:
        self.made.append(spec.name)
        return _StandIn(name=spec.name)

    def exec_module(self, module: Any) -> None:
        pass


@contextmanager
def stand_ins(*names: str) -> Iterator[None]:
    """While a library is imported, what it imports besides and never uses here need not be installed: nor work."""
    finder = _Finder(names)
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in names}
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.made:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)
