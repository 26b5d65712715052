"""The contracts that everything else leans on, and the letters used for shapes.

Shape letters, everywhere in fewfire::

    B  rows of a batch          D  input width (columns)
    P  pre-activations          L  latents
    K  active latents per row

A batch walks: ``Source`` -> ``Batch`` -> ``Autoencoder`` -> ``ForwardOutput`` -> ``Term`` -> ``StepReport``.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import (
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

import numpy as np
from torch import Tensor

__all__ = [
    "Batch",
    "Engine",
    "ForwardOutput",
    "Job",
    "Layout",
    "Named",
    "Optimizer",
    "Source",
    "SparseCodes",
    "StepReport",
    "TrainState",
    "did_you_mean",
]


# ---------------------------------------------------------------------------------------------- what flows


@dataclass(frozen=True)
class Batch:
    """Some rows of a source.

    ``x`` is the target: the clean row, a transcoder's output, all views of a crosscoder. ``x_in`` is what the
    encoder sees; for a plain autoencoder it is the same tensor. ``rows`` (B,) int64 are the row numbers in the
    source, so that an error can name them. A source gives data space; Trainer turns it into model space, and says
    which entries of ``x_in`` the corruption chose when a term has an ``intact`` below 1.
    """

    x_in: Tensor  # (B, *input shape)
    x: Tensor  # (B, *target shape)
    rows: Tensor  # (B,) int64
    chosen: Tensor | None = None  # (B, *input shape) bool


class ForwardOutput(NamedTuple):
    """What one forward pass produced, all in model space."""

    x: Tensor
    """(B, *target shape) the target"""
    x_in: Tensor
    """(B, *input shape) what the encoder saw"""
    pre_acts: Tensor
    """(B, P) encoder output; P = n_pre * L"""
    latents: Tensor
    """(B, L), or (B, maps, h, w) for a convolution"""
    recon: Tensor
    """(B, *target shape) decoder output: an estimate of ``x``"""
    recon_logits: Tensor
    """decoder output before its output non-linearity; the same tensor as ``recon`` where there is none"""
    chosen: Tensor | None = None
    """(B, *input shape) bool, the batch's: which entries the corruption chose. The engine puts it here"""


class SparseCodes(NamedTuple):
    """Latents, only those that are not zero.

    A row with fewer than K of them is padded with value 0 at index 0.
    """

    indices: Tensor
    """(B, K) int64"""
    values: Tensor
    """(B, K)"""

    def to_scipy(self, n_latents: int) -> Any:
        """(B, n_latents) as a ``scipy.sparse.csr_array``, columns rising in each row."""
        import scipy.sparse as sp  # here: a run has no need of it

        values, indices = self.values.cpu(), self.indices.cpu()
        there = values != 0
        start = np.concatenate([[0], there.sum(1).cumsum(0).numpy()])
        codes = sp.csr_array((values[there].numpy(), indices[there].numpy(), start), shape=(len(values), n_latents))
        codes.sort_indices()
        return codes


@dataclass
class TrainState:
    """Where training is. Owned by Trainer; terms, activations and engines read it.

    Counters are int64: a bfloat16 counter stops at 256, a float32 one at 2**24.
    """

    step: int
    """steps completed"""
    samples: int
    """rows seen"""
    since_fired: Tensor
    """(L,) int64, rows seen since each latent last fired"""
    lr: float
    """learning rate of this step"""
    seed: int = 0
    dead_after: int = 10_000_000
    """a latent is dead when it has not fired for this many rows"""

    @property
    def dead(self) -> Tensor:
        """(L,) bool."""
        return self.since_fired >= self.dead_after

    @property
    def any_dead(self) -> bool:
        """Whether a latent is dead: asked at every step, and seldom so."""
        return int(self.since_fired.max()) >= self.dead_after


@dataclass(frozen=True)
class StepReport:
    """What an engine says of one step."""

    scalars: dict[str, Tensor]
    """"loss", every term by its label before its weight, "l0". Tensors until they are logged."""
    fired: Tensor
    """(L,) bool, which latents fired on some row of the batch"""
    bad_rows: Tensor | None = None
    """row numbers that made the step non-finite; the step then changed nothing. None: the step was committed."""


# ------------------------------------------------------------------------------------- what can be plugged in


class Named:
    """A family whose members are found by name: activations, terms, networks, corruptions, preprocessors.

    Subclassing the family is all it takes to join it: the configuration file, the command line, the model folder
    and the parametrised tests read ``Family.registry``. A member stores its constructor's arguments unchanged
    under their own names; ``config()`` and ``from_config()`` are each other's inverse.

    >>> class Term(Named): ...
    >>> class Hoyer(Term): ...
    >>> Term.registry
    {'hoyer': <class 'Hoyer'>}
    """

    registry: ClassVar[dict[str, type[Any]]]
    name: ClassVar[str]

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Named in cls.__bases__:
            cls.registry = {}
            return
        cls.name = name or cls.__name__.lower()
        other = cls.registry.get(cls.name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):  # a reload is no collision
            raise ValueError(f"the name {cls.name!r} is taken by {other.__module__}.{other.__qualname__}; give another")
        cls.registry[cls.name] = cls

    def config(self) -> dict[str, Any]:
        """``{"name": ..., argument: value, ...}``, plain enough for YAML and JSON."""
        return {"name": self.name, **{key: _plain(getattr(self, key)) for key in self.settings()}}

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """The constructor's arguments and their defaults; "required" where there is none."""
        parameters = inspect.signature(cls).parameters.values()
        return {
            p.name: "required" if p.default is p.empty else p.default
            for p in parameters
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }

    @classmethod
    def from_config(cls, config: str | Mapping[str, Any] | Self) -> Self:
        """Build a member from its name, from ``{"name": ..., argument: value}``, or hand one through.

        Raises
        ------
        ValueError
            The name is unknown, or an argument is.
        TypeError
            An argument is of the wrong kind.
        """
        if isinstance(config, cls):
            return config
        family = next(c.__name__.lower() for c in cls.__mro__ if "registry" in c.__dict__)
        if not isinstance(config, str | Mapping):
            hint = f"; did you mean {config.__name__}()?" if isinstance(config, type) else ""
            raise ValueError(
                f"expected {family} to be its name, its settings or an instance, got {config!r:.100}{hint}"
            )
        arguments: dict[str, Any] = {"name": config} if isinstance(config, str) else dict(config)
        name = arguments.pop("name", None)
        if not isinstance(name, str) or name not in cls.registry:
            raise ValueError(
                f"unknown {family} {name!r:.60}; choose from: {', '.join(sorted(cls.registry))}"
                + did_you_mean(name, cls.registry)
            )
        member = cls.registry[name]
        allowed = member.settings()
        unknown = sorted(map(str, set(arguments) - set(allowed)))
        if unknown:
            raise ValueError(
                f"{family} {name!r} has no setting {', '.join(map(repr, unknown)):.80}; "
                f"it takes: {', '.join(allowed) or 'nothing'}" + did_you_mean(unknown[0], allowed)
            )
        for key, kind in _kinds(member).items():
            if key in arguments and not _fits(arguments[key], kind):
                expected = inspect.formatannotation(kind)
                raise TypeError(f"{family} {name!r}: expected {key} to be {expected}; got {arguments[key]!r:.60}")
        try:
            return member(**arguments)  # type: ignore[no-any-return]
        except TypeError as error:
            raise TypeError(
                f"{family} {name!r}: a setting is of the wrong kind ({error!s:.150}); got {arguments!s:.100}"
            ) from None

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self.config().items() if k != "name")
        return f"{type(self).__name__}({settings})"


def _plain(value: Any) -> Any:
    """Tuples to lists, numpy's numbers to Python's, members to their configs: what YAML and JSON can hold."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Named):
        return value.config()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def did_you_mean(word: object, words: Iterable[str]) -> str:
    """The end of a refusal: "; did you mean 'topk'?", or nothing where no word is close."""
    close = difflib.get_close_matches(str(word)[:60].lower(), list(words), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _kinds(member: type[Any]) -> dict[str, Any]:
    """The annotations of a constructor's arguments."""
    try:
        return get_type_hints(member.__init__)
    except Exception:  # a user's annotation may name what exists only for a type checker
        return {}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a setting is of the plain kind that its annotation says. Of other kinds, every value is.

    Python itself would take "no" for a bool, and for true.
    """
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        return any(_fits(value, option) for option in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    number = isinstance(value, Real) and not isinstance(value, bool)
    if kind is int:
        return number and (isinstance(value, Integral) or float(value).is_integer())  # schedules turn 8 into 8.0
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    return number if kind is float else isinstance(value, kind) if kind in (str, NoneType) else True


@dataclass(frozen=True)
class Layout:
    """How a person sees a row: what a picture, a report and the explorer draw.

    ``kind`` "image": ``shape`` is (h, w) or (channels, h, w). "table": ``columns`` are the column names.
    "series": ``shape`` is (channels, length), a stretch of time, and ``columns`` are the channels' names.
    """

    kind: Literal["table", "image", "series"] = "table"
    shape: tuple[int, ...] = ()
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kinds = ("table", "image", "series")
        if self.kind not in kinds:
            raise ValueError(
                f"expected the layout's kind to be one of {', '.join(kinds)}; got {self.kind!r:.60}"
                + did_you_mean(self.kind, kinds)
            )

    def check(self, row_shape: tuple[int, ...]) -> None:
        """Refuse rows that this does not describe.

        Raises
        ------
        ValueError
            They have more or fewer values, or a series another number of channels than it names.
        """
        size = math.prod(row_shape)
        described = len(self.columns) or size if self.kind == "table" else math.prod(self.shape)
        if described != size:
            named = {"table": f"a table of {described} columns", "image": f"an image of {self.shape}"}
            what = named.get(self.kind, f"a series of {self.shape}")
            raise ValueError(f"the layout describes {what}, the rows have {size} values of shape {row_shape}")
        if self.kind == "series" and (len(self.shape) != 2 or len(self.columns) not in (0, self.shape[0])):
            raise ValueError(
                f"a series needs a shape (channels, length) and a name per channel or none, got {self.shape} and "
                f"{len(self.columns)} names"
            )

    def check_columns(self, columns: Iterable[Any]) -> None:
        """Refuse a table whose columns are named, and not as here or not in this order. Unnamed ones pass.

        Raises
        ------
        ValueError
            The message names what differs.
        """
        came = tuple(map(str, columns))
        if not self.columns or not came or came == self.columns:
            return
        known, given = set(self.columns), set(came)  # of tens of thousands
        missing = [name for name in self.columns if name not in given]
        extra = [name for name in came if name not in known]
        if missing or extra:
            named = {"missing": missing, "unknown": extra}
            what = "; ".join(f"{word}: {', '.join(names[:5])}" for word, names in named.items() if names)
        else:
            i = next(i for i, (own, other) in enumerate(zip(self.columns, came, strict=False)) if own != other)
            what = f"another order: column {i} was {self.columns[i]!r} and is {came[i]!r}"
        raise ValueError(f"expected the columns that the model was trained on, in their order; got {what:.250}")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "columns": list(self.columns)}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any] | None) -> Layout:
        d = d or {}
        return cls(d.get("kind", "table"), tuple(d.get("shape", ())), tuple(d.get("columns", ())))


@runtime_checkable
class Source(Protocol):
    """A stream of batches that is a pure function of (seed, epoch, position).

    There is no iterator state to save: resuming means asking again with ``start``. Implement these names on any
    object; no base class is needed.
    """

    n_rows: int | None
    """rows of one epoch; None: endless"""
    row_shape: tuple[int, ...]
    """shape of one input row: (D,) or (channels, h, w)"""
    target_shape: tuple[int, ...]
    """shape of one target row; the same as ``row_shape`` for an autoencoder"""
    layout: Layout
    fingerprint: str
    """changes when the data do; a resumed run refuses other data"""

    def batches(
        self, batch_size: int, *, seed: int = 0, epoch: int = 0, start: int = 0, shuffle: bool = True
    ) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, ... of one epoch; the last one may be smaller, none is dropped."""
        ...

    def split(self, fraction: float, seed: int = 0) -> tuple[Source, Source]:
        """(the rest, a random ``fraction`` of the rows): training and validation."""
        ...


# ---------------------------------------------------------------------------------------------- engines


@dataclass(frozen=True)
class Optimizer:
    """The rule that turns gradients into a step. The learning rate is TrainState's."""

    name: Literal["adam", "lbfgs"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = None
    """scale the whole gradient down to at most this Euclidean norm"""


@dataclass(frozen=True)
class Job:
    """Everything an engine needs to know before the first step."""

    model: Any  # an Autoencoder; Any because that class lives three floors up
    terms: tuple[Any, ...]
    optimizer: Optimizer = field(default_factory=Optimizer)
    dtype: str = "float32"
    """"bfloat16": products are computed in it, everything else in the parameters' own"""


@runtime_checkable
class Engine(Protocol):
    """One training step: loss, gradients, update.

    An engine computes, then commits: a step that is not finite changes nothing and names its rows. It caches no
    weight, k or learning rate, because Trainer may change them between steps. All engines share one
    ``state_dict`` format, named by parameter, so any engine resumes another's checkpoint.
    """

    name: ClassVar[str]

    def __init__(self, job: Job) -> None: ...

    @classmethod
    def refuses(cls, job: Job) -> str | None:
        """Why this engine cannot do the job; None: it can."""
        ...

    def step(self, batch: Batch, state: TrainState) -> StepReport: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None: ...
