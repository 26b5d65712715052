"""Denoising: trained on noisy copies, an autoencoder rebuilds digits as they were before the noise.

Vincent et al. 2010, "Stacked denoising autoencoders". All numbers are of digits that were not trained on; beside them
PCA, with the number of components that happens to be best for these very digits.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split

import fewfire as ff
from _style import grid, picture_path, plt, save

out = picture_path(__doc__, __file__)
train, clean = train_test_split(load_digits().data / 16, random_state=0)  # pixels from 0 to 1
noise = 0.25
noisy = clean + noise * np.random.default_rng(0).normal(size=clean.shape)

spread = np.sqrt(train.var(axis=0).mean())  # "center" divides all pixels by it, before the noise is added
dae = ff.DenoisingAutoencoder(
    64, activation="relu", penalty=None, hidden=(256,), preprocess="center",
    noise="gaussian", noise_level=noise / spread, max_epochs=200, random_state=0,
).fit(train)  # fmt: skip


def psnr(rows):
    return ff.metrics.psnr(torch.as_tensor(clean), torch.as_tensor(rows))


by_pca = [pca.inverse_transform(pca.transform(noisy)) for pca in (PCA(k).fit(train) for k in range(4, 41, 2))]
lines = {"noisy": noisy, "PCA": max(by_pca, key=psnr), "rebuilt": dae.reconstruct(noisy), "clean": clean}
figure, ax = plt.subplots(figsize=(9.6, 3.45))
first = np.concatenate([rows[:12] for rows in lines.values()]).reshape(-1, 8, 8)
grid(ax, first, 12, list(lines), vmin=0, vmax=1)
before, pca, after = (psnr(rows) for rows in list(lines.values())[:3])
ax.set_title(f"New digits: noisy {before:.1f} dB, PCA {pca:.1f} dB, rebuilt {after:.1f} dB (PSNR)")
save(figure, out)
