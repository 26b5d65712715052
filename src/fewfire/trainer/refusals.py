"""Why Trainer will not start, or not go on: what was expected, what came, what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewfire.activations import Activation
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Batch, Source
from fewfire.networks import Network
from fewfire.rows import check_finite
from fewfire.terms import Term

__all__ = ["OR_SKIP", "check_needs", "check_range", "check_shapes", "nonfinite_message"]

ROUNDING = 1e-3
"""how far a value may lie outside a range that it was scaled to: a product rounds by the shape of its batch"""
OR_SKIP = ", or set on_nonfinite to 'skip'"


def check_shapes(model: Autoencoder, source: Source) -> None:
    for what, wanted, came in (
        ("rows", model.input_shape, source.row_shape),
        ("targets", model.target_shape, source.target_shape),
    ):
        if tuple(came) != tuple(wanted):
            raise ValueError(f"expected {what} of shape {tuple(wanted)}, as the model's; the data's are {tuple(came)}")


def check_range(model: Autoencoder, batch: Batch) -> None:
    """A logistic output cannot leave (0, 1); trained on anything else it fails, or cross-entropy falls for ever.

    Every batch is looked at, which costs a hundredth of a step.
    """
    if model.network.output != "sigmoid":
        return
    low, high = batch.x.aminmax()  # NaN, if there is one: the engine will name it
    if low < -ROUNDING or high > 1 + ROUNDING:
        outside = ((batch.x < -ROUNDING) | (batch.x > 1 + ROUNDING)).flatten(1).any(1)
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
