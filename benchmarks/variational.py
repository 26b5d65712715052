"""The variational autoencoder beside pythae's: the same network, rows, epochs, batches and rate.

    python benchmarks/variational.py --data MNIST [--pythae PYTHON] [--epochs 20] [--seed 0]

Statically binarised MNIST: every pixel is drawn once, with its grey value as probability, by numpy's generator with
seed 0; the first 50,000 rows train, 10,000 choose the best epoch, 10,000 test. Both are 784-512-20 and 20-512-784,
hidden units rectified, Bernoulli likelihood, Adam, batches of 128, rate 0.001, beta 1.

"-log p" is the mean over the test rows, in nats, from 200 importance samples, the same estimator for both: pythae's
weights are put into a fewfire model, whose likelihood of some rows is printed beside pythae's own. fewfire stands there
twice. The ``Trainer`` starts from plain first weights and keeps a constant rate and the best of the epochs, as pythae
does. The ``VariationalAutoencoder`` is told sizes, rate, batch and epochs; the rest is its own: a decoder that starts
from the mean row, beta that comes up over a tenth of training, a rate that comes down over the last fifth, and the last
weights instead of the best. "CPU s" is training alone, one thread. ``--pythae`` is the Python of an environment
with pythae; without one its line stays empty.

Last, the divergence in closed form beside its mean over 2,000 draws per row.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import fewfire as ff
from measure import CpuSeconds, mnist, print_table, print_title

LATENTS, HIDDEN, BATCH, RATE = 20, 512, 128, 1e-3
SAMPLES = 200

Split = dict[str, npt.NDArray[np.uint8]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the four MNIST *-ubyte.gz files")
    parser.add_argument("--pythae", type=Path, help="the Python of an environment with pythae")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of training; the pixels are fixed")
    args = parser.parse_args()
    data = binarised(args.data)
    print_title(f"Statically binarised MNIST, {args.epochs} epochs, {LATENTS} latents")
    lines, models = [], {}
    for name, train in {"fewfire, Trainer": trained, "fewfire, VariationalAutoencoder": estimated}.items():
        models[name], seconds = train(data, args.epochs, args.seed)
        lines.append([name, f"{nll(models[name], data['test']):.2f}", f"{seconds:.0f}", ""])
    if args.pythae:
        peer, told = pythae(args.pythae, data, args.epochs, args.seed)
        few = f"{nll(peer, data['test'][:300]):.2f} here, {told['own_nll']:.2f} by pythae"
        lines.append(["pythae", f"{nll(peer, data['test']):.2f}", f"{told['seconds']:.0f}", few])
    print_table(["", "-log p", "CPU s", "first 300 rows"], lines)
    print(f"\ndivergence in nats: {divergence(next(iter(models.values())), data['test'][:500])}")


def binarised(folder: Path) -> Split:
    digits = mnist(folder)
    grey = np.concatenate([digits.train.x, digits.test.x])
    drawn = (np.random.default_rng(0).random(grey.shape, dtype=np.float32) < grey).astype(np.uint8)
    return {"train": drawn[:50_000], "validation": drawn[50_000:60_000], "test": drawn[60_000:]}


def new_model(seed: int) -> ff.Autoencoder:
    network = {"name": "mlp", "hidden": [HIDDEN], "hidden_activation": "relu", "output": "sigmoid"}
    return ff.Autoencoder(784, LATENTS, "gaussian", network=network, seed=seed)


def estimated(data: Split, epochs: int, seed: int) -> tuple[ff.Autoencoder, float]:
    vae = ff.VariationalAutoencoder(
        LATENTS,
        hidden=(HIDDEN,),
        loss="bce",
        batch_size=BATCH,
        learning_rate=RATE,
        max_epochs=epochs,
        random_state=seed,
    )
    with CpuSeconds() as cpu:
        vae.fit(data["train"])
    return vae.module_, cpu.used


def trained(data: Split, epochs: int, seed: int) -> tuple[ff.Autoencoder, float]:
    model = new_model(seed)
    config = ff.TrainConfig(
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=RATE,
        seed=seed,
        validation_fraction=0.1,  # of no use: the rows are given below
        patience=epochs,
        lr_schedule="constant",
    )
    terms = [ff.BCE(), ff.GaussianKL()]
    trainer = ff.Trainer(
        model,
        ff.ArraySource(data["train"]),
        terms,
        config,
        validation=ff.ArraySource(data["validation"]),
        progress=False,
    )
    with CpuSeconds() as cpu, warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.SparsityWarning)
        trainer.fit()
    return model, cpu.used


def nll(model: ff.Autoencoder, rows: npt.NDArray[np.uint8]) -> float:
    return -float(ff.variational.log_likelihood(model, rows.astype(np.float32), n_samples=SAMPLES).mean())


def pythae(python: Path, data: Split, epochs: int, seed: int) -> tuple[ff.Autoencoder, dict[str, float]]:
    """pythae's weights in a fewfire model, and what its script said of itself."""
    script = Path(__file__).parent / "peers" / "pythae_vae.py"
    with tempfile.TemporaryDirectory() as folder:
        rows, out = Path(folder, "rows.npz"), Path(folder, "weights.npz")
        np.savez(rows, **data)
        command = [python, "-W", "ignore", script, rows, out, LATENTS, epochs, BATCH, RATE, seed]
        said = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
        weights = np.load(out)
        given = {name: torch.from_numpy(weights[name]) for name in weights}
    model = new_model(0)
    heads = [
        given[f"encoder.{head}.{{}}".format(kind)] for kind in ("weight", "bias") for head in ("embedding", "log_var")
    ]
    with torch.no_grad():
        down, up = model.encoder.layers, model.decoder.layers
        down[0].W_enc.copy_(given["encoder.layers.0.0.weight"])
        down[0].b_enc.copy_(given["encoder.layers.0.0.bias"])
        down[1].W_enc.copy_(torch.cat(heads[:2]))
        down[1].b_enc.copy_(torch.cat(heads[2:]))
        for layer, name in zip(up, ("decoder.layers.0.0", "decoder.layers.1.0"), strict=True):
            layer.W_dec.copy_(given[f"{name}.weight"].T)
            layer.b_dec.copy_(given[f"{name}.bias"])
    return model, json.loads(said.splitlines()[-1])


def divergence(model: ff.Autoencoder, rows: npt.NDArray[np.uint8], draws: int = 2000) -> str:
    """KL(q || N(0, 1)) by the term, and as the mean of log q - log p over draws of q."""
    x = torch.from_numpy(rows.astype(np.float32))
    with torch.no_grad():
        closed = float(ff.GaussianKL()(model, model(x)))
        mean, logvar = model.activation.mean_logvar(model.encoder(x))
        generator = torch.Generator().manual_seed(0)
        total = 0.0
        for _ in range(draws):
            noise = torch.randn(mean.shape, generator=generator)
            z = mean + (logvar / 2).exp() * noise
            total += float(((z.square() - noise.square() - logvar) / 2).sum(1).mean()) / draws
    return f"closed form {closed:.4f}, mean of {draws:,} draws per row {total:.4f}"


if __name__ == "__main__":
    main()
