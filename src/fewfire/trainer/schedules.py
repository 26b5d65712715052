"""Values that Trainer changes between steps: a term's weight, an activation's k."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["Schedules", "arrival", "piecewise_linear"]


def piecewise_linear(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value at ``at`` on straight lines between ``points``; constant before the first and after the last."""
    if at <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0) if x1 > x0 else y1
    return points[-1][1]


def arrival(points: Sequence[tuple[float, float]]) -> float:
    """The fraction of training from which the value stays what it is."""
    moving = [i for i, (_, value) in enumerate(points) if value != points[-1][1]]
    return points[moving[-1] + 1][0] if moving else 0.0


class Schedules:
    """``{"kl.weight": points, "activation.k": points}`` applied to the objects they name.

    Raises
    ------
    ValueError
        At construction, for a target that does not exist or is not a number.
    """

    def __init__(
        self, points: Mapping[str, Sequence[tuple[float, float]]], terms: Mapping[str, Any], model: Any
    ) -> None:
        owners = {**terms, "activation": model.activation}
        self._targets: list[tuple[Any, str, Sequence[tuple[float, float]], bool]] = []
        for target, line in points.items():
            owner, _, attribute = target.rpartition(".")
            value = getattr(owners.get(owner), attribute, None)
            if isinstance(value, bool) or not isinstance(value, int | float):
                numbers = [f"{o}.{a}" for o, obj in owners.items() for a in sorted(obj.config()) if _number(obj, a)]
                raise ValueError(f"nothing called {target!r} to schedule; there is: {', '.join(numbers) or 'nothing'}")
            _check(target, owners[owner], attribute, [value for _, value in line], model)
            self._targets.append((owners[owner], attribute, line, _whole(owners[owner], attribute)))

    def apply(self, done: float) -> None:
        """``done``: the fraction of training completed. Whole numbers stay whole."""
        for owner, attribute, points, whole in self._targets:
            value = piecewise_linear(points, done)
            setattr(owner, attribute, round(value) if whole else value)

    def settled(self, done: float) -> bool:
        """Whether every value is what it stays to the end. A jump has not happened yet at the fraction it is at."""
        return all(
            done >= arrival(points) and piecewise_linear(points, done) == points[-1][1]
            for _, _, points, _ in self._targets
        )


def _check(target: str, owner: Any, attribute: str, values: Sequence[float], model: Any) -> None:
    """Refuse values that the setting cannot have, and a last one that the model could not be saved with."""
    for value in values:
        try:
            member = type(owner).from_config(
                {**owner.config(), attribute: round(value) if _whole(owner, attribute) else value}
            )
            if owner is model.activation and value == values[-1]:
                member.build(model.n_latents)
        except (ValueError, TypeError) as error:
            raise ValueError(f"schedule {target!r}: {error}") from None


def _whole(owner: Any, attribute: str) -> bool:
    """Whether a setting counts something, like k. A weight does not, though ``weight: 3`` was written as an int."""
    parameter = inspect.signature(type(owner)).parameters.get(attribute)
    return isinstance(getattr(owner, attribute), int) and "float" not in str(parameter and parameter.annotation)


def _number(owner: Any, attribute: str) -> bool:
    value = getattr(owner, attribute, None)
    return isinstance(value, int | float) and not isinstance(value, bool)
