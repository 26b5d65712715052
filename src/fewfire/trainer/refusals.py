"""Why Trainer will not start, or not go on: what was expected, what came, what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fewfire.activations import Activation
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Batch, Layout, Source
from fewfire.corruptions import Corruption
from fewfire.networks import Network
from fewfire.rows import check_finite
from fewfire.terms import Term

__all__ = [
    "OR_SKIP",
    "check_emphasis",
    "check_needs",
    "check_range",
    "check_source",
    "check_validation",
    "nonfinite_message",
]

ROUNDING = 1e-3
"""how far a value may lie outside a range that it was scaled to: a product rounds by the shape of its batch"""
OR_SKIP = ", or set on_nonfinite to 'skip'"


def check_source(model: Autoencoder, source: Source, trained_on: Layout | None = None) -> None:
    """Refuse rows of another shape than the model's, or of other columns than the model's and the training rows'."""
    for what, wanted, came in (
        ("rows", model.input_shape, source.row_shape),
        ("targets", model.target_shape, source.target_shape),
    ):
        if tuple(came) != tuple(wanted):
            raise ValueError(f"expected {what} of shape {tuple(wanted)}, as the model's; the data's are {tuple(came)}")
    for layout in (model.layout, trained_on or Layout()):
        layout.check_columns(source.layout.columns)


def check_validation(model: Autoencoder, validation: Source, trained_on: Layout) -> None:
    """Refuse held-out rows that differ in kind from the training rows, or that never end."""
    check_source(model, validation, trained_on)
    if validation.n_rows is None:
        raise ValueError("validation would never end: expected a source with a last row, got an endless one")


def check_range(model: Autoencoder, batch: Batch) -> None:
    """A logistic output cannot leave (0, 1); trained on anything else it fails, or cross-entropy falls for ever.

    Every batch is looked at, which costs a hundredth of a step.
    """
    if model.network.output != "sigmoid":
        return
    low, high = batch.x.aminmax()
    if float(low) >= -ROUNDING and float(high) <= 1 + ROUNDING:
        return
    finite = batch.x.isfinite()  # what is not, the engine names, or skips
    outside = (finite & ((batch.x < -ROUNDING) | (batch.x > 1 + ROUNDING))).flatten(1).any(1)
    if outside.any():
        low, high = batch.x[finite].aminmax()
        raise ValueError(
            f"reconstructions with output sigmoid lie between 0 and 1, the preprocessed data between {low:.4g} and "
            f"{high:.4g} (row {int(batch.rows[int(outside.nonzero()[0])])}); use preprocess minmax (or clip_scale), or "
            "output identity"
        )


def check_needs(term: Term, model: Autoencoder) -> None:
    """Refuse a term that asks for what the model does not give, and say who would give it."""
    for need in sorted(term.needs - model.gives):
        givers = [f"activation {n}" for n, a in Activation.registry.items() if need in a.gives]
        givers += [f"network {n}" for n, w in Network.registry.items() if need in w.gives]
        givers += ["output sigmoid"] if need == "output_logits" else []
        raise ValueError(
            f"term {term.name!r} needs {need}, which activation {model.activation.name!r} with network "
            f"{model.network.name!r} (output {model.network.output}) does not give; "
            f"given by: {', '.join(givers) or 'nothing that is loaded'}"
        )


def check_emphasis(
    terms: Mapping[str, Term],
    schedules: Mapping[str, Sequence[tuple[float, float]]],
    corruption: Corruption | None,
    source: Source,
) -> bool:
    """Whether a term asks what the corruption chose: its ``intact`` is below 1, or comes to be.

    Refused where nothing is corrupted: with intact=0 it would train nothing.
    """

    def least(label: str, term: Term) -> float:
        return min([getattr(term, "intact", 1), *(value for _, value in schedules.get(f"{label}.intact", ()))])

    label = next((label for label, term in terms.items() if least(label, term) < 1), None)
    if label is None:
        return False
    inputs, targets = tuple(source.row_shape), tuple(source.target_shape)
    if inputs != targets:
        raise ValueError(
            f"term {label!r} with intact below 1 compares each column with its corrupted self: expected targets of "
            f"the inputs' shape {inputs}, got {targets}; leave intact at 1"
        )
    first = next(iter(source.batches(1, shuffle=False)), None) if corruption is None else None
    if corruption is None and (first is None or first.x is first.x_in):
        raise ValueError(
            f"term {label!r} has intact below 1, which needs columns that were corrupted: expected a corruption, or "
            "pairs of a noisy and a clean row; got neither. Give a corruption, or leave intact at 1"
        )
    return True


def nonfinite_message(given: Batch, batch: Batch, bad: Tensor, step: int, columns: Sequence[str] = ()) -> str:
    """Why a step was not finite: the data, their scale, or the learning rate.

    ``given`` is the batch in data space, ``batch`` the same in model space, ``bad`` the rows that the engine names.
    """
    for what, x in (("the data", given.x_in), ("the target", given.x)):
        try:
            check_finite(x, what, given.rows, columns)
        except ValueError as error:
            return f"step {step}: {error}{OR_SKIP}"
    size = torch.maximum(*(x.detach().flatten(1).abs().amax(1).nan_to_num(math.inf) for x in (batch.x_in, batch.x)))
    size = size.masked_fill(~torch.isin(batch.rows.to(size.device), bad.to(size.device)), 0)
    worst = int(size.argmax())
    if size[worst] > torch.finfo(size.dtype).max ** 0.4:
        dtype = str(size.dtype).removeprefix("torch.")
        return (
            f"step {step}: row {int(batch.rows[worst])} reaches {float(given.x_in[worst].abs().max()):.3g}, "
            f"which is too large to square in {dtype}; rescale the data (preprocess 'standardize'){OR_SKIP}"
        )
    rows = ", ".join(str(int(r)) for r in bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    return (
        f"step {step}: the loss is not finite, though the data are (rows {rows}); "
        "lower the learning rate, or rescale the data (preprocess 'standardize')"
    )
