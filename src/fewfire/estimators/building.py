"""From an estimator's parameters to the model, the terms and the settings that train it.

Only what was set and cannot apply is refused; a parameter at its default adapts.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fewfire.activations import KL_WEIGHT_DECAY, Activation
from fewfire.autoencoder import Autoencoder, default_latents
from fewfire.contracts import Batch, Source
from fewfire.networks import LinearDecoder, LinearEncoder, MlpEncoder
from fewfire.preprocess import Preprocess
from fewfire.preprocess import make_preprocess as preprocess_from
from fewfire.rows import check_finite
from fewfire.terms import BCE, L1, MSE, AuxK, GatedAux, KLSparsity, L0Penalty, Term, WeightDecay
from fewfire.trainer import TrainConfig, start_activation, start_sparse

__all__ = [
    "draw_seed",
    "fit_config",
    "has_pairs",
    "hold_out",
    "make_activation",
    "make_network",
    "make_preprocess",
    "make_terms",
    "n_latents",
    "start",
    "stream_config",
]

HIDDEN_ACTIVATION = "elu"
"""Hidden layers of mean about 0. Behind rectified ones, whose mean is not, the same few latents win on every row: on
the digits a third of them never fires with "relu", a hundredth with "elu"."""

LEARNING_RATE = 4e-3
"""For up to 256 latents; beyond, it falls with their square root (Gao et al. 2024, section 3)."""

FEWEST_STEPS, MOST_STEPS = 300, 1500
"""As many steps as rows between these two, and at least one pass: what a person waits for at a prompt."""

LBFGS_STEPS = 400

BATCH_SIZE = 256
LOG_LINES = 50
VALIDATIONS, PATIENCE = 100, 10
"""at most so many validations; so many without a better loss end training"""

DEAD_AFTER_BATCHES = 100
"""in a stream, whose length nobody knows"""

BCE_SCALE = 0.1
"""of the penalties' default weights beside cross-entropy: between minimum and maximum, columns hold about a tenth of
what standardised ones have to explain"""

NEVER = 1 << 62
AT_ONCE, START_ROWS = 8192, 1024
PENALTIES: dict[str, type[Term]] = {"kl": KLSparsity, "l1": L1}
BESIDE_THE_LOSS = (KLSparsity, L1, L0Penalty)
"""penalties whose default weights suit squared errors of standardised columns"""
HELPERS = (AuxK, GatedAux)
"""terms that make a mechanism work, and penalise nothing"""


def draw_seed(random_state: Any) -> int:
    """The one number that everything random in a fit is drawn from. None: fresh entropy of the operating system."""
    if random_state is None:
        return secrets.randbits(31)
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if not isinstance(random_state, int | np.integer):
        raise ValueError(
            f"expected random_state to be a whole number, a RandomState or None; got {str(random_state)[:60]!r}"
        )
    return int(random_state)


# ---------------------------------------------------------------------------------------------- the model


def n_latents(estimator: Any, row_shape: tuple[int, ...]) -> int:
    return estimator.n_components or default_latents(row_shape)


def make_activation(estimator: Any) -> Activation:
    activation = Activation.from_config(estimator.activation)
    if estimator.k is None:
        return activation
    settings = activation.config()
    if "k" not in settings:
        raise ValueError(
            f"k={estimator.k} is how many latents fire per row, which activation={activation.name!r} does not fix; "
            "leave k out, or use activation='topk'"
        )
    if settings["k"] not in (None, estimator.k):
        raise ValueError(f"k={estimator.k} and activation {estimator.activation!r} disagree; give k once")
    return Activation.from_config({**settings, "k": estimator.k})


def make_network(
    estimator: Any,
    activation: Activation,
    hidden: Sequence[int] | None,
    hidden_activation: str = HIDDEN_ACTIVATION,
) -> dict[str, Any]:
    """Linear, or deep where there are hidden layers."""
    has_l1 = any(isinstance(term, L1) for term in _wanted(estimator, activation))
    # L1 without it: the decoder grows as the latents shrink, and the penalty costs nothing. L-BFGS cannot keep it.
    may_grow = (estimator.tied and not activation.tied) or estimator.optimizer == "lbfgs"
    unit_norm = (activation.unit_norm or has_l1) and not may_grow
    output = "sigmoid" if estimator.loss == "bce" else "identity"
    if hidden:
        layers = {"name": "mlp", "hidden": list(hidden), "hidden_activation": hidden_activation}
        unit_norm = unit_norm and not estimator.tied
        return layers | {"tied": bool(estimator.tied), "output": output, "unit_norm": unit_norm}
    # not asked for, they are tied where the activation wants it
    return {"name": "linear", "tied": bool(estimator.tied) or None, "output": output, "unit_norm": unit_norm}


def make_preprocess(estimator: Any) -> Any:
    """Standardised columns do not lie between 0 and 1, as cross-entropy needs: its default is "minmax"."""
    default = estimator.preprocess == "standardize"
    made = preprocess_from("minmax" if default and estimator.loss == "bce" else estimator.preprocess)
    return made.config() if made is not None else None  # never the user's own instance, which may be fitted


@torch.no_grad()
def start(model: Autoencoder, source: Source, terms: Sequence[Term], seed: int, target_l0: float | None = None) -> None:
    """Fit the preprocessing, and set biases and thresholds to where training would spend its first half on taking them.

    A decoder that starts from the mean row, and an encoder that reads rows less their mean, leave all latents alive:
    of rows that are all positive, as "minmax" makes them, the same few latents otherwise win each (Bricken et al.
    2023, "Towards monosemanticity", start from the median likewise). Logistic units start at the mean activation that
    KL asks for: a bias moves by the learning rate a step, and from one half it is 3 / 0.004 steps away.
    """
    columns = source.layout.columns
    for preprocess, side in ((model.preprocess, "x_in"), (model.preprocess_out, "x")):
        if preprocess is not None and not preprocess.fitted:
            _fit(preprocess, source, side)
    start_sparse(model, terms)
    some = next(iter(source.batches(AT_ONCE, seed=seed)))
    rows = model.to_model_space(_finite(some.x_in, some, columns)).to(model.dtype)
    targets = model.target_to_model_space(_finite(some.x, some, columns)).to(model.dtype)
    logistic = model.network.output == "sigmoid"
    low, high = float(targets.min()), float(targets.max())
    if logistic and not 0 <= low <= high <= 1:
        raise ValueError(
            f"loss='bce' takes values from 0 to 1, after the preprocessing these lie between {low:.4g} and {high:.4g}; "
            "use preprocess='minmax', or loss='mse'"
        )
    if type(model.encoder) in (LinearEncoder, MlpEncoder):  # a filter that slides has one bias for all places
        mean, constant = targets.mean(0), targets.amin(0) == targets.amax(0)
        # the decoder first: where it is tied, it drops weights that the encoder's bias must not make up for
        cast(LinearDecoder, model.decoder).start_from(torch.logit(mean, eps=1e-3) if logistic else mean, constant)
        cast(LinearEncoder, model.encoder).centre(rows.mean(0))
    start_activation(model, (), rows[:START_ROWS], target_l0)


def _fit(preprocess: Preprocess, source: Source, side: str) -> None:
    """To the rows (``x_in``), or to what is to be made of them (``x``)."""
    columns = source.layout.columns
    preprocess.fit(lambda: (_finite(getattr(b, side), b, columns) for b in source.batches(AT_ONCE, shuffle=False)))


def _finite(x: Tensor, batch: Batch, columns: Sequence[str]) -> Tensor:
    check_finite(x, "X" if x is batch.x_in else "the clean rows", batch.rows, columns)
    return x


# ---------------------------------------------------------------------------------------------- the objective


def make_terms(estimator: Any, model: Autoencoder) -> list[Term]:
    """Reconstruction, the penalty, what else usually goes with the activation, weight decay."""
    _check_target(estimator, model)
    cross_entropy = estimator.loss == "bce"
    scale = BCE_SCALE if cross_entropy else 1.0
    wanted = [term for term in _wanted(estimator, model.activation) if term.needs <= model.gives]
    penalties = [term for term in wanted if not isinstance(term, HELPERS)]
    _check_penalties(estimator, model, penalties)
    decay = estimator.weight_decay or 0.0
    for term in penalties:
        default = term.weight * (scale if isinstance(term, BESIDE_THE_LOSS) else 1.0)
        term.weight = default if estimator.penalty_weight is None else float(estimator.penalty_weight)
        if isinstance(term, KLSparsity):
            term.rho = estimator.rho or term.rho
            if estimator.target_l0 is not None:
                term.rho = estimator.target_l0 / math.prod(model.latent_shape)
            decay = KL_WEIGHT_DECAY * scale if estimator.weight_decay is None else decay
    terms = [BCE() if cross_entropy else MSE(), *(_safe_from_growth(term, model) for term in wanted)]
    return [*terms, WeightDecay(float(decay))] if decay else terms


def _wanted(estimator: Any, activation: Activation) -> list[Term]:
    """The terms beside the loss: the activation's own, with another penalty if one was named; or none."""
    if estimator.penalty is None:
        return []
    usual = [term for term in estimator._usual_terms(activation) if not isinstance(term, WeightDecay)]  # a parameter
    if estimator.penalty == "auto":
        return usual
    return [PENALTIES[estimator.penalty](), *(term for term in usual if isinstance(term, HELPERS))]


def _check_target(estimator: Any, model: Autoencoder) -> None:
    """Refuse a number of latents where another setting says it; Trainer refuses the rest."""
    target, activation, n_latents = estimator.target_l0, model.activation, math.prod(model.latent_shape)
    if target is None:
        return
    if target >= n_latents:
        raise ValueError(f"expected target_l0 below {n_latents} latents, got {target:g}")
    if getattr(activation, "k", None) is not None:
        raise ValueError(
            f"target_l0={target:g} steers a penalty, and activation={activation.name!r} fires k latents per row "
            f"without one; use k={max(1, round(target))} instead, or activation='jumprelu'"
        )
    if estimator.rho is not None:
        raise ValueError(f"target_l0={target:g} and rho={estimator.rho:g} both say how much fires; leave one out")


def _check_penalties(estimator: Any, model: Autoencoder, penalties: Sequence[Term]) -> None:
    """Refuse what was asked of a penalty that is not there."""
    asked = f"activation={model.activation.name!r} with penalty={estimator.penalty!r}"
    has_kl = any(isinstance(term, KLSparsity) for term in penalties)
    if estimator.penalty == "kl" and not has_kl:
        raise ValueError(
            f"penalty='kl' asks for units between 0 and 1, activation={model.activation.name!r} has none; "
            "use activation='sigmoid', or leave penalty out"
        )
    if estimator.penalty_weight is not None and not penalties:
        raise ValueError(
            f"penalty_weight={estimator.penalty_weight:g} has nothing to weigh: {asked} has no penalty; "
            "leave it out, or set penalty='l1'"
        )
    if estimator.rho is not None and not has_kl:
        raise ValueError(
            f"rho={estimator.rho:g} is what the KL penalty aims at, and {asked} has none; "
            "leave it out, or use activation='sigmoid'"
        )


def _safe_from_growth(term: Term, model: Autoencoder) -> Term:
    """L1 weighed by the decoder's rows where these may grow."""
    if isinstance(term, L1) and not model.decoder.constrained and "linear_decoder" in model.gives:
        return L1(term.weight, by_decoder_norm=True)
    return term


# ---------------------------------------------------------------------------------------------- training


def has_pairs(source: Source) -> bool:
    """Whether its rows come with what is to be made of them."""
    first = next(iter(source.batches(1, shuffle=False)))
    return first.x is not first.x_in


def hold_out(estimator: Any, source: Source, seed: int) -> tuple[Source, Source | None]:
    """Rows to train on, and those that nothing is learned from, preprocessing included."""
    return source.split(estimator.validation_fraction, seed) if estimator.validation_fraction else (source, None)


def fit_config(estimator: Any, n_rows: int, model: Autoencoder, seed: int) -> TrainConfig:
    """How ``fit`` trains on so many rows. Held-out rows end it early, with the best weights."""
    settings = _common(estimator, model, seed)
    all_at_once = estimator.optimizer == "lbfgs"
    per_epoch = 1 if all_at_once else math.ceil(n_rows / min(estimator.batch_size or BATCH_SIZE, n_rows))
    wanted = LBFGS_STEPS if all_at_once else min(max(n_rows, FEWEST_STEPS), MOST_STEPS)
    epochs = estimator.max_epochs or math.ceil(wanted / per_epoch)
    steps = epochs * per_epoch
    settings |= {"epochs": epochs, "log_every": max(1, steps // LOG_LINES)}
    if estimator.validation_fraction:
        every = max(per_epoch, steps // VALIDATIONS)
        settings |= {
            "validation_fraction": estimator.validation_fraction,
            "validate_every": every,
            "patience": PATIENCE,
        }
    return TrainConfig(**settings)


def stream_config(estimator: Any, model: Autoencoder, seed: int) -> TrainConfig:
    """How ``partial_fit`` trains: one pass at a constant rate, for nobody knows when the last one comes."""
    if estimator.optimizer != "adam":
        raise ValueError("partial_fit takes steps of a few rows, lbfgs needs all of them; use optimizer='adam'")
    if estimator.validation_fraction:
        raise ValueError(
            f"partial_fit trains on all it is given: expected validation_fraction=0, got "
            f"{estimator.validation_fraction:g}; hold rows out yourself and score them"
        )
    settings = _common(estimator, model, seed)
    settings |= {"epochs": 1, "lr_schedule": "constant", "log_every": NEVER}  # the last step is logged all the same
    return TrainConfig(**settings, dead_after=DEAD_AFTER_BATCHES * (settings["batch_size"] or BATCH_SIZE))


def _common(estimator: Any, model: Autoencoder, seed: int) -> dict[str, Any]:
    rate = estimator.learning_rate
    if rate is None and estimator.optimizer == "adam":
        rate = LEARNING_RATE * math.sqrt(min(1.0, 256 / model.n_latents))
    return {
        "batch_size": estimator.batch_size,
        "learning_rate": rate,
        "optimizer": estimator.optimizer,
        "seed": seed,
        "device": estimator.device,
        "dtype": estimator.dtype,
        "target_l0": estimator.target_l0,
    }
