"""eai-sparsify: ``SparseCoder`` and the body of its Trainer's hook and step around it, transcribed line by line.

Its Trainer takes nothing but a language model. Transcribed from ``sparsify/trainer.py`` 1.3.3: everything that it does
with a batch of activations on one machine, without the language model, masks of tokens and micro-batches. Adam instead
of signum, its default, so that all have the same rule; ``auxk_alpha`` 1/32 instead of 0, so that all revive the dead.
"""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

import torch
from torch import Tensor

from contenders import LEARNING_RATE, Contender, Job, Start

__all__ = ["Peer"]


class Peer(Contender):
    name = "eai-sparsify"
    package = "eai-sparsify"
    kinds = ("topk",)

    auxk_alpha = 1 / 32
    dead_feature_threshold = 10_000_000

    def __init__(self, job: Job) -> None:
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
        with contextlib.redirect_stdout(io.StringIO()):
            from sparsify.config import SparseCoderConfig
            from sparsify.sparse_coder import SparseCoder
        super().__init__(job)
        self.sae = SparseCoder(job.d, SparseCoderConfig(num_latents=job.n_latents, k=job.k), dtype=torch.float32)
        self.sae.b_dec.data = job.rows[: job.batch].mean(0)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=LEARNING_RATE)
        self.since_fired = torch.zeros(job.n_latents, dtype=torch.long)
        self.did_fire = torch.zeros(job.n_latents, dtype=torch.bool)

    def step(self, x: Tensor) -> None:
        sae = self.sae
        sae.set_decoder_norm_to_unit_norm()
        dead_mask = self.since_fired > self.dead_feature_threshold
        total_variance = (x - x.mean(0)).pow(2).sum()
        out = sae(x=x, y=x, dead_mask=dead_mask, total_variance=total_variance)
        self.did_fire[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        float(out.auxk_loss.detach())
        loss = out.fvu + self.auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8
        loss.div(1).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.since_fired += len(x)
            self.since_fired[self.did_fire] = 0
            self.did_fire.zero_()

    def encode(self, x: Tensor) -> Any:
        return self.sae.encode(x)

    def decode(self, codes: Any) -> Tensor:
        return self.sae.decode(codes.top_acts, codes.top_indices)

    def take(self, start: Start) -> None:
        self.sae.encoder.weight.data.copy_(start.W_enc)
        self.sae.encoder.bias.data.copy_(start.b_enc_of_centred)
        self.sae.W_dec.data.copy_(start.W_dec)
        self.sae.b_dec.data.copy_(start.b_dec)
        self.since_fired.copy_(start.dead * (self.dead_feature_threshold + 1))

    def n_dead(self) -> int:
        return int((self.since_fired > self.dead_feature_threshold).sum())
