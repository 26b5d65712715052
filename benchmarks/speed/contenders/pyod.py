"""PyOD's AutoEncoder: one hidden layer, ``training_forward`` on a batch.

A dense autoencoder for finding outliers: squared error and weight decay, nothing sparse. Without batch norm and
dropout, its defaults, which would only cost it time. Not in its time: the DataLoader of its ``fit``, which collates
single rows.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from contenders import LEARNING_RATE, Contender, Job

__all__ = ["Peer"]


class Peer(Contender):
    name = "PyOD AutoEncoder"
    package = "pyod"
    kinds = ("l1", "kl")

    def __init__(self, job: Job) -> None:
        from pyod.models.auto_encoder import AutoEncoder

        super().__init__(job)
        self.model: Any = AutoEncoder(
            lr=LEARNING_RATE,
            batch_size=job.batch,
            hidden_neuron_list=[job.n_latents],
            hidden_activation_name="relu" if job.kind == "l1" else "sigmoid",
            batch_norm=False,
            dropout_rate=0,
            verbose=0,
            device="cpu",
        )
        self.model.feature_size = job.d  # what fit does before its loop
        self.model.build_model()
        self.model.training_prepare()

    def step(self, x: Tensor) -> None:
        self.model.training_forward(x)

    def encode(self, x: Tensor) -> Tensor:
        return self.model.model.encoder(x)

    def decode(self, codes: Tensor) -> Tensor:
        return self.model.model.decoder(codes)
