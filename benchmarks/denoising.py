"""Taking noise off MNIST digits through the latents alone, beside classical denoisers.

    python benchmarks/denoising.py --data MNIST [--peers PYTHON] [--only conv] [--sigma 0.3] [--seed 0]

Normal noise of standard deviation 0.3 on pixels between 0 and 1, not clipped; all 10,000 test pictures, unless the line
says fewer; reconstructions are clipped to [0, 1]. "PSNR" is the mean over pictures, in dB, "SSIM" as
``fewfire.metrics.ssim``; "CPU s" is fitting, one thread. Training sees clean pictures of the training set alone, with
fresh noise in every step.

* **convolutional**: 32 maps of 4 x 4 windows, then 128 maps of latents at 7 x 7 places, and the mirror back; no path
  around the latents.
* **dense**: 784-512-128-512-784, hidden units "elu", latents as they are.
* **PCA-64**: projection on the first 64 components of the clean training pictures.
* ``--peers`` is the Python of an environment with scikit-image and bm3d: total variation, non-local means and BM3D,
  each with the setting that is best on the pictures it is measured on.

The networks' settings were chosen on 1,000 pictures held out from the training set, six of them at a quarter of the
budget: two strided layers were better than one strided and one or two not (20.3, 19.9), and than three (21.5, 21.3).
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

import fewfire as ff
from measure import CpuSeconds, mnist, print_table, print_title

CONV = {"name": "conv", "channels": [32], "kernel": [4, 4], "stride": [2, 2], "latents": "maps", "unit_norm": False}
DENSE = {"name": "mlp", "hidden": [512], "hidden_activation": "elu"}
NETWORKS: dict[str, dict[str, Any]] = {
    "convolutional": {
        "n_latents": 128,
        "activation": "relu",
        "network": CONV,
        "steps": 4000,
        "batch": 64,
        "rate": 2e-3,
    },
    "dense": {"n_latents": 128, "activation": "plain", "network": DENSE, "steps": 2350, "batch": 256, "rate": 1e-3},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the four MNIST *-ubyte.gz files")
    parser.add_argument("--peers", type=Path, help="the Python of an environment with scikit-image and bm3d")
    parser.add_argument("--only", default="", metavar="WORD", help="only networks with this in their name")
    parser.add_argument("--sigma", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = mnist(args.data)
    train, clean = (torch.from_numpy(part.x).view(-1, 1, 28, 28) for part in data)
    noisy = clean + args.sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    print_title(f"MNIST, noise {args.sigma:g}")
    lines = [line("noisy", clean, noisy)]
    components = PCA(64, random_state=0).fit(data.train.x)
    projected = components.inverse_transform(components.transform(noisy.flatten(1).numpy()))
    lines.append(line("PCA-64", clean, torch.from_numpy(projected.astype(np.float32)).view_as(clean)))
    for name, settings in NETWORKS.items():
        if args.only in name:
            reconstruct, seconds = trained(train, args.sigma, args.seed, **settings)
            lines.append(line(name, clean, reconstruct(noisy), f"{seconds:.0f}"))
    lines += classical(args.peers, clean, noisy, args.sigma) if args.peers else []
    print_table(["", "PSNR", "SSIM", "CPU s", "pictures"], lines)


def trained(
    train: Tensor, sigma: float, seed: int, *, n_latents: int, steps: int, batch: int, rate: float, **what: Any
) -> tuple[Callable[[Tensor], Tensor], float]:
    """A denoiser, and the CPU seconds of its fit."""
    flat = what["network"]["name"] == "mlp"
    rows = train.flatten(1) if flat else train
    model = ff.Autoencoder(tuple(rows.shape[1:]), n_latents, seed=seed, **what)
    config = ff.TrainConfig(steps=steps, batch_size=batch, learning_rate=rate, lr_schedule="cosine", seed=seed)
    trainer = ff.Trainer(
        model, ff.ArraySource(rows), [ff.MSE()], config, corruption=ff.GaussianNoise(sigma), progress=False
    )
    with CpuSeconds() as cpu, warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.SparsityWarning)
        trainer.fit()
    return lambda x: model.reconstruct(x.flatten(1) if flat else x).view_as(x), cpu.used


def line(name: str, clean: Tensor, recon: Tensor, seconds: str = "") -> list[str]:
    recon = recon.clamp(0, 1)
    ssim = ff.metrics.ssim(clean[:1000], recon[:1000])
    return [name, f"{ff.metrics.psnr(clean, recon):.2f}", f"{ssim:.3f}", seconds, f"{len(clean):,}"]


def classical(python: Path, clean: Tensor, noisy: Tensor, sigma: float) -> list[list[str]]:
    script = Path(__file__).parent / "peers" / "classical_denoisers.py"
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures.npz")
        np.savez(pictures, clean=clean[:200, 0].numpy(), noisy=noisy[:200, 0].numpy())
        command = [str(python), "-W", "ignore", str(script), str(pictures), str(sigma)]
        told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    return [[f"{name}, oracle", f"{found['psnr']:.2f}", "", "", str(found["rows"])] for name, found in told.items()]


if __name__ == "__main__":
    main()
