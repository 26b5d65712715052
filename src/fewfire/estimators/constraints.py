"""What each parameter may be. The one place that uses scikit-learn's private names."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from sklearn.utils._param_validation import Interval, StrOptions

from fewfire.activations import Activation
from fewfire.preprocess import Preprocess

__all__ = ["SHARED", "check_parameters", "fraction", "positive", "share", "whole"]

whole = Interval(Integral, 1, None, closed="left")
positive = Interval(Real, 0, None, closed="neither")
not_negative = Interval(Real, 0, None, closed="left")
fraction = Interval(Real, 0, 1, closed="left")
share = Interval(Real, 0, 1, closed="neither")

# Names of members, such as an activation's, are only checked to be text: the families know their members, also
# those that a user adds, and refuse others with a list.
SHARED: dict[str, list[Any]] = {
    "n_components": [whole, None],
    "activation": [str, dict, Activation],
    "k": [whole, None],
    "loss": [StrOptions({"mse", "bce"})],
    "penalty": [StrOptions({"auto", "kl", "l1"}), None],
    "penalty_weight": [not_negative, None],
    "rho": [share, None],
    "target_l0": [positive, None],
    "weight_decay": [not_negative, None],
    "hidden": [tuple, list, None],
    "tied": ["boolean"],
    "preprocess": [str, dict, list, tuple, Preprocess, None],
    "batch_size": [whole, None],
    "max_epochs": [whole, None],
    "learning_rate": [positive, None],
    "optimizer": [StrOptions({"adam", "lbfgs"})],
    "validation_fraction": [fraction],
    "dtype": [StrOptions({"float32", "float64", "bfloat16"})],
    "device": [str],
    "random_state": ["random_state"],
    "sparse_output": ["boolean"],
    "verbose": ["verbose"],
}


def check_parameters(estimator: Any) -> None:
    """Refuse parameters that its ``_parameter_constraints`` do not allow, in scikit-learn's words.

    Raises
    ------
    sklearn.utils._param_validation.InvalidParameterError
        Which is a ValueError and a TypeError.
    """
    estimator._validate_params()
