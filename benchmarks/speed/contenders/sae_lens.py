"""SAELens: ``SAETrainer.step`` on its training SAEs; AuxK is on by default where it has one.

Not in its time: drawing and mixing batches, the log every so many steps. Codes are those of the inference model that
it saves (of BatchTopK a JumpReLU SAE), whose own ``encode`` gives them dense.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

from torch import Tensor

from contenders import LEARNING_RATE, PREFIXES, Contender, Job, Start

__all__ = ["Peer"]


class Peer(Contender):
    name = "sae-lens"
    package = "sae-lens"
    kinds = ("topk", "batchtopk", "l1", "jumprelu", "matryoshka")

    def __init__(self, job: Job) -> None:
        os.environ.setdefault("WANDB_MODE", "disabled")
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        super().__init__(job)
        total = 10_000_000 * job.batch
        config = SAETrainerConfig(
            total_training_samples=total,
            train_batch_size_samples=job.batch,
            lr=LEARNING_RATE,
            lr_end=LEARNING_RATE / 10,
        )
        self.sae = _sae(job)
        self.trainer = SAETrainer(cfg=config, sae=self.sae, data_provider=iter(()))
        self.inference: Any = None

    def step(self, x: Tensor) -> None:
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def encode(self, x: Tensor) -> Tensor:
        if self.inference is None:
            self.inference = _as_saved(self.sae)
        return self.inference.encode(x)

    def decode(self, codes: Tensor) -> Tensor:
        return self.inference.decode(codes)

    def take(self, start: Start) -> None:
        sae, trainer = self.sae, self.trainer
        sae.W_enc.data.copy_(start.W_enc.T)
        # TopK SAEs encode x - b_dec by default
        sae.b_enc.data.copy_(start.b_enc_of_centred if sae.cfg.apply_b_dec_to_input else start.b_enc)
        sae.W_dec.data.copy_(start.W_dec)
        sae.b_dec.data.copy_(start.b_dec)
        trainer.n_forward_passes_since_fired.copy_(start.dead * (trainer.cfg.dead_feature_window + 1))

    def n_dead(self) -> int:
        return int(self.trainer.dead_neurons.sum())


def _sae(job: Job) -> Any:
    import sae_lens as sl

    size = {"d_in": job.d, "d_sae": job.n_latents}
    if job.kind == "topk":
        return sl.TopKTrainingSAE(sl.TopKTrainingSAEConfig(k=job.k, **size))
    if job.kind == "batchtopk":
        return sl.BatchTopKTrainingSAE(sl.BatchTopKTrainingSAEConfig(k=job.k, **size))
    if job.kind == "matryoshka":
        widths = [round(share * job.n_latents) for share in (*PREFIXES, 1)]
        config = sl.MatryoshkaBatchTopKTrainingSAEConfig(k=job.k, matryoshka_widths=widths, **size)
        return sl.MatryoshkaBatchTopKTrainingSAE(config)
    if job.kind == "jumprelu":
        return sl.JumpReLUTrainingSAE(sl.JumpReLUTrainingSAEConfig(**size))
    return sl.StandardTrainingSAE(sl.StandardTrainingSAEConfig(**size))


def _as_saved(sae: Any) -> Any:
    from sae_lens import SAE

    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return SAE.load_from_disk(folder)
