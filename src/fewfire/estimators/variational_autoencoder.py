"""The variational autoencoder as a scikit-learn transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from fewfire import variational
from fewfire.activations import Activation
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Source
from fewfire.estimators import building
from fewfire.estimators.constraints import SHARED, positive
from fewfire.estimators.family import AutoencoderEstimator
from fewfire.estimators.inputs import checked_rows
from fewfire.terms import GaussianKL, Term
from fewfire.trainer import TrainConfig

__all__ = ["VariationalAutoencoder"]

MAX_HIDDEN = 512
MAX_LATENTS = 32
HIDDEN_ACTIVATIONS = {"mse": "tanh", "bce": "relu"}
"""Standardised columns may hold rare large values; unbounded units hand them on to the log-variance, whose exponential
then sends training astray. Values between 0 and 1 do not, and rectified units describe them better."""
WARM_UP = 0.1
"""share of training over which ``beta`` rises from 0: a penalty that comes first teaches latents to say nothing
(Bowman et al. 2016, "Generating sentences from a continuous space", 3.1)"""


class VariationalAutoencoder(AutoencoderEstimator):
    """Latents that are normally distributed, so that new rows can be drawn from them.

    ::

        vae = VariationalAutoencoder(n_components=16, random_state=0).fit(X)
        Z = vae.transform(X)                    # the means: the same each time
        new = vae.sample(100, random_state=0)

    Kingma & Welling 2014, "Auto-encoding variational Bayes". With ``loss="bce"`` the likelihood is Bernoulli, for
    values between 0 and 1; with "mse" Gaussian with a variance of one half, in the units that ``preprocess`` makes.

    Parameters
    ----------
    n_components
        Number of latents; None: half of the columns, from 2 to 32.
    activation
        "gaussian", or an instance of ``Gaussian``.
    beta
        Weight of the divergence from the standard normal; above 1, latents are used more sparingly and each for one
        cause (Higgins et al. 2017, "beta-VAE"). ``fit`` raises it from 0 over the first tenth of training.
    penalty
        "auto" and None: none. "kl" and "l1" act on the means, the former on their logistic.
    hidden
        None: one layer of four times the columns, at most 512. ``()``: none.

    Notes
    -----
    All other parameters, and the attributes, are those of :class:`SparseAutoencoder`.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {**SHARED, "beta": [positive]}

    def __init__(
        self, n_components: int | None = None, *, activation: Any = "gaussian", beta: float = 1.0, **shared: Any
    ) -> None:
        super().__init__(n_components, activation=activation, **shared)
        self.beta = beta

    def sample(self, n_samples: int = 1, *, random_state: Any = None) -> npt.NDArray[Any]:
        """(n_samples, columns): new rows, decoded from draws of the standard normal, in the units of the data."""
        check_is_fitted(self)
        seed = building.draw_seed(random_state)
        return np.asarray(variational.sample(self.module_, n_samples, seed=seed).flatten(1).cpu().numpy())

    def interpolate(self, first: Any, last: Any, steps: int = 10) -> npt.NDArray[Any]:
        """(steps, columns): what lies between two rows (columns,), along the straight line between their latents."""
        check_is_fitted(self)
        ends = checked_rows(self, np.stack([np.asarray(first).ravel(), np.asarray(last).ravel()]), reset=False)
        shape = self.module_.input_shape
        start, end = (row.reshape(shape) for row in ends)
        line = variational.interpolate(self.module_, start, end, steps)
        return np.asarray(line.flatten(1).cpu().numpy())

    def log_likelihood(self, X: Any, *, n_samples: int = 200, random_state: Any = 0) -> npt.NDArray[np.float64]:
        """(n,): log p(x) of each row in nats, after ``preprocess``, estimated from ``n_samples`` draws.

        A lower bound in expectation, which rises with ``n_samples`` (Burda et al. 2016, equation 8).
        """
        check_is_fitted(self)
        X = checked_rows(self, X, reset=False)
        rows = X if isinstance(X, np.ndarray) else X.toarray()
        shape = self.module_.input_shape
        seed = building.draw_seed(random_state)
        told = variational.log_likelihood(
            self.module_, rows.reshape(-1, *shape), n_samples=n_samples, variance=0.5, seed=seed
        )
        return np.asarray(told.numpy())

    @classmethod
    def _parameters_of(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        parameters = super()._parameters_of(config)
        if parameters is None or config["activation"]["name"] != "gaussian":
            return None
        return {**parameters, "hidden": parameters["hidden"] or ()}

    def _n_latents(self, row_shape: tuple[int, ...]) -> int:
        return self.n_components or min(max(2, math.prod(row_shape) // 2), MAX_LATENTS)

    def _make_network(self, activation: Activation, source: Source) -> dict[str, Any]:
        if "mean_logvar" not in activation.gives:
            raise ValueError(
                f"expected activation='gaussian', whose latents are distributions; got {activation.name!r}, for which "
                "there is SparseAutoencoder"
            )
        width = math.prod(source.row_shape)
        hidden = (min(4 * width, MAX_HIDDEN),) if self.hidden is None else self.hidden
        return building.make_network(self, activation, hidden, HIDDEN_ACTIVATIONS[self.loss])

    def _usual_terms(self, activation: Activation) -> list[Term]:
        return []

    def _make_terms(self, model: Autoencoder) -> list[Term]:
        loss, *others = super()._make_terms(model)
        return [loss, GaussianKL(float(self.beta)), *others]

    def _fit_config(self, source: Source, model: Autoencoder, seed: int) -> TrainConfig:
        config = super()._fit_config(source, model, seed)
        if config.optimizer == "lbfgs":
            raise ValueError("the loss is drawn anew each step, which lbfgs cannot follow; use optimizer='adam'")
        points = [(0.0, 0.0), (WARM_UP, float(self.beta))]
        return config.model_copy(update={"schedules": {f"{GaussianKL.name}.weight": points}})
