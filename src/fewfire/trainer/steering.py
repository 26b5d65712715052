"""Ask for the sparsity you want: thresholds and a penalty steered until as many latents fire as were asked for."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch

from fewfire.activations import Activation
from fewfire.autoencoder import Autoencoder
from fewfire.calibration import raise_threshold
from fewfire.contracts import Batch, StepReport, TrainState
from fewfire.terms import KLSparsity, Term

__all__ = ["Steering"]

FAST = 0.05
"""share of the way to the target that thresholds go at a step"""
LOOK = 50
"""steps between two looks at the reach"""
SMOOTHING = 20
"""steps over which what the slow hand answers to is averaged"""
SETTLE = 0.1
"""share of training in which the slow hand, when the fast one pushes with all force, moves its setting by e"""
FARTHEST = 14.0
"""how far the setting may move from where it began, as a logarithm: a factor of a million either way"""


class Steering:
    """Two hands on the wheel, between steps.

    The fast hand moves all thresholds (or the encoder's biases, where the threshold is 0) by a little, up when more
    latents fired than shall: by ``FAST * reach * log(count / target)``, with the activation's ``reach``.

    The slow hand sets one setting of one term, ``Term.steers``. It answers to how hard the fast one has to push against
    the gradient, in units of the learning rate, which is what Adam moves a bias by. So at the end the penalty alone
    holds the count, and nothing is left to push.

    Raises
    ------
    ValueError
        At construction: no term steers, or two do; the activation fires a fixed number; the setting is scheduled.
    """

    def __init__(
        self, target: float, terms: Mapping[str, Term], model: Autoencoder, steps: int, scheduled: Collection[str]
    ) -> None:
        n_latents = math.prod(model.latent_shape)
        if not 0 < target < n_latents:
            raise ValueError(f"expected target_l0 above 0 and below {n_latents} latents, got {target:g}")
        self.target, self.model = target, model
        self.label, self.term = _steered(target, terms, model)
        self.setting = str(self.term.steers)
        if f"{self.label}.{self.setting}" in scheduled:
            raise ValueError(f"{self.label}.{self.setting} is steered by target_l0; leave it out of the schedules")
        if isinstance(self.term, KLSparsity):
            self.term.rho = target / n_latents
        self.sign = -1 if self.setting == "rho" else 1
        self.first = float(getattr(self.term, self.setting))
        self.pace(steps)
        self.reach = 0.0
        self.push = 0.0
        self.moved = 0.0

    def pace(self, steps: int) -> None:
        """Take so many steps as the whole of training."""
        self.gain = 1 / max(1.0, SETTLE * steps)

    def after(self, report: StepReport, batch: Batch, state: TrainState) -> None:
        """Learn what fired, and set what the next step shall use."""
        count = float(report.scalars[self.model.activation.counts])
        error = max(-1.0, min(1.0, math.log(max(count, 1e-6) / self.target)))
        if state.step % LOOK == 0:
            with torch.no_grad():
                reach = self.model.activation.reach(self.model.encoder(batch.x_in).to(self.model.dtype))
            self.reach = reach or self.reach  # nothing fires now: come down as far as it was
        amount = FAST * self.reach * error
        raise_threshold(self.model, torch.tensor(amount))
        push = max(-1.0, min(1.0, amount / state.lr)) if state.lr else 0.0
        self.push += (push - self.push) / SMOOTHING
        self.moved = max(-FARTHEST, min(FARTHEST, self.moved + self.gain * self.push))
        value = self.first * math.exp(self.sign * self.moved)
        setattr(self.term, self.setting, min(value, 0.99) if self.setting == "rho" else value)

    def state(self) -> dict[str, float]:
        """What resuming needs."""
        return {
            "first": self.first,
            "moved": self.moved,
            "push": self.push,
            "reach": self.reach,
            "value": getattr(self.term, self.setting),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be where :meth:`state` was taken.

        Raises
        ------
        ValueError
            It is no such state.
        """
        numbers = isinstance(state, Mapping) and all(
            type(v) in (float, int) and math.isfinite(v) for v in state.values()
        )
        if not numbers or state.keys() != self.state().keys():
            raise ValueError(
                f"expected the state of steering to be numbers {', '.join(self.state())}; got {state!r:.100}. Of a "
                "checkpoint: remove the file"
            )
        self.first, self.moved, self.push, self.reach = (state[k] for k in ("first", "moved", "push", "reach"))
        setattr(self.term, self.setting, state["value"])


def _steered(target: float, terms: Mapping[str, Term], model: Autoencoder) -> tuple[str, Term]:
    """The term to steer, with its label."""
    if getattr(model.activation, "k", None) is not None:
        raise ValueError(
            f"target_l0={target:g} steers a penalty, and activation {model.activation.name!r} fires k latents without "
            f"one; set its k to {target:g} instead"
        )
    kind = type(model.activation)
    if kind.margins is Activation.margins and kind.reach is Activation.reach:
        raise ValueError(
            f"target_l0={target:g} moves thresholds, and activation {model.activation.name!r} has none that decide how "
            "many latents fire; use relu, jumprelu or gated"
        )
    steering = {label: term for label, term in terms.items() if term.steers is not None}
    if len(steering) != 1:
        came = f"{len(steering)} ({', '.join(steering)})" if steering else f"none in {', '.join(terms)}"
        raise ValueError(
            f"target_l0 steers one penalty, l1, l0_penalty or kl: expected it in the objective; got {came}"
        )
    return next(iter(steering.items()))
