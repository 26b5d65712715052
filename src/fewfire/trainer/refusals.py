"""Why Trainer will not start, or not go on: what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fewfire.activations import Activation
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Batch, Source
from fewfire.networks import Network
from fewfire.terms import Term

__all__ = ["check_needs", "check_range", "check_shapes", "differences", "nonfinite_message"]


def check_shapes(model: Autoencoder, source: Source) -> None:
    for what, wanted, came in (
        ("rows", model.input_shape, source.row_shape),
        ("targets", model.target_shape, source.target_shape),
    ):
        if tuple(came) != tuple(wanted):
            raise ValueError(f"expected {what} of shape {tuple(wanted)}, as the model's; the data's are {tuple(came)}")


def check_range(model: Autoencoder, x: Tensor) -> None:
    """A logistic output cannot leave (0, 1); trained on anything else it fails without a word."""
    low, high = float(x.min()), float(x.max())
    if model.network.output == "sigmoid" and (low < 0 or high > 1):
        raise ValueError(
            f"reconstructions with output sigmoid lie between 0 and 1, the preprocessed data between {low:.4g} and "
            f"{high:.4g}; use preprocess minmax (or clip_scale), or output identity"
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


def nonfinite_message(batch: Batch, bad: Tensor, step: int) -> str:
    in_data = not bool(torch.isfinite(batch.x_in).all() and torch.isfinite(batch.x).all())
    rows = ", ".join(str(int(r)) for r in bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    if in_data:
        return f"step {step}: NaN or infinity in row {rows}; remove or fill them, or set on_nonfinite to 'skip'"
    return (
        f"step {step}: the loss is not finite, though the data are (rows {rows}); "
        "lower the learning rate, or rescale the data (preprocess 'standardize')"
    )


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """``train.seed was 0 and is 1``, for every leaf that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted(set(before) | set(now)):
            yield from differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, f"{path}.{i}")
    elif before != now:
        yield f"{path} was {before!r:.50} and is {now!r:.50}"
