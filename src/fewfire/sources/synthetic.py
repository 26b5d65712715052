"""Rows made of known features: the one kind of data on which a dictionary can be compared with the truth.

The world is that of SynthSAEBench (arXiv 2602.14687), written anew: which features fire is drawn from a Gaussian
copula, trees of features let a child fire only with its parent, and a row is the sum of the features that fire.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire import rng
from fewfire.contracts import Batch, Layout
from fewfire.sources.coefficients import Coefficients
from fewfire.sources.registry import built_in

__all__ = ["SyntheticWorld", "world"]

BLOCK = 1024
"""Rows that are drawn together; another number makes other rows."""
VERSION = 1
"""Part of every fingerprint; to be raised with any change after which other rows are drawn."""
MEASURED_BLOCKS = 64


class SyntheticWorld:
    """A source whose rows are sums of known unit features, few of which fire.

    ::

        x = coefficients @ features + offset + noise          (B, N) @ (N, D) + (D,) -> (B, D)

    Rows are independent of each other, and row i is a function of the world's settings and i alone: a block of 1,024
    rows is drawn from a generator of its own whenever one of them is asked for. So a world of 100 rows has the first
    100 rows of an endless one.

    **Order.** An epoch gives every row once. ``shuffle`` takes the blocks in a random order, and the rows of each in a
    random order. Rows of one block stay near each other, which changes nothing, because rows are independent. An
    endless world takes its blocks in their own order.

    **Split.** The last rows are held out; they are as random as any others. An endless world has no last rows: take
    ``fresh(n_rows)``, rows that it never gives.

    Parameters
    ----------
    n_features, d
        N and D.
    n_rows
        Rows of an epoch; None: endless.
    probability
        With which a feature fires: one number, or (the first feature's, the last one's). Between them it falls as
        1 / rank**exponent, moved and scaled to end there (Zipf).
    exponent
        Of that law.
    roots, branching, depth
        Trees: so many roots, ``branching`` children a feature, ``depth`` levels below the roots; numbered level by
        level, so that roots come first. What is left of N is free. A child fires only with its parent, and its
        coefficient is multiplied by the parent's over the parent's mean. 0 roots: all are free.
    exclusive
        At most one child of a parent fires: of those that would, one at random.
    compensate
        Let a child whose parent fires do so more often, that all in all it may fire about as often as ``probability``
        says: p / p_parent * (1 + sum of siblings' p / p_parent), 1 at most. The second factor only if ``exclusive``.
    rank, correlation
        Features fire together: they share ``rank`` normal variables of a Gaussian copula, with loadings drawn from
        N(0, ``correlation``**2). 0: they fire independently.
    mean
        Of a coefficient, or (the first feature's, the last one's), linear between.
    std
        (m, s): the standard deviation of a feature's coefficients is drawn once, as abs(N(m, s**2)).
    offset
        Norm of a constant that is added to every row.
    noise
        Standard deviation of normal noise on every value.
    orthogonal_steps
        Steps of Adam that lower the squared cosines of the features; 0: random directions. Features of which there
        are no more than columns are made exactly orthogonal at once.
    seed
        Of the world and its rows.
    device
        Where rows are made. Another kind of device makes other rows.

    Attributes
    ----------
    features
        (N, D) float32, of norm 1.
    offset
        (D,) float32.
    parents
        (N,) int64, -1 where there is none.
    levels
        (N,) int64: 0 for roots, 1 for their children, ...; -1 for free features.

    Raises
    ------
    ValueError
        A setting makes no sense, such as more tree features than features.
    """

    n_rows: int | None
    row_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    labels = None
    suggested_preprocess = "center"  # one scale for all columns; one for each would bend the features

    def __init__(
        self,
        n_features: int = 256,
        d: int = 64,
        *,
        n_rows: int | None = None,
        probability: float | tuple[float, float] = 0.02,
        exponent: float = 0.5,
        roots: int = 0,
        branching: int = 4,
        depth: int = 3,
        exclusive: bool = True,
        compensate: bool = True,
        rank: int = 0,
        correlation: float = 0.1,
        mean: float | tuple[float, float] = 1.0,
        std: tuple[float, float] = (0.2, 0.0),
        offset: float = 0.0,
        noise: float = 0.0,
        orthogonal_steps: int = 100,
        seed: int = 0,
        name: str = "world",
        device: str | torch.device = "cpu",
    ) -> None:
        settings = dict(locals())
        for key in ("self", "name", "n_rows", "device"):
            del settings[key]
        _check(settings, n_rows)
        self._device = torch.device(device)
        self.settings: dict[str, Any] = {**settings, "device": self._device.type}
        self.name, self.n_rows = name, n_rows
        self.row_shape = self.target_shape = (d,)
        self.layout = Layout()
        self._first, self._stream = 0, 0
        self._coefficients = Coefficients(
            n_features,
            probability=probability,
            exponent=exponent,
            trees=(roots, branching, depth),
            exclusive=exclusive,
            compensate=compensate,
            rank=rank,
            correlation=correlation,
            mean=mean,
            std=std,
            seed=seed,
            device=self._device,
        )
        self.levels, self.parents = self._coefficients.levels, self._coefficients.parents
        self.features = _directions(n_features, d, orthogonal_steps, seed).to(self._device)
        self.offset = offset * _directions(1, d, 0, seed, "offset")[0].to(self._device)

    @classmethod
    def hierarchical(
        cls,
        n_features: int = 1024,
        d: int = 128,
        *,
        roots: int = 8,
        branching: int = 4,
        depth: int = 3,
        n_rows: int | None = None,
        seed: int = 42,
        **changes: Any,
    ) -> Self:
        """Trees of correlated features with an offset: by default SynthSAEBench's world, made 16 times smaller.

        ``hierarchical(16_384, 768, roots=128)`` is SynthSAEBench-16k, drawn anew; ``hierarchical(roots=12, branching=3,
        seed=43)`` a second small world, to try on what was tuned on the first. ``changes`` are other settings.
        """
        usual = {"probability": (0.4, 5e-4), "rank": 25, "mean": (5.0, 4.0), "std": (0.5, 0.5), "offset": 0.5}
        trees = {"roots": roots, "branching": branching, "depth": depth}
        return cls(n_features, d, n_rows=n_rows, seed=seed, **{**usual, **trees, **changes})

    @classmethod
    def independent(
        cls,
        n_features: int = 256,
        d: int = 64,
        *,
        probability: float | tuple[float, float] = 0.02,
        n_rows: int | None = None,
        seed: int = 0,
        **changes: Any,
    ) -> Self:
        """Features that fire independently of each other and equally often: superposition at its plainest."""
        return cls(n_features, d, n_rows=n_rows, probability=probability, seed=seed, **changes)

    def __repr__(self) -> str:
        n, d = self.features.shape
        rows = "endless" if self.n_rows is None else f"{self.n_rows} rows"
        return f"<{type(self).__name__} {self.name!r}: {n} features in {d} columns, {rows}>"

    # ------------------------------------------------------------------------------------------------- the truth

    def truth(self, rows: Any) -> Tensor:
        """(B, N) float32: the true coefficients of these rows; 0 where a feature does not fire, else above.

        Parameters
        ----------
        rows
            (B,) row numbers, such as ``batch.rows``.

        Raises
        ------
        ValueError
            They are not whole numbers of 0 or more.
        """
        wanted = torch.as_tensor(rows)
        if wanted.ndim != 1 or wanted.is_floating_point() or (len(wanted) and int(wanted.min()) < 0):
            raise ValueError(f"expected (B,) row numbers of 0 or more; got {rows!s:.80}")
        wanted = wanted.to(self._device, torch.int64)
        out = torch.zeros(len(wanted), len(self.features), device=self._device)
        blocks = wanted // BLOCK
        for block in set(blocks.tolist()):
            row, feature, value = self._coefficients.draw(BLOCK, self._generator(block))
            dense = torch.zeros(BLOCK, len(self.features), device=self._device)
            dense[row, feature] = value
            here = blocks == block
            out[here] = dense[wanted[here] % BLOCK]
        return out

    @cached_property
    def frequencies(self) -> Tensor:
        """(N,) float64: the share of rows on which each feature fires; measured, on the first 65,536 rows."""
        counts = torch.zeros(len(self.features), dtype=torch.int64, device=self._device)
        for block in range(MEASURED_BLOCKS):
            _, feature, _ = self._coefficients.draw(BLOCK, self._generator(block))
            counts += torch.bincount(feature, minlength=len(counts))
        return counts.double() / (MEASURED_BLOCKS * BLOCK)

    @property
    def l0(self) -> float:
        """How many features fire on a row, on average; measured as ``frequencies`` are."""
        return float(self.frequencies.sum())

    # -------------------------------------------------------------------------------------------------- the rows

    def batches(
        self, batch_size: int, *, seed: int = 0, epoch: int = 0, start: int = 0, shuffle: bool = True
    ) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, ... of an epoch; only the blocks that they need are drawn.

        Raises
        ------
        ValueError
            ``batch_size`` below 1 or ``start`` below 0.
        """
        if batch_size < 1 or start < 0:
            raise ValueError(f"expected batch_size >= 1 and start >= 0, got {batch_size} and {start}")
        return _in_batches(self._runs(start * batch_size, (seed, epoch) if shuffle else None), batch_size)

    def _runs(self, at: int, order: tuple[int, int] | None) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, row numbers), one block after the other, from place ``at`` of the epoch on."""
        for block, skipped in self._blocks(at, order):
            first, last = self._within(block)
            x, rows = self._draw(block)[first:last], torch.arange(first, last) + block * BLOCK
            if order is not None:
                shuffled = rng.permutation(last - first, *order, block)
                x, rows = x[shuffled.to(self._device)], rows[shuffled]
            yield x[skipped:], rows[skipped:]

    def _blocks(self, at: int, order: tuple[int, int] | None) -> Iterator[tuple[int, int]]:
        """(block, how many of its rows come before place ``at``), in the order of the epoch."""
        if self.n_rows is None:
            yield at // BLOCK, at % BLOCK
            yield from ((block, 0) for block in itertools.count(at // BLOCK + 1))
        begin, end = self._first // BLOCK, -(-(self._first + (self.n_rows or 0)) // BLOCK)
        n = end - begin
        for block in (torch.arange(n) if order is None else rng.permutation(n, *order, "blocks")).tolist():
            first, last = self._within(begin + block)
            if at < last - first:
                yield begin + block, at
            at = max(at - (last - first), 0)

    def _within(self, block: int) -> tuple[int, int]:
        """The first of my rows in a block, and the one after the last."""
        last = BLOCK if self.n_rows is None else min(self._first + self.n_rows - block * BLOCK, BLOCK)
        return max(self._first - block * BLOCK, 0), last

    def _draw(self, block: int) -> Tensor:
        """(BLOCK, D) float32."""
        generator = self._generator(block)
        row, feature, value = self._coefficients.draw(BLOCK, generator)
        begins = torch.searchsorted(row, torch.arange(BLOCK, device=self._device))
        x = F.embedding_bag(feature, self.features, begins, mode="sum", per_sample_weights=value)
        if self.settings["offset"]:
            x += self.offset
        if self.settings["noise"]:
            x += self.settings["noise"] * torch.randn(x.shape, generator=generator, device=self._device)
        return x

    def _generator(self, block: int) -> torch.Generator:
        return rng.generator(self.settings["seed"], "rows", self._stream, block, device=self._device)

    # -------------------------------------------------------------------------------------------- parts, and others

    def _fingerprint(self) -> str:
        """sha256 of the settings, and of which rows these are."""
        described = [VERSION, BLOCK, self.settings, self._stream, self._first, self.n_rows]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    fingerprint: str = cached_property(_fingerprint)  # type: ignore[assignment]  # the protocol asks for an attribute

    def fresh(self, n_rows: int | None, stream: int = 1) -> Self:
        """The same world with rows that this source never gives: those of another ``stream``, numbered from 0."""
        if not isinstance(stream, int) or stream == self._stream:
            raise ValueError(f"expected a stream other than this world's {self._stream}; got {stream!r}")
        _check(self.settings, n_rows)
        return self._part(0, n_rows, stream)

    def split(self, fraction: float, seed: int = 0) -> tuple[Self, Self]:
        """(the rest, the last ``fraction`` of the rows); the seed changes nothing.

        Raises
        ------
        ValueError
            ``fraction`` is not between 0 and 1, there is only one row, or there is no last one.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be above 0 and below 1, got {fraction}; 0.1 is usual")
        if self.n_rows is None:
            raise ValueError("an endless world has no last rows to hold out; take others as validation: fresh(10_000)")
        if self.n_rows < 2:
            raise ValueError(f"a split needs at least 2 rows, {self.name} has {self.n_rows}")
        held = min(max(round(self.n_rows * fraction), 1), self.n_rows - 1)
        rest = self.n_rows - held
        return self._part(self._first, rest, self._stream), self._part(self._first + rest, held, self._stream)

    def _part(self, first: int, n_rows: int | None, stream: int) -> Self:
        part = copy.copy(self)
        part._first, part.n_rows, part._stream = first, n_rows, stream
        for measured in ("frequencies", "fingerprint"):
            part.__dict__.pop(measured, None)
        return part


@built_in
def world(n_rows: int = 100_000, n_features: int = 1024, d: int = 128, seed: int = 42) -> SyntheticWorld:
    """The small hierarchical world: rows whose true features are known (see :class:`SyntheticWorld`)."""
    return SyntheticWorld.hierarchical(n_features, d, n_rows=n_rows, seed=seed)


def _in_batches(runs: Iterator[tuple[Tensor, Tensor]], batch_size: int) -> Iterator[Batch]:
    """Runs of any length, cut and joined."""
    held: list[tuple[Tensor, Tensor]] = []
    count = 0
    for x, rows in runs:
        while len(rows):
            room = batch_size - count
            held.append((x[:room], rows[:room]))
            count += len(held[-1][1])
            x, rows = x[room:], rows[room:]
            if count == batch_size:
                yield _joined(held)
                held, count = [], 0
    if held:
        yield _joined(held)


def _joined(parts: list[tuple[Tensor, Tensor]]) -> Batch:
    x, rows = parts[0] if len(parts) == 1 else (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return Batch(x, x, rows)


def _directions(n: int, d: int, steps: int, seed: int, what: str = "features") -> Tensor:
    """(n, d) float32 of norm 1: random, then turned away from each other.

    Lowered by Adam at 3e-4 is the sum of squared cosines, with n times that of the squared norms' distances from 1. Its
    gradient needs no (n, n) matrix: sum over j of (e_i . e_j) e_j is e_i times the (d, d) matrix of second moments.
    """
    e: Tensor = torch.randn(n, d, generator=rng.generator(seed, what), dtype=torch.float64)
    if steps and n <= d:
        orthonormal: Tensor = torch.linalg.qr(e.T).Q.T
        return orthonormal.float().contiguous()
    e = F.normalize(e, dim=1)
    first, second = torch.zeros_like(e), torch.zeros_like(e)
    for step in range(1, steps + 1):
        square = e.square().sum(1, keepdim=True)
        gradient = 4 * (e @ (e.T @ e) - square * e + n * (square - 1) * e)
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.001)
        e -= 3e-4 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return F.normalize(e, dim=1).float()


def _check(settings: dict[str, Any], n_rows: int | None) -> None:
    """Refuse settings that make no sense."""
    whole = {
        "n_features": 1,
        "d": 1,
        "roots": 0,
        "branching": 1,
        "depth": 0,
        "rank": 0,
        "orthogonal_steps": 0,
        "seed": 0,
    }
    for key, least in whole.items():
        _check_whole(key, settings[key], least)
    if n_rows is not None:
        _check_whole("n_rows", n_rows, 1)
    for key in ("exponent", "correlation", "offset", "noise"):
        _check_numbers(key, settings[key], 0, math.inf)
    _check_numbers("probability", settings["probability"], 0, 1)
    _check_numbers("mean", settings["mean"], math.ulp(0), math.inf)
    _check_numbers("std", settings["std"], 0, math.inf)


def _check_whole(key: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"expected {key} to be a whole number of at least {least}; got {value!r:.40}")


def _check_numbers(key: str, value: Any, least: float, most: float) -> None:
    """One number, or a pair of them."""
    numbers = value if isinstance(value, tuple | list) and len(value) == 2 else (value,)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and least <= v <= most for v in numbers):
        raise ValueError(f"expected {key} to be a number (or two) from {least} to {most}; got {value!r:.60}")
