"""scikit-learn's MiniBatchDictionaryLearning: ``partial_fit`` on a batch, with its defaults.

Another algorithm for the same purpose: it solves for the codes of every row by least angles instead of one product.
Compare times with that in mind. Its codes are by orthogonal matching pursuit, k a row.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from contenders import Contender, Job

__all__ = ["Peer"]

MOST_LATENTS = 1024
"""beyond which a step takes minutes"""


class Peer(Contender):
    name = "MiniBatchDictionaryLearning"
    package = "scikit-learn"
    kinds = ("l1",)

    def __init__(self, job: Job) -> None:
        from sklearn.decomposition import MiniBatchDictionaryLearning

        if job.n_latents > MOST_LATENTS:
            raise ValueError(f"a step with more than {MOST_LATENTS} components takes minutes")
        super().__init__(job)
        self.model: Any = MiniBatchDictionaryLearning(
            job.n_latents, batch_size=job.batch, transform_n_nonzero_coefs=job.k, random_state=0
        )

    def step(self, x: Tensor) -> None:
        self.model.partial_fit(x.numpy())

    def encode(self, x: Tensor) -> Any:
        return self.model.transform(x.numpy())

    def decode(self, codes: Any) -> Any:
        return self.model.inverse_transform(codes)
