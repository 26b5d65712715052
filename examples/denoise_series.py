"""Denoise a series, and a table: few features cannot describe noise.

No clean value is trained on, and all numbers are of later times and other rows than were trained on. The series is a
made-up heartbeat, cut into overlapping windows, of each of which a sparse autoencoder keeps three features; the table
holds 30 measurements of tumours.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import scale

import fewfire as ff
from _style import INK, MUTED, ORANGE, picture_path, plt, save

out = picture_path(__doc__, __file__)
rng = np.random.default_rng(0)


def psnr(clean, rows):
    return f"{10 * np.log10(np.ptp(clean) ** 2 / np.mean((rows - clean) ** 2)):.1f} dB"


time, beats = np.arange(6000), np.cumsum(rng.integers(40, 60, size=(130, 1)))[:, None]
waves = [(0, 2.5, 0.15), (9, 1.2, 1.0), (12, 1.4, -0.25), (24, 4, 0.3)]  # of a beat: when, how wide, how high
clean = sum(high * np.exp(-(((time - beats - when) / wide) ** 2) / 2).sum(0) for when, wide, high in waves)
noisy = clean + 0.2 * rng.normal(size=6000)
past, future = (sliding_window_view(part, 32) for part in (noisy[:4000], noisy[4000:]))
rows = ff.SparseAutoencoder(128, k=3, preprocess="center", random_state=0).fit(past).reconstruct(future)
# row i holds the times i to i + 31: what all windows say of a time lies on a diagonal of the mirrored rows
rebuilt = np.array([np.diagonal(rows[:, ::-1], 31 - t).mean() for t in range(2000)])

table = scale(load_breast_cancer().data)
noisy_table = table + 0.5 * rng.normal(size=table.shape)
train, test = train_test_split(np.arange(len(table)), random_state=0)
dae = ff.DenoisingAutoencoder(64, activation="relu", penalty=None, noise_level=0.5, max_epochs=150, random_state=0)
tables = {"noisy": noisy_table[test], "rebuilt": dae.fit(noisy_table[train]).reconstruct(noisy_table[test])}

figure, axes = plt.subplot_mosaic([["series"] * 3, ["noisy", "rebuilt", "clean"]], figsize=(9.6, 6))
ax, span = axes["series"], slice(100, 500)
ax.plot(noisy[4000:][span], color=MUTED, alpha=0.5, linewidth=1, label="noisy")
ax.plot(rebuilt[span], color=ORANGE, label="rebuilt")
ax.plot(clean[4000:][span], color=INK, linewidth=1.2, linestyle="--", label="clean")
before, after = psnr(clean[4000:], noisy[4000:]), psnr(clean[4000:], rebuilt)
ax.set(title=f"Series: noisy {before}, rebuilt {after} (PSNR)", ylim=(-0.7, 1.75), xlim=(-5, 405))
ax.legend(ncols=3, loc="upper right")
for name, values in {**tables, "clean": table[test]}.items():
    axes[name].imshow(values[:24], cmap="PuOr_r", vmin=-3, vmax=3, aspect="auto", interpolation="nearest")
    axes[name].set(title="Table: clean" if name == "clean" else f"Table: {name}, {psnr(table[test], values)}")
    axes[name].set(xticks=[], yticks=[], xlabel="30 measurements")
axes["noisy"].set_ylabel("24 new tumours")
save(figure, out)
