"""Several preprocesses one after another, and how any of them is written in a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeAlias, final

from torch import Tensor, nn

from fewfire.preprocess.family import Preprocess, Stream

__all__ = ["Chain", "Spec", "make_preprocess"]


@final
class Chain(Preprocess, name="chain"):
    """Steps applied in order; each is fitted on the stream that the earlier ones give.

    Parameters
    ----------
    steps
        Names, configs or members, at least one: ``["row_mean", {"name": "clip_scale", "n_sigma": 2}]``.

    Raises
    ------
    TypeError, ValueError
        ``steps`` is not a list, is empty, or a step is not known.
    """

    def __init__(self, steps: Sequence[str | Mapping[str, Any] | Preprocess]) -> None:
        super().__init__()
        if isinstance(steps, str) or not isinstance(steps, Iterable):
            raise TypeError(f"chain needs a list of steps, got {steps!r}; write [{steps!r}]")
        members = [make_preprocess(step) for step in steps]
        if not members or None in members:
            raise ValueError(f"chain needs at least one step and no empty ones, got {list(steps)!r}")
        self.steps = nn.ModuleList(member for member in members if member is not None)

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "steps": [step.config() for step in self._members]}

    @property
    def _members(self) -> list[Preprocess]:
        return [step for step in self.steps if isinstance(step, Preprocess)]

    @property
    def fitted(self) -> bool:
        return all(step.fitted for step in self._members)

    def fit(self, stream: Stream) -> Self:
        """Fit the steps in turn: one pass over ``stream()`` for each step that learns something."""
        for i, step in enumerate(self._members):
            earlier = self._members[:i]
            step.fit(partial(_through, earlier, stream))
        return self

    def _forward(self, x: Tensor) -> Tensor:
        return _apply_all(self._members, x)

    def _inverse(self, y: Tensor, like: Tensor | None) -> Tensor:
        # A step's `like` is what that step was given: the original rows, taken through the steps before it.
        likes = [like]
        for step in self._members[:-1]:
            likes.append(None if likes[-1] is None else step(likes[-1]))
        for step, given in zip(reversed(self._members), reversed(likes), strict=True):
            y = step.inverse(y, given)
        return y


Spec: TypeAlias = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any] | Preprocess] | Preprocess | None
"""How a preprocess is written down: a name, a config, a list of either (a chain), a member, or None."""


def make_preprocess(spec: Spec) -> Preprocess | None:
    """A preprocess from how it is written in a configuration.

    >>> make_preprocess("standardize")
    Standardize()
    >>> make_preprocess({"name": "minmax", "per_column": False})
    MinMax(low=0.0, high=1.0, per_column=False)
    >>> make_preprocess(["row_mean", "clip_scale"]).config()["name"]
    'chain'

    None, "none" and an empty list mean none; a member is handed through.

    Raises
    ------
    TypeError
        ``spec`` is none of these.
    ValueError
        A name or a setting is unknown, or a setting is out of range.
    """
    if spec is None or isinstance(spec, Preprocess):
        return spec
    if isinstance(spec, str) and spec.lower() == "none":  # YAML's own word is null, which nobody thinks of
        return None
    if isinstance(spec, str | Mapping):
        return Preprocess.from_config(spec)
    if isinstance(spec, list | tuple):
        return Chain(spec) if spec else None
    raise TypeError(
        f"a preprocess is a name, a config with a name, or a list of those, not {type(spec).__name__}; "
        f"names: {', '.join(sorted(Preprocess.registry))}"
    )


def _through(steps: Sequence[Preprocess], stream: Stream) -> Iterator[Tensor]:
    """A fresh pass over the stream, as it looks after these steps."""
    return (_apply_all(steps, block) for block in stream())


def _apply_all(steps: Sequence[Preprocess], x: Tensor) -> Tensor:
    for step in steps:
        x = step(x)
    return x
