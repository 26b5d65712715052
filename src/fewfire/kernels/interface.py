"""What a training step on sparse codes asks of the kernels, in the order in which it asks.

Two classes answer: ``ReferenceKernels`` (``reference.py``, plain torch, the truth) and ``NativeKernels``
(``native.py``, compiled). Neither ever holds all pre-activations (B, L), nor, if it can help it, a gradient of the
weights.

Every tensor is float32, contiguous, on the CPU and finite but for what the docstrings say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

__all__ = ["AdamStep", "Codes", "Kernels", "Loss", "Outcome", "Weights"]


class Weights(NamedTuple):
    """A linear encoder and decoder, changed in place by ``Kernels.update``."""

    W_enc: Tensor
    """(L, D)"""
    b_enc: Tensor
    """(L,)"""
    W_dec: Tensor
    """(L, D of the target)"""
    b_dec: Tensor
    unit_norm: bool
    """rows of W_dec stay at norm 1"""


@dataclass(frozen=True)
class Loss:
    """The objective's slopes, where codes are what decides.

    It is ``sum over p of slope_p / 2 * (squared error of the reconstruction from the latents below prefix_p)``, and
    ``l1`` times the sum of latents, both summed over the rows, plus what counts those that fire.
    """

    prefixes: tuple[int, ...]
    """rising; the last is L"""
    slopes: tuple[float, ...]
    l1: float = 0.0
    threshold: Tensor | None = None
    """(L,): entries are 0 up to here, and thresholds learn; None: every entry is what it is"""
    width: float = 1.0
    """of the window around the threshold in which it learns"""
    step_slope: float = 0.0
    """what an entry costs by firing"""


class Codes(NamedTuple):
    """Entries of rows: row r has those from ``start[r]`` to ``start[r + 1]``, by rising latent."""

    start: Tensor
    """(B + 1,) int64"""
    latent: Tensor
    """(entries,) int32"""
    z: Tensor
    """(entries,) pre-activations"""
    finite: Tensor
    """(B,) bool; a row that holds NaN or infinity has no entries"""


class Outcome(NamedTuple):
    """What a step cost, before anything has changed."""

    errors: list[float]
    """squared errors summed over the rows, for each prefix"""
    fired: Tensor
    """(L,) bool"""
    active: int
    """entries that are not 0"""
    total: float
    """sum of the entries"""
    largest: float
    """no entry of a gradient is larger; infinity or NaN where rows, weights or errors are not finite"""


class AdamStep(NamedTuple):
    """Adam's state for W_enc, b_enc, W_dec, b_dec, changed in place, and the numbers of this step."""

    average: tuple[Tensor, ...]
    square: tuple[Tensor, ...]
    steps: tuple[float, ...]
    """which step this is for each of them, from 1"""
    lr: float
    beta1: float
    beta2: float
    eps: float


class Kernels(Protocol):
    """Memory and work of one engine. ``pack``, then rows, then what follows from them; each call leaves its answer
    inside for the next."""

    def pack(self, W_enc: Tensor, b_enc: Tensor) -> None:
        """Read the encoder's weights as they are now."""

    def largest(self, x: Tensor, k: int) -> None:
        """Codes of rows x (B, D): the k largest pre-activations of each that are above 0."""

    def above(self, x: Tensor, thresholds: Tensor) -> None:
        """Codes of rows x (B, D): pre-activations above thresholds (L,)."""

    def keep(self, n: int) -> float | None:
        """Of the codes, those that exceed the (n + 1)-th largest, which is returned. None: there are not so many."""

    def codes(self) -> Codes:
        """A copy of the codes."""

    def reconstruct(self, weights: Weights, x_in: Tensor, x: Tensor, loss: Loss) -> Outcome:
        """What the codes of rows x_in make of targets x (B, D of the target)."""

    def left_over(self) -> Tensor:
        """What the reconstruction from all latents lacks, x - recon: (B, D of the target)."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """(M, D) times (N, D) transposed: (M, N)."""

    def join(self, latents: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> None:
        """Let gradients of some latents (their number, ...) join those of the codes, at this step. latents: int32."""

    def revive(self, dead: Tensor, k: int, slope: float) -> tuple[float, float]:
        """AuxK: the k largest pre-activations among latents ``dead`` (int32, rising) reconstruct what is left over.

        Their squared error times ``slope / 2`` joins the objective. (squared error summed over the rows, ``largest``
        with theirs). Where few are dead, products of whole matrices are faster: ``left_over``, ``product`` and
        ``join``.
        """

    def norm(self) -> float:
        """The Euclidean norm of the whole gradient."""

    def update(self, adam: AdamStep, factor: float, threshold_gradient: Tensor | None) -> None:
        """One step of Adam, the gradient times ``factor``; that of thresholds goes to ``threshold_gradient`` (L,)."""
