"""Trains pythae's VAE for benchmarks/variational.py, in an environment of its own (pip install pythae torch).

    python pythae_vae.py ROWS.npz OUT.npz LATENTS EPOCHS BATCH RATE SEED

Its default networks, 784-512-L and L-512-784 with rectified hidden units and logistic outputs, its default loop; what
is set is the rate, the batch and the loss. Writes the weights, CPU seconds and its own likelihood of a few rows.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pythae.models import VAE, AutoModel, VAEConfig
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig

rows, out, latents, epochs, batch, rate, seed = sys.argv[1:]
torch.set_num_threads(1)
torch.manual_seed(int(seed))
data = np.load(rows)
model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=int(latents), reconstruction_loss="bce"))
with tempfile.TemporaryDirectory() as folder:
    config = BaseTrainerConfig(
        output_dir=folder,
        num_epochs=int(epochs),
        per_device_train_batch_size=int(batch),
        per_device_eval_batch_size=1000,
        learning_rate=float(rate),
        optimizer_cls="Adam",
        seed=int(seed),
        no_cuda=True,
    )
    started = time.process_time()
    pictures = (data[part].reshape(-1, 1, 28, 28).astype(np.float32) for part in ("train", "validation"))
    TrainingPipeline(model=model, training_config=config)(*pictures)
    seconds = time.process_time() - started
    (final,) = Path(folder).glob("*/final_model")
    model = AutoModel.load_from_folder(str(final))  # the best weights by validation loss
few = torch.from_numpy(data["test"][:300].reshape(-1, 1, 28, 28).astype(np.float32))
with torch.no_grad():
    nll = -float(model.get_nll(few, n_samples=200, batch_size=100))
np.savez(out, **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
print(json.dumps({"seconds": seconds, "own_nll": nll}))
