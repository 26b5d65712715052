"""The variational autoencoder as a scikit-learn transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from fewfire import variational
from fewfire.activations import Activation
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Source
from fewfire.estimators import building
from fewfire.estimators.constraints import SHARED, positive
from fewfire.estimators.family import AutoencoderEstimator
from fewfire.rows import as_rows, column_names
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
        start, end = (self._one_row(row, what) for row, what in ((first, "first"), (last, "last")))
        line = variational.interpolate(self.module_, start, end, steps)
        return np.asarray(line.flatten(1).cpu().numpy())

    def _one_row(self, row: Any, what: str) -> Tensor:
        """(*input shape): a row, alone or as a table of one."""
        self.module_.layout.check_columns(column_names(row))
        values = as_rows(row, what)
        if values.numel() != self.n_features_in_:
            raise ValueError(
                f"expected {what} to be one row of {self.n_features_in_} columns; got shape {tuple(values.shape)}"
            )
        return values.reshape(self.module_.input_shape)

    def log_likelihood(self, X: Any, *, n_samples: int = 200, random_state: Any = 0) -> npt.NDArray[np.float64]:
        """(n,): log p(x) of each row in nats, after ``preprocess``, estimated from ``n_samples`` draws.

        A lower bound in expectation, which rises with ``n_samples`` (Burda et al. 2016, equation 8). ``X`` as in
        ``fit``; with ``loss="bce"``, rows beyond the range of those of ``fit`` have no likelihood, and are refused.
        """
        _, rows = self._read(X)
        seed = building.draw_seed(random_state)
        told = [
            variational.log_likelihood(self.module_, x, n_samples=n_samples, variance=0.5, seed=seed + i).numpy()
            for i, (_, x) in enumerate(rows)
        ]
        return np.concatenate(told)

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
