"""What a Trainer does after the last step: what rests on weights that no longer move."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fewfire.activations import Activation
from fewfire.autoencoder import Autoencoder
from fewfire.trainer.before import some_rows

if TYPE_CHECKING:
    from fewfire.trainer.loop import Trainer

__all__ = ["not_finite", "settle_activation"]


def not_finite(model: Autoencoder) -> str | None:
    """The first parameter that holds NaN or infinity, and where; None: all are finite."""
    for name, p in model.named_parameters():
        finite = torch.isfinite(p.detach())
        if not finite.all():
            place = ", ".join(str(int(i)) for i in (~finite).nonzero()[0])
            return f"{name}[{place}] is {float(p.detach()[~finite][0]):g}"
    return None


@torch.no_grad()
def settle_activation(trainer: Trainer) -> None:
    """Thresholds from some training rows, without corruption: as ``encode`` will see them.

    It depends on weights and rows alone, never on the thresholds that were: done again by a resumed run, it gives the
    same bits.
    """
    model = trainer.model
    if type(model.activation).settle is Activation.settle:
        return
    rows = some_rows(trainer)
    if len(rows.rows):
        x_in = model.to_model_space(rows.x_in.to(model.device)).to(model.dtype)
        model.activation.settle(model.encoder(x_in).to(model.dtype))
