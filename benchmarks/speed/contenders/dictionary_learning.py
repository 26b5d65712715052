"""dictionary_learning: ``update(step, batch)`` of its trainers; AuxK is on by default where it has one.

Not in its time: its buffer of activations, logging.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from contenders import LEARNING_RATE, PREFIXES, WITH_AUXK, Contender, Job, Start, stand_ins

__all__ = ["Peer"]


class Peer(Contender):
    name = "dictionary-learning"
    package = "dictionary-learning"
    kinds = ("topk", "batchtopk", "l1", "jumprelu", "matryoshka")

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.trainer = _trainer(job)

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.steps_done, x)

    def encode(self, x: Tensor) -> Tensor:
        return self.trainer.ae.encode(x)  # of BatchTopK by its threshold, which is its default

    def decode(self, codes: Tensor) -> Tensor:
        return self.trainer.ae.decode(codes)

    def take(self, start: Start) -> None:
        ae = self.trainer.ae
        if self.job.kind == "matryoshka":
            ae.W_enc.data.copy_(start.W_enc.T)
            ae.b_enc.data.copy_(start.b_enc_of_centred)
            ae.W_dec.data.copy_(start.W_dec)
        else:
            ae.encoder.weight.data.copy_(start.W_enc)
            ae.encoder.bias.data.copy_(start.b_enc_of_centred)
            ae.decoder.weight.data.copy_(start.W_dec.T)
        ae.b_dec.data.copy_(start.b_dec)
        self.trainer.num_tokens_since_fired.copy_(start.dead * self.trainer.dead_feature_threshold)

    def n_dead(self) -> int | None:
        if self.job.kind not in WITH_AUXK:
            return None
        return int((self.trainer.num_tokens_since_fired >= self.trainer.dead_feature_threshold).sum())


def _trainer(job: Job) -> Any:
    with stand_ins("nnsight", "circuitsvis", "umap"):
        from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
        from dictionary_learning.trainers.jumprelu import JumpReluTrainer
        from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
        from dictionary_learning.trainers.standard import StandardTrainer
        from dictionary_learning.trainers.top_k import TopKTrainer
    common = {
        "steps": 10_000_000,
        "activation_dim": job.d,
        "dict_size": job.n_latents,
        "layer": 0,
        "lm_name": "none",
        "device": "cpu",
        "lr": LEARNING_RATE,
        "warmup_steps": 1,
    }
    if job.kind in WITH_AUXK:
        common |= {"k": job.k, "threshold_start_step": 0}  # as in all of training but the first 1,000 steps
    else:
        common |= {"sparsity_warmup_steps": 1}
    if job.kind == "topk":
        return TopKTrainer(**common)
    if job.kind == "batchtopk":
        return BatchTopKTrainer(**common)
    if job.kind == "matryoshka":
        fractions = [last - first for first, last in zip((0, *PREFIXES), (*PREFIXES, 1), strict=True)]
        return MatryoshkaBatchTopKTrainer(group_fractions=fractions, **common)
    if job.kind == "jumprelu":
        return JumpReluTrainer(target_l0=job.k, **common)
    return StandardTrainer(**common)
