"""From pre-activations to sparse latents. One class a mechanism.

To add one, write one class here; it owns whatever thresholds or magnitudes it needs beyond the encoder's bias::

    class AbsTopK(Activation):
        def __init__(self, k=8):
            super().__init__()
            self.k = k

        def forward(self, pre_acts, state=None):
            i = pre_acts.abs().topk(self.k, dim=1).indices
            return torch.zeros_like(pre_acts).scatter(1, i, pre_acts.gather(1, i))

Then ``activation={"name": "abstopk", "k": 4}``, the command line, the model folder, checkpoints and the parametrised
tests know it. What is learned is a Parameter; what is measured (a running threshold) is a buffer, so that saving
the model saves it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewfire import rng
from fewfire.contracts import ForwardOutput, Named, TrainState
from fewfire.networks import HIDDEN_ACTIVATIONS
from fewfire.terms import L1, AuxK, GaussianKL, KLSparsity, Term, WeightDecay

__all__ = ["KL_WEIGHT_DECAY", "Activation", "Gaussian", "ReLU", "Sigmoid", "TopK", "WinnerTakeAll"]

KL_WEIGHT_DECAY = 3e-3
"""KL bounds how active units are on average, not how large the decoder's weights are. Without weight decay the units
shrink to a faint linear code in the foot of the logistic; the textbook has both, too (Ng 2011, CS294A)."""


class Activation(Named, nn.Module):
    """``latents = activation(pre_acts)``: (B, P) -> (B, L), with P = n_pre * L."""

    gives: ClassVar[frozenset[str]] = frozenset()
    """what terms may ask of it (the table in ``Term``)"""
    n_pre: ClassVar[int] = 1
    """pre-activations per latent"""
    smooth: ClassVar[bool] = True
    """False for a straight-through gradient: tests then compare with a formula, not with finite differences"""
    exact_zeros: ClassVar[bool] = True
    """False where no latent is ever 0, so that to count those that fire, or never do, says little"""
    unit_norm: ClassVar[bool] = False
    """whether decoder rows are kept at unit norm unless the user says otherwise"""

    def build(self, n_latents: int) -> None:
        """Make parameters and buffers, fill in defaults that depend on the width. Autoencoder calls it once."""

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        """``state`` is None outside training: a row's latents then depend on that row alone."""
        raise NotImplementedError

    def encode(self, x_in: Tensor, model: Any, state: TrainState | None = None) -> tuple[Tensor, Tensor]:
        """(B, *input shape) -> (pre_acts, latents). A mechanism of several passes (matching pursuit) overrides it."""
        pre_acts = model.encoder(x_in)
        return pre_acts, self(pre_acts, state)

    def active(self, latents: Tensor) -> Tensor:
        """Which latents fire: (B, L) -> (B, L) bool."""
        return latents != 0

    def commit(self, out: ForwardOutput, state: TrainState) -> None:
        """Update buffers, once the step that produced ``out`` is known to be sound."""

    def derivative(self, pre_acts: Tensor) -> Tensor | None:
        """d latents / d pre_acts where each latent depends on its own pre-activation alone: (B, L) -> (B, L).

        None: it does not, or nobody wrote it down; ``Contractive`` then differentiates.
        """
        return None

    def default_terms(self) -> list[Term]:
        """The terms that usually go with this mechanism: what makes it sparse, and what that needs."""
        return []


class Sigmoid(Activation):
    """Logistic units ``a = 1 / (1 + exp(-z))``: the course's first autoencoder. Made sparse by ``KLSparsity``."""

    gives = frozenset({"logits"})
    exact_zeros = False

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        return torch.sigmoid(pre_acts)

    def active(self, latents: Tensor) -> Tensor:
        """A logistic unit is never 0; it counts as firing above one half."""
        return latents > 0.5

    def logits(self, pre_acts: Tensor) -> Tensor:
        return pre_acts

    def derivative(self, pre_acts: Tensor) -> Tensor:
        a = torch.sigmoid(pre_acts)
        return a * (1 - a)

    def default_terms(self) -> list[Term]:
        return [KLSparsity(), WeightDecay(KL_WEIGHT_DECAY)]


class ReLU(Activation):
    """``a = max(z, 0)``. Made sparse by ``L1``: the course's second autoencoder."""

    gives = frozenset({"scores"})
    unit_norm = True

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        return pre_acts.relu()

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


class TopK(Activation):
    """The k largest positive pre-activations of each row, the others 0.

    Makhzani & Frey 2013; Gao et al. 2024. Makhzani & Frey anneal k, from many to few over the first half of training,
    to keep latents alive: ``TrainConfig(schedules={"activation.k": [[0, 100], [0.5, 25]]})``.

    Parameters
    ----------
    k
        None for a sixteenth of the latents, at least 1.
    alpha
        At inference ``alpha * k`` are kept; somewhat more than 1 makes better features (Makhzani & Frey 2013, 2.3).
    """

    gives = frozenset({"scores"})
    unit_norm = True

    def __init__(self, k: int | None = None, alpha: float = 1.0) -> None:
        super().__init__()
        if k is not None and (k < 1 or k != int(k)):
            raise ValueError(f"k is the number of latents that fire per row: expected a whole number from 1, got {k}")
        if not alpha > 0:
            raise ValueError(f"alpha multiplies k at inference: expected a number above 0, got {alpha}")
        self.k = k
        self.alpha = alpha

    def build(self, n_latents: int) -> None:
        if self.k is None:
            self.k = max(1, n_latents // 16)
        if self.k > n_latents:
            raise ValueError(f"k is at most the number of latents: expected at most {n_latents}, got {self.k}")

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        flat = pre_acts.flatten(1)
        top = flat.topk(self._k(flat.shape[1], state is None), dim=1, sorted=False)
        return torch.zeros_like(flat).scatter(1, top.indices, top.values.relu()).view_as(pre_acts)

    def _k(self, n_latents: int, inference: bool) -> int:
        if self.k is None:
            raise ValueError("TopK(k=None) learns its k from an Autoencoder; give k to use it alone")
        k = round(self.k * self.alpha) if inference else round(self.k)
        return min(max(k, 1), n_latents)

    def default_terms(self) -> list[Term]:
        return [AuxK()]


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
