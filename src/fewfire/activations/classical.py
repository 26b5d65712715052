"""Units of the textbook: logistic, rectified, plain, Gaussian, and winners over the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from fewfire import rng
from fewfire.activations.family import Activation
from fewfire.contracts import ForwardOutput, TrainState
from fewfire.networks import HIDDEN_ACTIVATIONS
from fewfire.terms import L1, GaussianKL, KLSparsity, Term, WeightDecay

__all__ = ["KL_WEIGHT_DECAY", "Gaussian", "Plain", "ReLU", "Sigmoid", "WinnerTakeAll"]

KL_WEIGHT_DECAY = 3e-3
"""KL bounds how active units are on average, not how large the decoder's weights are. Without weight decay the units
shrink to a faint linear code in the foot of the logistic; the textbook has both, too (Ng 2011, CS294A)."""


class Sigmoid(Activation):
    """Logistic units ``a = 1 / (1 + exp(-z))``: the course's first autoencoder. Made sparse by ``KLSparsity``."""

    gives = frozenset({"logits"})
    exact_zeros = False
    counts = "sum"

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        return torch.sigmoid(pre_acts)

    def active(self, latents: Tensor) -> Tensor:
        """A logistic unit is never 0; it counts as firing above one half."""
        return latents > 0.5

    def logits(self, pre_acts: Tensor) -> Tensor:
        return pre_acts

    def reach(self, pre_acts: Tensor) -> float:
        """Where it is small, a logistic function grows like exp."""
        return 1.0

    def derivative(self, pre_acts: Tensor) -> Tensor:
        a = torch.sigmoid(pre_acts)
        return a * (1 - a)

    def default_terms(self) -> list[Term]:
        return [KLSparsity(), WeightDecay(KL_WEIGHT_DECAY)]


class ReLU(Activation):
    """``a = max(z, 0)``. Made sparse by ``L1``: the course's second autoencoder."""

    gives = frozenset({"scores"})
    unit_norm = True
    dead_below_zero = True

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        return pre_acts.relu()

    def margins(self, pre_acts: Tensor) -> Tensor:
        return pre_acts

    def derivative(self, pre_acts: Tensor) -> Tensor:
        return (pre_acts > 0).to(pre_acts.dtype)

    def default_terms(self) -> list[Term]:
        return [L1()]


class Plain(Activation):
    """Units without sparsity: the bottleneck of a narrow autoencoder, and what the others are compared with.

    Few of them, behind hidden layers, are Hinton & Salakhutdinov 2006, "Reducing the dimensionality of data with neural
    networks"; with "identity" and one layer they span what PCA does (Baldi & Hornik 1989).

    Parameters
    ----------
    function
        "identity", "relu", "gelu", "elu", "tanh" or "sigmoid".
    """

    exact_zeros = False

    FUNCTIONS: ClassVar[dict[str, Callable[[Tensor], Tensor]]] = {"identity": lambda z: z, **HIDDEN_ACTIVATIONS}

    def __init__(self, function: str = "identity") -> None:
        super().__init__()
        if function not in self.FUNCTIONS:
            raise ValueError(f"expected function to be one of {', '.join(self.FUNCTIONS)}; got {function!r:.60}")
        self.function = function

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        return self.FUNCTIONS[self.function](pre_acts)

    def derivative(self, pre_acts: Tensor) -> Tensor | None:
        return torch.ones_like(pre_acts) if self.function == "identity" else None


class WinnerTakeAll(Activation, name="wta"):
    """Lifetime sparsity: each unit keeps the largest of its activations over the batch, and so every unit lives.

    Makhzani & Frey 2015, "Winner-Take-All Autoencoders". During training a rectified unit keeps a share ``rate`` of the
    batch, at least one row, so that it is used exactly that often: naive top-k lets few units win for ever.

    Parameters
    ----------
    rate
        Share of the rows on which each unit may fire. The batch should have several times ``1 / rate`` rows.
    spatial
        In a feature map, of each row, only the largest place competes (the paper's CONV-WTA).
    sparse_inference
        True: at inference a unit fires above the threshold that it had on average in training, so that
        reconstructions are those that were trained. False: every positive activation passes, as in the paper, which
        is often better for classifiers.
    """

    gives = frozenset({"scores"})
    unit_norm = True

    def __init__(self, rate: float = 0.05, spatial: bool = True, sparse_inference: bool = True) -> None:
        super().__init__()
        if not 0 < rate <= 1:
            raise ValueError(
                f"rate is the share of rows on which a unit fires: expected above 0, at most 1, got {rate}"
            )
        self.rate = rate
        self.spatial = spatial
        self.sparse_inference = sparse_inference

    def build(self, n_latents: int) -> None:
        self.register_buffer("threshold", torch.zeros(n_latents, dtype=torch.float32))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.threshold: Tensor
        self.seen: Tensor

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        z = pre_acts.relu()
        if state is None and not self.sparse_inference:
            return z
        maps = z.flatten(2) if z.ndim > 2 else z.unsqueeze(2)  # (B, L, places)
        if self.spatial and maps.shape[2] > 1:
            maps = maps * (maps == maps.amax(2, keepdim=True))
        if state is None:
            return (maps * (maps >= self.threshold.to(maps)[:, None])).view_as(z)
        height = maps.detach().amax(2)  # (B, L)
        winners = max(1, round(self.rate * len(height)))
        lowest = height.topk(winners, dim=0).values[-1]
        return (maps * (height >= lowest)[:, :, None]).view_as(z)

    def commit(self, out: ForwardOutput, state: TrainState) -> None:
        """The lowest activation that won, averaged: over all steps at first, over about a hundred later."""
        z = out.latents.flatten(2).amax(2) if out.latents.ndim > 2 else out.latents
        lowest = z.where(z > 0, torch.inf).amin(0)
        self.seen += 1
        recent = torch.where(lowest.isfinite(), lowest, 0.0).to(self.threshold)
        self.threshold.lerp_(recent, max(1 / int(self.seen), 0.01))


class Gaussian(Activation):
    """A normal distribution per latent, drawn from by reparameterisation in training; its mean at inference.

    ``z = mean + exp(logvar / 2) * noise``, the encoder giving mean and log-variance: the variational autoencoder of
    Kingma & Welling 2014. ``GaussianKL`` draws it to the standard normal. Scores are deterministic.
    """

    gives = frozenset({"mean_logvar", "logits"})
    n_pre = 2
    exact_zeros = False

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        mean, logvar = self.mean_logvar(pre_acts)
        if state is None:
            return mean
        generator = rng.generator(state.seed, "latents", state.step, device=mean.device)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + (logvar / 2).exp() * noise

    def mean_logvar(self, pre_acts: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2L, ...) -> means and log-variances, (B, L, ...) each.

        A log-variance beyond +-20, a standard deviation of 22,000 or its inverse, is held there, so that exp is finite.
        """
        mean, logvar = pre_acts.chunk(2, dim=1)
        return mean, logvar.clamp(-20, 20)

    def logits(self, pre_acts: Tensor) -> Tensor:
        """The means: a sparsity penalty acts on sigmoid(mean)."""
        return self.mean_logvar(pre_acts)[0]

    def default_terms(self) -> list[Term]:
        return [GaussianKL()]
