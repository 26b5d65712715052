"""The kernels in plain torch: what the compiled ones must agree with, and what runs where there are none.

Faster than autograd all the same: pre-activations pass by in chunks of one reused buffer, the k largest of a row are
looked for only in the groups with the largest maxima, and everything after that touches only what fires.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire.kernels.interface import AdamStep, Codes, Loss, Outcome, Weights

__all__ = ["ReferenceKernels"]

CHUNK_VALUES = 1 << 21
"""pre-activations at once, 8 MiB"""
FEWEST_ROWS = 256
"""per product: with fewer, packing the weights takes longer than the product"""
GROUP = 16
"""latents of which only the largest is looked at first"""


class _Entries(NamedTuple):
    """Those latents of each row that fire, or may: one number each, by row and then by latent."""

    row: Tensor
    latent: Tensor
    z: Tensor
    n_rows: int

    def start(self) -> Tensor:
        """(n_rows + 1,): where each row's entries begin, and the last one's end."""
        return _starts(self.row, self.n_rows)

    def where(self, kept: Tensor) -> _Entries:
        return _Entries(self.row[kept], self.latent[kept], self.z[kept], self.n_rows)


class _Contribution(NamedTuple):
    """Entries with what the decoder reads of them, and the gradients that come back."""

    entries: _Entries
    value: Tensor
    gradient: Tensor
    place: Tensor
    """(entries,): which row of ``errors`` each answers to"""
    errors: Tensor
    """(rows times prefixes, D of the target): gradients of the objective by the reconstructions"""


class ReferenceKernels:
    """``Kernels`` in plain torch."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.float32)
        self._revival: _Contribution | None = None
        self._more: tuple[Tensor, ...] | None = None

    def pack(self, W_enc: Tensor, b_enc: Tensor) -> None:
        self._W_enc, self._b_enc = W_enc, b_enc

    # ------------------------------------------------------------------------------ codes

    def largest(self, x: Tensor, k: int) -> None:
        self._leave(x, [_largest(z, k) for z in self._pre_acts(x, self._W_enc, self._b_enc)])

    def above(self, x: Tensor, thresholds: Tensor) -> None:
        chunks = self._pre_acts(x, self._W_enc, self._b_enc)
        self._leave(x, [_entries(z, (z > thresholds).nonzero(as_tuple=True)) for z in chunks])

    def _leave(self, x: Tensor, parts: list[_Entries]) -> None:
        entries = _together(parts)
        self._finite = x.isfinite().all(1)
        self._codes = entries if self._finite.all() else entries.where(self._finite[entries.row])

    def keep(self, n: int) -> float | None:
        z = self._codes.z
        if len(z) <= n:
            return None
        lowest = z.kthvalue(len(z) - n).values
        self._codes = self._codes.where(z > lowest)
        return float(lowest)

    def codes(self) -> Codes:
        entries = self._codes
        return Codes(entries.start(), entries.latent.to(torch.int32), entries.z, self._finite)

    def _pre_acts(self, x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Iterator[Tensor]:
        """Of a chunk of rows after the other, each in the memory of the one before."""
        n_rows = max(FEWEST_ROWS, CHUNK_VALUES // len(W_enc))
        size = min(n_rows, len(x)) * len(W_enc)
        if self._buffer.numel() < size:
            self._buffer = torch.empty(size, dtype=torch.float32)
        for rows in torch.split(x, n_rows):
            z = self._buffer[: len(rows) * len(W_enc)].view(len(rows), len(W_enc))
            yield torch.addmm(b_enc, rows, W_enc.T, out=z)

    # ------------------------------------------------------------------------------ the step

    def reconstruct(self, weights: Weights, x_in: Tensor, x: Tensor, loss: Loss) -> Outcome:
        self._weights, self._x_in, self._loss, self._revival, self._more = weights, x_in, loss, None, None
        entries = self._codes
        value = entries.z
        if loss.threshold is not None:
            value = value.where(value > loss.threshold[entries.latent], 0.0)
        bounds = torch.tensor(loss.prefixes)
        prefix = torch.searchsorted(bounds, entries.latent, right=True)
        read = [prefix == p for p in range(len(loss.prefixes))]
        with torch.enable_grad():
            values = [value[m].requires_grad_() for m in read] if len(read) > 1 else [value.detach().requires_grad_()]
            written = [
                _decode(entries.where(m) if len(read) > 1 else entries, v, weights.W_dec)
                for m, v in zip(read, values, strict=True)
            ]
        errors, recon = [], weights.b_dec - x
        for part in written:
            recon = recon + part.detach()
            errors.append(recon)
        slopes, total = [], torch.zeros_like(x)
        for error, slope in zip(reversed(errors), reversed(loss.slopes), strict=True):
            total = total + slope * error  # a latent is in its own prefix and in all after it
            slopes.append(total)
        slopes.reverse()
        gradient = torch.empty_like(value)
        for m, part in zip(read, torch.autograd.grad(written, values, slopes), strict=True):
            gradient[m] = part
        gradient += loss.l1 * (value > 0)
        self._error, self._bias_gradient = errors[-1], slopes[0].sum(0)
        place = entries.row * len(read) + prefix
        stacked = torch.stack(slopes, 1).flatten(0, 1)
        self._main = _Contribution(entries, value, gradient, place, stacked)
        fired = torch.zeros(len(weights.W_enc), dtype=torch.bool)
        fired[entries.latent[value > 0]] = True
        squares = [float(e.double().square().sum()) for e in errors]
        sound = bool(self._finite.all()) and bool((self._W_enc.sum() + self._b_enc.sum()).isfinite())
        self._largest = _bound(self._main, x_in) if sound else float("inf")
        return Outcome(squares, fired, int((value > 0).sum()), float(value.double().sum()), self._largest)

    def left_over(self) -> Tensor:
        return -self._error

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b.T

    def join(self, latents: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> None:
        self._more = (latents.long(), W_enc, b_enc, W_dec)

    def revive(self, dead: Tensor, k: int, slope: float) -> tuple[float, float]:
        weights, where = self._weights, dead.long()
        chunks = self._pre_acts(self._x_in, weights.W_enc[where], weights.b_enc[where])
        entries = _together([_largest(z, k) for z in chunks])
        entries = entries._replace(latent=where[entries.latent])
        with torch.enable_grad():
            value = entries.z.requires_grad_()
            written = _decode(entries, value, weights.W_dec)
        left = written.detach() + self._error
        (gradient,) = torch.autograd.grad(written, value, slope * left)
        revival = _Contribution(entries, value.detach(), gradient, entries.row, slope * left)
        self._revival = revival
        self._largest += _bound(revival, self._x_in)
        return float(left.double().square().sum()), self._largest

    def norm(self) -> float:
        return float(torch.stack([g.double().norm() for g in (*self._gradients(), self._thresholds())]).norm())

    def update(self, adam: AdamStep, factor: float, threshold_gradient: Tensor | None) -> None:
        weights = self._weights
        if threshold_gradient is not None:
            threshold_gradient.copy_(factor * self._thresholds())
        torch._fused_adam_(
            list(weights[:4]),
            [g if factor == 1 else g * factor for g in self._gradients()],
            list(adam.average),
            list(adam.square),
            [],
            [torch.tensor(t, dtype=torch.float32) for t in adam.steps],
            lr=adam.lr,
            beta1=adam.beta1,
            beta2=adam.beta2,
            weight_decay=0.0,
            eps=adam.eps,
            amsgrad=False,
            maximize=False,
        )
        if weights.unit_norm:
            tiny = torch.finfo(torch.float32).tiny
            weights.W_dec.div_(weights.W_dec.norm(dim=1, keepdim=True).clamp_min(tiny))

    def _gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of W_enc, b_enc, W_dec, b_dec."""
        weights = self._weights
        W_enc, b_enc, W_dec = _by_latent(self._main, self._x_in, weights)
        if self._revival is not None:
            for own, revival in zip((W_enc, b_enc, W_dec), _by_latent(self._revival, self._x_in, weights), strict=True):
                own.add_(revival)
        if self._more is not None:
            latents, *joining = self._more
            for own, more in zip((W_enc, b_enc, W_dec), joining, strict=True):
                own.index_add_(0, latents, more)
        if weights.unit_norm:
            W_dec -= (W_dec * weights.W_dec).sum(1, keepdim=True) * weights.W_dec
        return W_enc, b_enc, W_dec, self._bias_gradient

    def _thresholds(self) -> Tensor:
        """The straight-through gradient of thresholds (Rajamanoharan et al. 2024, equations 11 and 12)."""
        loss, main = self._loss, self._main
        gradient = torch.zeros(len(self._weights.W_enc), dtype=torch.float32)
        if loss.threshold is None:
            return gradient
        threshold = loss.threshold[main.entries.latent]
        window = (main.entries.z - threshold).abs() < loss.width / 2
        return gradient.index_add_(
            0, main.entries.latent, window * (threshold * main.gradient + loss.step_slope) / -loss.width
        )


def _largest(z: Tensor, k: int) -> _Entries:
    """The k largest of each row that are above 0. The k groups with the largest maxima hold them."""
    n = z.shape[1]
    k = min(k, n)
    n_groups = n // GROUP
    if n % GROUP or n_groups <= 2 * k:
        top = z.topk(k, sorted=False)
        values, latents = top.values, top.indices
    else:
        best = z.view(len(z), GROUP, n_groups).amax(1).topk(k, sorted=False).indices
        members = (best.unsqueeze(2) + n_groups * torch.arange(GROUP)).flatten(1)
        top = z.gather(1, members).topk(k, sorted=False)
        values, latents = top.values, members.gather(1, top.indices)
    latents, order = latents.sort(1)
    values = values.gather(1, order)
    rows, places = (values > 0).nonzero(as_tuple=True)
    return _Entries(rows, latents[rows, places], values[rows, places], len(z))


def _entries(z: Tensor, where: tuple[Tensor, ...]) -> _Entries:
    return _Entries(where[0], where[1], z[where], len(z))


def _together(parts: list[_Entries]) -> _Entries:
    """Entries of chunks of rows, as those of all rows."""
    first, rows = 0, []
    for part in parts:
        rows.append(part.row + first)
        first += part.n_rows
    return _Entries(torch.cat(rows), torch.cat([p.latent for p in parts]), torch.cat([p.z for p in parts]), first)


def _starts(groups: Tensor, n: int) -> Tensor:
    return F.pad(torch.bincount(groups, minlength=n).cumsum(0), (1, 0))


def _decode(entries: _Entries, value: Tensor, W_dec: Tensor) -> Tensor:
    """(rows, D of the target): what entries write, without bias."""
    start = entries.start()[:-1]
    return F.embedding_bag(entries.latent, W_dec, start, mode="sum", per_sample_weights=value)


def _by_latent(c: _Contribution, x_in: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of W_enc, b_enc and W_dec: for each latent, a weighted sum of the rows on which it fires."""
    firing = c.value > 0
    latent, order = c.entries.latent[firing].sort(stable=True)
    row, place = c.entries.row[firing][order], c.place[firing][order]
    value, gradient = c.value[firing][order], c.gradient[firing][order]
    start = _starts(latent, len(weights.W_enc))[:-1]
    W_enc = F.embedding_bag(row, x_in, start, mode="sum", per_sample_weights=gradient)
    W_dec = F.embedding_bag(place, c.errors, start, mode="sum", per_sample_weights=value)
    return W_enc, torch.zeros_like(weights.b_enc).index_add_(0, latent, gradient), W_dec


def _bound(c: _Contribution, x_in: Tensor) -> float:
    """No entry of a gradient is larger."""
    errors, rows = c.errors.double().norm(dim=1), x_in.double().norm(dim=1)
    values, gradients = c.value.double(), c.gradient.double().abs()
    return float(values @ errors[c.place] + gradients @ rows[c.entries.row] + errors.sum())
