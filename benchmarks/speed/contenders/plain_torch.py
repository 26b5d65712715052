"""What a careful person writes by hand: autograd, fused Adam, decoder rows at unit norm. No AuxK, counters or log."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from contenders import LEARNING_RATE, PREFIXES, Contender, Job, Start

__all__ = ["Peer"]

RHO, KL_WEIGHT, WEIGHT_DECAY = 0.05, 3.0, 3e-3
"""as in fewfire's defaults"""


class Peer(Contender):
    name = "plain torch"
    kinds = ("topk", "batchtopk", "l1", "kl", "matryoshka")

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        W = F.normalize(torch.randn(job.n_latents, job.d, generator=torch.Generator().manual_seed(0)), dim=1)
        self.W_enc, self.W_dec = torch.nn.Parameter(W.clone()), torch.nn.Parameter(W.clone())
        self.b_enc = torch.nn.Parameter(torch.zeros(job.n_latents))
        self.b_dec = torch.nn.Parameter(job.rows[: job.batch].mean(0))
        parameters = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]
        self.optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
        self.threshold = 0.0

    def step(self, x: Tensor) -> float:
        loss = self._loss(x)
        loss.backward()
        if self.job.kind != "kl":
            self.W_dec.grad -= (self.W_dec.grad * self.W_dec.detach()).sum(1, keepdim=True) * self.W_dec.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.job.kind != "kl":
            with torch.no_grad():
                self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)
        return loss.item()

    def _loss(self, x: Tensor) -> Tensor:
        z = F.linear(x, self.W_enc, self.b_enc)
        if self.job.kind == "kl":
            a = z.sigmoid()
            mean = a.mean(0)
            kl = (RHO * (math.log(RHO) - mean.log()) + (1 - RHO) * (math.log(1 - RHO) - (1 - mean).log())).sum()
            decay = (self.W_enc.square().sum() + self.W_dec.square().sum()) / 2
            return self._error(a, x) + KL_WEIGHT * kl + WEIGHT_DECAY * decay
        z = z.relu()
        if self.job.kind == "l1":
            return self._error(z, x) + z.sum(1).mean()
        if self.job.kind == "topk":
            return self._error(_largest(z, self.job.k), x)
        a = _largest(z.view(1, -1), self.job.k * len(x)).view_as(z)
        return self._error(a, x) if self.job.kind == "batchtopk" else self._nested_errors(a, x)

    def _error(self, a: Tensor, x: Tensor) -> Tensor:
        return (torch.addmm(self.b_dec, a, self.W_dec) - x).square().sum(1).mean()

    def _nested_errors(self, a: Tensor, x: Tensor) -> Tensor:
        x_hat, first, errors = self.b_dec.expand_as(x), 0, []
        for share in (*PREFIXES, 1):
            last = round(share * self.job.n_latents)
            x_hat = torch.addmm(x_hat, a[:, first:last], self.W_dec[first:last])
            errors.append((x_hat - x).square().sum(1).mean())
            first = last
        return torch.stack(errors).mean()

    def encode(self, x: Tensor) -> Tensor:
        z = F.linear(x, self.W_enc, self.b_enc)
        if self.job.kind == "kl":
            return z.sigmoid()
        if self.job.kind == "topk":
            return _largest(z.relu(), self.job.k)
        return z.relu() if self.job.kind == "l1" else z * (z > self._threshold())

    def _threshold(self) -> float:
        """Of a batch; a person would keep an average."""
        if not self.threshold:
            z = F.linear(self.job.batch_at(0), self.W_enc, self.b_enc).flatten()
            self.threshold = z.topk(self.job.k * self.job.batch).values[-1].item()
        return self.threshold

    def decode(self, codes: Tensor) -> Tensor:
        return torch.addmm(self.b_dec, codes, self.W_dec)

    def take(self, start: Start) -> None:
        for mine, given in zip((self.W_enc, self.b_enc, self.W_dec, self.b_dec), start, strict=False):
            mine.data.copy_(given)


def _largest(z: Tensor, k: int) -> Tensor:
    top = z.topk(k, dim=1, sorted=False)
    return torch.zeros_like(z).scatter(1, top.indices, top.values)
