"""The contractive autoencoder as a scikit-learn transformer."""

from __future__ import annotations

from typing import Any, ClassVar

from fewfire.autoencoder import Autoencoder
from fewfire.estimators.constraints import SHARED, not_negative
from fewfire.estimators.family import AutoencoderEstimator
from fewfire.terms import Contractive, Term

__all__ = ["ContractiveAutoencoder"]


class ContractiveAutoencoder(AutoencoderEstimator):
    """Features that hardly move when the row does, but where training rows lie apart.

    ::

        cae = ContractiveAutoencoder(n_components=256, activation="sigmoid", contraction=0.1, random_state=0).fit(X)

    The loss holds the squared Frobenius norm of the encoder's Jacobian, averaged over rows. Rifai et al. 2011,
    "Contractive auto-encoders", whose units are logistic, weights tied, and loss cross-entropy:
    ``ContractiveAutoencoder(activation="sigmoid", penalty=None, tied=True, loss="bce")``.

    Parameters
    ----------
    contraction
        Weight of the norm. One layer of logistic or rectified units has it in closed form; elsewhere it is estimated
        without bias from one more backward pass a step.

    Notes
    -----
    All other parameters, and the attributes, are those of :class:`SparseAutoencoder`.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {**SHARED, "contraction": [not_negative]}

    def __init__(self, n_components: int | None = None, *, contraction: float = 0.1, **shared: Any) -> None:
        super().__init__(n_components, **shared)
        self.contraction = contraction

    def _make_terms(self, model: Autoencoder) -> list[Term]:
        return [*super()._make_terms(model), Contractive(float(self.contraction))]
