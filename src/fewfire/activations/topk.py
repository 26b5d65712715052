"""The k largest, of each row or of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from fewfire.activations.family import Activation
from fewfire.contracts import ForwardOutput, TrainState
from fewfire.kernels import Kernels
from fewfire.terms import AuxK, Term

__all__ = ["BatchTopK", "TopK"]


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
        self._most = n_latents

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        flat = pre_acts.flatten(1)
        top = flat.topk(self.kept(flat.shape[1], state is None), dim=1, sorted=False)
        return torch.zeros_like(flat).scatter(1, top.indices, top.values.relu()).view_as(pre_acts)

    def kept(self, n_latents: int, inference: bool) -> int:
        """How many latents of a row fire."""
        if self.k is None:
            raise ValueError("TopK(k=None) learns its k from an Autoencoder; give k to use it alone")
        k = round(self.k * self.alpha) if inference else round(self.k)
        return min(max(k, 1), n_latents)

    def find(self, kernels: Kernels, x_in: Tensor, n_latents: int) -> None:
        kernels.largest(x_in, self.kept(n_latents, inference=True))

    def set_k(self, n_active: float) -> bool:
        self.k = min(max(1, round(n_active / self.alpha)), self._most)
        return True

    def default_terms(self) -> list[Term]:
        return [AuxK()]


class BatchTopK(Activation):
    """The ``k * B`` largest positive pre-activations of a batch of B rows: k per row on average, more where needed.

    Bussmann, Leask & Nanda 2024, "BatchTopK sparse autoencoders". At inference a latent fires above one threshold: a
    row's codes never depend on its neighbours. During training it is what the last batches had on average; when
    training ends, what lets k fire on training rows.

    Parameters
    ----------
    k
        Mean number per row; it need not be whole. None: a sixteenth of the latents, at least 1.
    """

    gives = frozenset({"scores"})
    unit_norm = True

    def __init__(self, k: float | None = None) -> None:
        super().__init__()
        if k is not None and not k > 0:
            raise ValueError(f"k is the mean number of latents that fire per row: expected above 0, got {k}")
        self.k = k

    def build(self, n_latents: int) -> None:
        if self.k is None:
            self.k = float(max(1, n_latents // 16))
        if self.k > n_latents:
            raise ValueError(f"k is at most the number of latents: expected at most {n_latents}, got {self.k:g}")
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float32))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.threshold: Tensor
        self.seen: Tensor

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        z = pre_acts.relu()
        return z * (z > (self.threshold if state is None else self._lowest(z)))

    def _lowest(self, z: Tensor) -> Tensor:
        """What latents of this batch must exceed for ``k`` of them to fire per row. z: (B, ...) rectified."""
        flat = z.detach().flatten()
        n_kept = self.kept(len(z), len(flat) // max(1, len(z)))
        if n_kept == len(flat):
            return flat.new_zeros(())
        return torch.kthvalue(flat, len(flat) - n_kept).values

    def kept(self, n_rows: int, n_latents: int) -> int:
        """How many latents of a batch's rows fire."""
        if self.k is None:
            raise ValueError("BatchTopK(k=None) learns its k from an Autoencoder; give k to use it alone")
        return min(max(round(self.k * n_rows), 1), n_rows * n_latents)

    def find(self, kernels: Kernels, x_in: Tensor, n_latents: int) -> None:
        kernels.above(x_in, self.threshold.clamp_min(0).expand(n_latents).contiguous())

    def commit(self, out: ForwardOutput, state: TrainState) -> None:
        self.learn_threshold(self._lowest(out.pre_acts.relu()))

    def learn_threshold(self, lowest: Tensor) -> None:
        """Average what latents had to exceed: over half of the batches at first, over about twenty later."""
        self.seen += 1
        self.threshold.lerp_(lowest.to(self.threshold), max(2 / (1 + int(self.seen)), 0.05))

    def settle(self, pre_acts: Tensor) -> None:
        """The average lags behind weights that move: once they rest, rows tell the threshold itself."""
        self.threshold.copy_(self._lowest(pre_acts.relu()))

    def derivative(self, pre_acts: Tensor) -> Tensor:
        return (pre_acts.relu() > self.threshold).to(pre_acts.dtype)

    def margins(self, pre_acts: Tensor) -> Tensor:
        return (pre_acts - self.threshold.to(pre_acts.dtype)).where(pre_acts > 0, -torch.inf)

    def raise_threshold(self, amount: Tensor) -> bool:
        if amount.ndim:  # one threshold for all
            return False
        self.threshold.add_(amount.to(self.threshold)).clamp_(min=0)
        return True

    def default_terms(self) -> list[Term]:
        return [AuxK()]
