"""overcomplete: ``train_sae`` over one batch, its log switched off.

Its criterion is the user's to write: squared error, for "l1" with the sum of the codes. It has an auxiliary loss, on
latents that were not chosen instead of dead ones; it is left out. Its encoder has a batch norm, so that weights of
others mean nothing to it: it goes its own way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contenders import LEARNING_RATE, Contender, Job, stand_ins

__all__ = ["Peer"]


class Peer(Contender):
    name = "overcomplete"
    package = "overcomplete"
    kinds = ("topk", "batchtopk", "l1")

    def __init__(self, job: Job) -> None:
        import matplotlib as mpl
        import matplotlib.pyplot as plt

        if not hasattr(mpl.cm, "get_cmap"):  # gone from matplotlib 3.9, and asked for by its import
            mpl.cm.get_cmap = plt.get_cmap
        with stand_ins("torchvision", "timm", "skimage", "cv2"):
            from overcomplete.sae import SAE, BatchTopKSAE, TopKSAE, train_sae
        super().__init__(job)
        if job.kind == "topk":
            self.sae = TopKSAE(job.d, job.n_latents, top_k=job.k)
        elif job.kind == "batchtopk":
            self.sae = BatchTopKSAE(job.d, job.n_latents, top_k=job.k * job.batch)
        else:
            self.sae = SAE(job.d, job.n_latents)
        self.train_sae = train_sae
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=LEARNING_RATE)

    def step(self, x: Tensor) -> None:
        self.sae.train()
        self.train_sae(self.sae, [x], self._criterion, self.optimizer, nb_epochs=1, monitoring=0)

    def _criterion(self, x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor) -> Tensor:
        error = (x - x_hat).square().sum(1).mean()
        return error + codes.sum(1).mean() if self.job.kind == "l1" else error

    def encode(self, x: Tensor) -> Any:
        if self.sae.training:
            self.sae.eval()
        return self.sae.encode(x)[1]

    def decode(self, codes: Tensor) -> Tensor:
        return self.sae.decode(codes)
