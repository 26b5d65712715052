"""The terms that a Trainer lowers."""

from __future__ import annotations

from collections.abc import Sequence

from fewfire.autoencoder import Autoencoder
from fewfire.engines.autograd import labelled
from fewfire.terms import MSE, Term
from fewfire.trainer.refusals import check_needs

__all__ = ["objective_of"]


def objective_of(model: Autoencoder, terms: Sequence[Term] | None) -> dict[str, Term]:
    """The terms by label, or those that usually go with the model; refused where it lacks what they need."""
    objective = labelled(tuple(terms if terms is not None else _default_terms(model)))
    if not objective:
        raise ValueError("nothing to lower: expected at least one term, such as mse, in the objective; got none")
    for term in objective.values():
        check_needs(term, model)
    return objective


def _default_terms(model: Autoencoder) -> list[Term]:
    """Squared error, and what usually goes with the activation as far as this model gives what it needs."""
    return [MSE(), *(term for term in model.activation.default_terms() if term.needs <= model.gives)]
