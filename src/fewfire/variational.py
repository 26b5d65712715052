"""What only a variational autoencoder can do: draw new rows, walk between two, and say how likely a row is."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire import rng
from fewfire.autoencoder import Autoencoder
from fewfire.rows import as_rows, check_finite

__all__ = ["interpolate", "log_likelihood", "sample"]

MAX_VALUES_AT_ONCE = 1 << 22
"""latents drawn, or columns decoded from them, at once: 16 MiB in float32, whatever the rows, samples and columns"""
ROUNDING = 1e-3
"""how far a value may lie outside the range that it was scaled to"""


def sample(model: Autoencoder, n: int, *, seed: int = 0) -> Tensor:
    """n new rows (n, *target shape) in data space, decoded from draws of the prior N(0, 1).

    Raises
    ------
    ValueError
        The latents are not Gaussian, or ``n`` is no whole number from 1.
    """
    _check(model)
    _check_whole("n", n, 1)
    z = torch.randn(n, *model.latent_shape, generator=rng.generator(seed, "prior"), dtype=torch.float32)
    return model.decode(z)


def interpolate(model: Autoencoder, first: Any, last: Any, steps: int = 10) -> Tensor:
    """Rows on the straight line between the latents of two rows: (steps, *target shape), in data space.

    What preprocessing removes from each row by itself, such as its mean, goes from one row's to the other's as well.

    Parameters
    ----------
    first, last
        (*input shape) each, in data space.
    steps
        Rows on the line, both ends among them.

    Raises
    ------
    ValueError
        ``steps`` is no whole number from 2, or a row does not fit the model or is not finite.
    """
    _check_model(model)
    _check_whole("steps", steps, 2)
    ends = [as_rows(torch.as_tensor(row)[None], what) for row, what in ((first, "first"), (last, "last"))]
    z, z_last = (model.encode(end) for end in ends)
    share = torch.linspace(0, 1, steps, dtype=z.dtype, device=z.device).view(-1, *[1] * (z.ndim - 1))
    like = None
    if model.input_shape == model.target_shape:
        x, x_last = (end.to(z.device, z.dtype) for end in ends)
        like = x + share.view(-1, *[1] * (x.ndim - 1)) * (x_last - x)
    return model.decode(z + share * (z_last - z), like=like)


def log_likelihood(model: Autoencoder, x: Any, *, n_samples: int = 200, variance: float = 1.0, seed: int = 0) -> Tensor:
    """(B,) float64: log p(x) of each row in nats, estimated by importance sampling. Rows are taken to model space.

    ``log 1/K sum_k p(x | z_k) p(z_k) / q(z_k | x)`` with K draws of the encoder's distribution: a lower bound in
    expectation, which rises with K (Burda, Grosse & Salakhutdinov 2016, equation 8; Rezende et al. 2014, appendix E).

    Parameters
    ----------
    x
        (B, *input shape) rows in data space.
    n_samples
        K. 200 and 5,000 are the numbers in papers.
    variance
        Of the Gaussian likelihood, where outputs are not logistic: ``1 / (2 weight)`` of the MSE that was trained.
        Logistic outputs have a Bernoulli likelihood, and rows between 0 and 1.

    Raises
    ------
    ValueError
        The latents are not Gaussian, the model's targets are not its inputs, a row is not finite, or one lies outside
        [0, 1] where the outputs are logistic.
    """
    _check(model)
    _check_whole("n_samples", n_samples, 1)
    if not 0 < variance < math.inf:
        raise ValueError(f"expected a finite variance above 0, got {variance}")
    rows = as_rows(x).to(model.device)
    check_finite(rows, columns=model.layout.columns)
    if tuple(rows.shape[1:]) != model.input_shape or model.target_shape != model.input_shape:
        raise ValueError(
            f"expected rows (n, {', '.join(map(str, model.input_shape))}), and a model that gives back its own inputs; "
            f"got rows of shape {tuple(rows.shape)} and targets of {model.target_shape}"
        )
    width = max(math.prod(model.latent_shape), math.prod(model.target_shape))
    at_once = max(1, MAX_VALUES_AT_ONCE // (n_samples * width))
    parts = []
    with torch.no_grad():
        for i, part in enumerate(torch.split(rows, at_once) if len(rows) else ()):
            generator = rng.generator(seed, "importance", i, device=model.device)
            parts.append(_importance(model, part, n_samples, variance, generator))
    return torch.cat(parts).cpu() if parts else torch.empty(0, dtype=torch.float64)


def _importance(
    model: Autoencoder, rows: Tensor, n_samples: int, variance: float, generator: torch.Generator
) -> Tensor:
    """(B,) log p(x), the draws of all rows together where they fit, and otherwise a few of a row at a time."""
    activation: Any = model.activation  # one that gives mean_logvar
    mean, logvar = activation.mean_logvar(model.encoder(model.to_model_space(rows).to(model.dtype)))
    target = model.target_to_model_space(rows).to(model.dtype)
    total = torch.full((len(rows),), -math.inf, dtype=torch.float64, device=rows.device)
    most = max(1, MAX_VALUES_AT_ONCE // max(mean.numel(), target.numel()))
    for first in range(0, n_samples, most):
        k = min(most, n_samples - first)
        noise = torch.randn((k, *mean.shape), generator=generator, dtype=mean.dtype, device=mean.device)
        z = mean + (logvar / 2).exp() * noise
        # log p(z) - log q(z | x): the constants of the two normal densities cancel
        weight = ((noise.square() + logvar - z.square()) / 2).flatten(2).double().sum(2)
        logits = model.decoder(z.flatten(0, 1)).unflatten(0, (k, len(rows)))
        found = torch.logsumexp(weight + _log_p(model, logits, target, variance), 0)
        total = torch.logaddexp(total, found)
    return total - math.log(n_samples)


def _log_p(model: Autoencoder, logits: Tensor, x: Tensor, variance: float) -> Tensor:
    """log p(x | z): (K, B) for decoder outputs (K, B, *target shape)."""
    target = x.expand_as(logits)
    if model.network.output == "sigmoid":
        low, high = x.aminmax()
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise ValueError(
                "logistic outputs have a Bernoulli likelihood: expected rows between 0 and 1 in model space, which is "
                f"the range of the rows that the preprocessing was fitted to; got {float(low):.4g} to {float(high):.4g}"
            )
        return -F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(2).double().sum(2)
    squared = F.mse_loss(logits, target, reduction="none").flatten(2).double()
    return -(squared / variance + math.log(2 * math.pi * variance)).sum(2) / 2


def _check_whole(what: str, value: Any, least: int) -> None:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"expected {what} to be a whole number of at least {least}; got {value!r:.60}")


def _check_model(model: Any) -> None:
    if not isinstance(model, Autoencoder):
        raise TypeError(
            f"expected an Autoencoder, got a {type(model).__name__}; a fitted estimator's is estimator.module_, and "
            "VariationalAutoencoder has sample, interpolate and log_likelihood itself"
        )


def _check(model: Autoencoder) -> None:
    _check_model(model)
    if "mean_logvar" not in model.gives:
        raise ValueError(f"expected Gaussian latents (activation gaussian), got activation {model.activation.name!r}")
