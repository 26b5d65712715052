"""What training lowers: a weighted sum of terms. One class a term.

Conventions, the same for every term: a term sums over columns or latents and averages over the rows of the batch,
so that ``MSE(weight=0.5)`` plus ``KLSparsity(weight=beta)`` plus ``WeightDecay(weight=lambda)`` is the objective of the
course, letter by letter (docs/textbook.md). ``weight`` is read at every step, so a schedule may change it.

To add one, write one class here::

    class Hoyer(Term):
        def __call__(self, model, out, state=None):
            ...

and ``objective: [mse, {name: hoyer, weight: 0.001}]``, the command line and the parametrised tests know it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire import rng
from fewfire.contracts import ForwardOutput, Named, TrainState

__all__ = ["BCE", "L1", "MSE", "AuxK", "Contractive", "GaussianKL", "KLSparsity", "Term", "WeightDecay"]

NOTHING = 0.05
"""share of variance explained, below which a sparse model has learned nothing worth having"""


class Term(Named):
    """A scalar to lower, given the model and one forward pass.

    ``needs`` names what the model must give; a model whose ``gives`` lacks it is refused with a sentence:

    ============== ==================================================================================
    logits         ``activation.logits(pre_acts)``: the latents are logistic functions of these
    scores         ``pre_acts`` (B, L) rank the latents, one each
    linear_encoder ``encoder.W_enc`` (P, D): the pre-activations are linear in the input
    linear_decoder ``decoder.W_dec`` (L, D): the reconstruction is linear in the latents
    output_logits  ``out.recon_logits``: the reconstruction is a logistic function of these
    mean_logvar    ``activation.mean_logvar(pre_acts)``: the latents are Gaussian
    ============== ==================================================================================
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    weight: float

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        """The term's value before its weight: a scalar. ``state`` is None outside training."""
        raise NotImplementedError

    def verdict(self, summary: Mapping[str, float]) -> str | None:
        """A sentence when training ended without this term having done its work.

        ``summary``: evaluate's dict; ``n_positions``, the number of latents with every position of a map counted; and
        ``logistic``, 0 where ``mean_activation`` is that of Gaussian latents and says nothing of a mean of sigmoids.
        """
        return None


# ------------------------------------------------------------------------------------------ reconstruction


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


# ------------------------------------------------------------------------------------------------ sparsity


class KLSparsity(Term, name="kl"):
    """The course's sparsity penalty: ``sum_j KL(rho || rho_hat_j)``, rho_hat_j the mean activation of unit j.

    ``KL(rho || r) = rho log(rho / r) + (1 - rho) log((1 - rho) / (1 - r))``, with both logarithms taken from the
    logits. The textbook form loses the unit for good once it saturates: log 0 is infinite, and clamping the mean
    makes its gradient exactly 0. Here the value is finite and the gradient alive at logits of +-10,000.

    The mean is over the rows of the batch. KL is convex, so mini-batches of B rows overstate the penalty of the
    whole set (Jensen), by about ``(rho / r^2 + (1 - rho) / (1 - r)^2) sigma^2 / 2B`` for a unit of mean r and
    variance sigma^2. With ``optimizer="lbfgs"`` the batch is the whole set and there is no bias (docs/textbook.md).

    Ng 2011, CS294A lecture notes, section 3. On a Gaussian latent it acts on sigmoid(mean).

    ``per_map``: of convolutional latents, the mean is over the places of a map as well, so that a map as a whole is
    active ``rho`` of the time; else each place of it is a unit of its own.
    """

    needs = frozenset({"logits"})

    def __init__(self, weight: float = 3.0, rho: float = 0.05, per_map: bool = False) -> None:
        if not 0 < rho < 1:
            raise ValueError(f"rho is a mean activation: expected a number between 0 and 1, got {rho}")
        self.weight = weight
        self.rho = rho
        self.per_map = per_map

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        rho, z = self.rho, model.activation.logits(out.pre_acts)
        if self.per_map and z.ndim > 2:
            z = z.flatten(2).transpose(1, 2).flatten(0, 1)  # (rows * places, maps)
        log_rho_hat, log_one_minus_rho_hat = _log_mean_logistic(z)
        kl = rho * (math.log(rho) - log_rho_hat) + (1 - rho) * (math.log1p(-rho) - log_one_minus_rho_hat)
        return kl.sum()

    def verdict(self, summary: Mapping[str, float]) -> str | None:
        mean = summary["mean_activation"]
        if not summary.get("logistic", 1.0) or mean <= 2 * self.rho:  # of a Gaussian latent, it is the mean's mean
            return _too_strong("KL", self.weight, summary)
        target = f"mean activation {mean:.3g}, rho {self.rho:g}"
        if summary["explained_variance"] < NOTHING:  # more weight would see to it that nothing is learned
            return (
                f"the KL penalty did not reach its target: {target}, and nothing else was learned; "
                f"train longer before you raise its weight (now {self.weight:g})"
            )
        return (
            f"the KL penalty did not reach its target: {target}; "
            f"raise its weight (now {self.weight:g}) by degrees, or train longer"
        )


def _log_mean_logistic(z: Tensor) -> tuple[Tensor, Tensor]:
    """(log of the mean of sigmoid(z), log of the mean of sigmoid(-z)), over the rows. (B, ...) -> (...).

    1 - rho_hat is the mean of sigmoid(-z), which keeps the digits that a subtraction from 1 loses.
    """
    if z.detach().abs().amax() < 80:  # neither mean can underflow, in float32 either
        return torch.sigmoid(z).mean(0).log(), torch.sigmoid(-z).mean(0).log()
    log_n = math.log(len(z))
    return torch.logsumexp(F.logsigmoid(z), 0) - log_n, torch.logsumexp(F.logsigmoid(-z), 0) - log_n


class L1(Term, name="l1"):
    """``mean over rows of sum_j |a_j|``: the course's second penalty.

    A linear decoder can grow while the activations shrink, and the penalty then costs nothing. Either keep its rows
    at unit norm (``network={"name": "linear", "unit_norm": True}``, the default with ReLU units), or set
    ``by_decoder_norm``, which weighs |a_j| by the norm of the decoder row it multiplies.

    The default weight suits data whose columns have variance near 1 (preprocess "standardize" or "center").
    """

    def __init__(self, weight: float = 1.0, by_decoder_norm: bool = False) -> None:
        self.weight = weight
        self.by_decoder_norm = by_decoder_norm
        if by_decoder_norm:
            self.needs = frozenset({"linear_decoder"})  # type: ignore[misc]  # this instance needs more than its class

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        size = out.latents.abs()
        if self.by_decoder_norm:
            size = size * model.decoder.W_dec.norm(dim=1)
        return size.sum() / len(size)

    def verdict(self, summary: Mapping[str, float]) -> str | None:
        l0, n_positions = summary["l0"], summary["n_positions"]
        if not summary.get("logistic", 1.0) or l0 <= n_positions / 2:  # a Gaussian latent is never exactly 0
            return _too_strong("L1", self.weight, summary)
        return (
            f"the L1 penalty did nothing: {l0:.1f} of {n_positions:g} latents fire per row; "
            f"raise its weight (now {self.weight:g}) by degrees"
        )


def _too_strong(penalty: str, weight: float, summary: Mapping[str, float]) -> str | None:
    """Latents may also be sparse because they say nothing: a penalty that is met is no success by itself."""
    explained = summary["explained_variance"]
    if not summary.get("logistic", 1.0) or not explained < NOTHING:  # not a number: no row varies
        return None
    return (
        f"the {penalty} penalty is met, but the model has learned nothing: {max(explained, 0.0):.1%} of variance "
        f"explained; lower the penalty's weight (now {weight:g}), or train longer"
    )


class AuxK(Term):
    """Dead latents explain what the living leave over: ``||e - e_hat||^2`` averaged over rows.

    ``e = x - x_hat`` is a constant here; ``e_hat`` decodes, without bias, the ``k_aux`` largest pre-activations
    among the dead latents. Its gradient reaches the dead rows of the encoder and of the decoder, and nothing else
    revives them. Gao et al. 2024, "Scaling and evaluating sparse autoencoders", A.2.

    ``k_aux``: None for half the input width, as in the paper.
    """

    needs = frozenset({"scores", "linear_decoder"})

    def __init__(self, weight: float = 1 / 32, k_aux: int | None = None) -> None:
        if k_aux is not None and k_aux < 1:
            raise ValueError(
                f"k_aux is a number of dead latents: expected at least 1, or None for half the width; got {k_aux}"
            )
        self.weight = weight
        self.k_aux = k_aux

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        dead = state.dead.nonzero().squeeze(1) if state is not None else None
        if dead is None or len(dead) == 0:
            return out.recon.new_zeros(())
        k = min(self.k_aux or max(1, math.prod(out.x.shape[1:]) // 2), len(dead))
        top = out.pre_acts[:, dead].relu().topk(k, dim=1, sorted=False)
        residual = (out.x - out.recon).detach().flatten(1)
        estimate = F.embedding_bag(dead[top.indices], model.decoder.W_dec, per_sample_weights=top.values, mode="sum")
        return F.mse_loss(estimate, residual, reduction="sum") / len(residual)


# --------------------------------------------------------------------------------------------- variational


class GaussianKL(Term, name="gaussian_kl"):
    """``mean over rows of sum_j KL(N(mean_j, var_j) || N(0, 1))``, in closed form.

    ``1/2 (mean^2 + var - 1 - log var)``: Kingma & Welling 2014, appendix B. The weight is the beta of Higgins et al.
    2017; a schedule of it (``gaussian_kl.weight``) is a warm-up. ``MSE(weight=0.5)`` beside it is a Gaussian likelihood
    of unit variance, ``BCE()`` a Bernoulli one.

    ``free_bits``: nats per latent, averaged over the batch, that cost nothing extra, so that a latent is not given up
    before it was used (Kingma et al. 2016, appendix C.8).
    """

    needs = frozenset({"mean_logvar"})

    def __init__(self, weight: float = 1.0, free_bits: float = 0.0) -> None:
        if not free_bits >= 0:
            raise ValueError(f"free_bits are nats per latent: expected a number from 0, got {free_bits}")
        self.weight = weight
        self.free_bits = free_bits

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        mean, logvar = model.activation.mean_logvar(out.pre_acts)
        # expm1 keeps the digits near the prior, where var - 1 - log var is the square of something small
        kl = (mean.square() + (torch.expm1(logvar) - logvar)) / 2
        per_latent = kl.sum(0) / len(kl)
        total: Tensor = (per_latent.clamp_min(self.free_bits) if self.free_bits else per_latent).sum()
        return total

    def verdict(self, summary: Mapping[str, float]) -> str | None:
        if summary["explained_variance"] > 0.01:
            return None
        return (
            f"the latents carry nothing about the rows (posterior collapse); lower the weight of {self.name} "
            f"(now {self.weight:g}), raise it slowly by a schedule, or give it free_bits"
        )


# ------------------------------------------------------------------------------------------- regularisation


class WeightDecay(Term, name="weight_decay"):
    """``1/2 sum of squared weights``, biases left out: the course's regularisation with its lambda as weight."""

    def __init__(self, weight: float = 1e-4) -> None:
        self.weight = weight

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        weights = [p for p in model.parameters() if p.ndim > 1]
        return torch.stack([w.square().sum() for w in weights]).sum() / 2


class Contractive(Term):
    """``mean over rows of ||J||_F^2``, J the derivatives of the latents with respect to the input, as at inference.

    Latents that hardly move when the row does. Rifai et al. 2011, "Contractive Auto-Encoders", equation 3. Where one
    linear layer leads to latents that depend on their own pre-activation alone, in closed form:
    ``sum_j f'(z_j)^2 ||W_j||^2`` (their equation 5).

    Parameters
    ----------
    method
        "exact": the closed form where there is one, else one backward pass per latent. "hutchinson": an unbiased
        estimate from ``probes`` backward passes, ``E_v ||v^T J||^2`` over random signs v. "auto": the closed form
        where there is one, else the estimate.
    probes
        How many random sign vectors per row the estimate averages over.
    """

    METHODS = ("auto", "exact", "hutchinson")

    def __init__(self, weight: float = 0.1, method: str = "auto", probes: int = 1) -> None:
        if method not in self.METHODS:
            raise ValueError(f"expected method to be one of {', '.join(self.METHODS)}; got {method!r}")
        if probes < 1:
            raise ValueError(f"expected at least one probe, got {probes}")
        self.weight = weight
        self.method = method
        self.probes = probes

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        slope = model.activation.derivative(out.pre_acts)
        if self.method != "hutchinson" and slope is not None and "linear_encoder" in model.gives:
            closed: Tensor = (slope.square() @ model.encoder.W_enc.square().sum(1)).mean()
            return closed
        keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = out.x_in.detach().requires_grad_()
            latents = model.codes(x)[1].flatten(1)
            total = x.new_zeros(())
            for v in self._vectors(latents, state):
                (row,) = torch.autograd.grad(latents, x, v.expand_as(latents), create_graph=True)
                total = total + row.square().sum()
        n_samples = self.probes if self._estimates else 1
        total = total / (n_samples * len(x))
        return total if keep_graph else total.detach()

    @property
    def _estimates(self) -> bool:
        return self.method != "exact"

    def _vectors(self, latents: Tensor, state: TrainState | None) -> Iterator[Tensor]:
        """Random signs, or each latent in turn: what J is multiplied with from the left."""
        if not self._estimates:
            yield from torch.eye(latents.shape[1], dtype=latents.dtype, device=latents.device)
            return
        key = (0, "held out") if state is None else (state.seed, state.step)
        generator = rng.generator(*key, "contractive", device=latents.device)
        for _ in range(self.probes):
            yield torch.randint(0, 2, latents.shape, generator=generator, device=latents.device).to(latents) * 2 - 1
