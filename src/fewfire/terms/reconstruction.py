"""How far the reconstruction is from the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire.contracts import ForwardOutput, TrainState
from fewfire.terms.family import Term

__all__ = ["BCE", "MSE", "MatryoshkaMSE"]


class _Reconstruction:
    """Sum over columns of some error, averaged over rows.

    ``intact``: what an error counts in a column that the corruption did not choose; in a chosen one it counts 1, also
    where the value stayed what it was. 0 is the full emphasis of Vincent et al. 2010 (section 4.5), 1/2 their double
    emphasis. Gaussian noise chooses every column. Of pairs, the columns in which they differ are chosen.
    """

    def __init__(self, weight: float = 1.0, intact: float = 1.0) -> None:
        if not 0 <= intact <= 1:
            raise ValueError(f"intact is a share: expected a number from 0 to 1, got {intact}")
        self.weight = weight
        self.intact = intact

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        if self.intact == 1:
            return self.error(out, "sum") / len(out.x)
        if out.chosen is None or out.chosen.shape != out.x.shape:
            came = "none" if out.chosen is None else f"shape {tuple(out.chosen.shape)}"
            raise ValueError(
                f"intact={self.intact:g} counts an entry by whether a corruption chose it: expected out.chosen of the "
                f"targets' shape {tuple(out.x.shape)}, got {came}; let Trainer corrupt the rows, or leave intact at 1"
            )
        error = self.error(out, "none")
        return torch.where(out.chosen, error, self.intact * error).sum() / len(out.x)

    def error(self, out: ForwardOutput, reduction: str) -> Tensor:
        raise NotImplementedError


class MSE(_Reconstruction, Term):
    """Squared error: ``mean over rows of sum over columns (recon - x)^2``. The course's L is half of it."""

    def error(self, out: ForwardOutput, reduction: str) -> Tensor:
        return F.mse_loss(out.recon, out.x, reduction=reduction)


class BCE(_Reconstruction, Term):
    """Cross-entropy of targets in [0, 1]: ``-mean over rows of sum [x log x_hat + (1-x) log(1-x_hat)]``.

    Computed from the decoder's logits, so it is finite, with a live gradient, where x_hat rounds to 0 or 1.
    """

    needs = frozenset({"output_logits"})

    def error(self, out: ForwardOutput, reduction: str) -> Tensor:
        return F.binary_cross_entropy_with_logits(out.recon_logits, out.x, reduction=reduction)


class MatryoshkaMSE(Term, name="matryoshka_mse"):
    """Every prefix of the latents reconstructs on its own: the mean over prefixes of their squared errors.

    The first latents learn what is general, since they have to do without the later ones. It takes the place of
    ``MSE``, with any activation. Bussmann et al. 2025, "Learning multi-level features with Matryoshka sparse
    autoencoders", equation 4 (there a sum).

    Parameters
    ----------
    prefixes
        How many of the first latents each prefix has, rising: whole numbers; or their shares of all, up to 1.0. All
        latents are always the last prefix.
    """

    needs = frozenset({"linear_decoder"})

    def __init__(self, weight: float = 1.0, prefixes: Sequence[float] = (1 / 32, 1 / 8, 1 / 2)) -> None:
        self.weight = weight
        self.prefixes = tuple(prefixes) if isinstance(prefixes, Sequence) else (prefixes,)
        sound = all(_is_share(p) or _is_count(p) for p in self.prefixes)
        if not sound or list(self.prefixes) != sorted(set(self.prefixes)):
            raise ValueError(
                f"expected prefixes to be rising numbers above 0, whole ones or shares up to 1.0; got {prefixes!r:.80}"
            )

    def sizes(self, n_latents: int) -> list[int]:
        """How many latents each prefix has; of n_latents, the whole, there is always one.

        Raises
        ------
        ValueError
            A prefix is longer than the latents.
        """
        sizes = [max(1, round(p * n_latents)) if _is_share(p) else int(p) for p in self.prefixes]
        if sizes and max(sizes) > n_latents:
            raise ValueError(f"expected prefixes of at most {n_latents} latents, got {max(sizes)}")
        return sorted({*sizes, n_latents})

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        latents, weight = out.latents, model.decoder.W_dec
        sizes = self.sizes(latents.shape[1])
        target = out.x.flatten(1)
        total = F.mse_loss(out.recon, out.x, reduction="sum")
        recon = model.decoder.b_dec.expand_as(target)
        for first, last in zip([0, *sizes], sizes[:-1], strict=False):
            recon = torch.addmm(recon, latents[:, first:last], weight[first:last])
            total = total + F.mse_loss(recon, target, reduction="sum")
        return total / (len(target) * len(sizes))


def _is_share(prefix: Any) -> bool:
    return isinstance(prefix, float) and 0 < prefix <= 1


def _is_count(prefix: Any) -> bool:
    return (type(prefix) is int or isinstance(prefix, np.integer)) and int(prefix) > 0
