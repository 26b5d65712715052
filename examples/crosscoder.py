"""Crosscoder: one dictionary for two views, and which of its features are in both.

Lindsey et al. 2024, "Sparse crosscoders for cross-layer features and model diffing". On the left the features are
known: a third of them writes both views, a third the first alone, a third the second (latents like no feature are
grey). On the right the views are the hidden layers of a network that tells digits apart, of one digit or of two.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import fewfire as ff
from _style import BLUE, FAINT, GREEN, MUTED, ORANGE, picture_path, plt, save

out = picture_path(__doc__, __file__)
rng, bins = np.random.default_rng(0), np.linspace(0, 1, 26)


def crosscoder(*views, k):
    model = ff.Autoencoder((2, 48), 96, ff.TopK(k), preprocess="standardize", seed=0)
    config = ff.TrainConfig(steps=1500, batch_size=128, learning_rate=4e-3)
    ff.Trainer(model, ff.Views(views), config=config, progress=False).fit()
    return model, ff.view_shares(model).shares[:, 1].numpy()  # (96,) of the second view


world = ff.SyntheticWorld(96, 48, n_rows=12_000, probability=0.04, seed=0)
truth = world.truth(range(12_000)).numpy()  # how strongly each of 96 features fires
kind = np.repeat([0, 1, 2], 32)
writes = rng.normal(size=(2, 96, 48))  # in other directions in each view
writes[1, kind == 0] = writes[0, kind == 2] = 0
views = truth @ writes  # (2, rows, 48)
model, made = crosscoder(*views[:, :10_000], k=4)
codes = model.encode(views[:, 10_000:].swapaxes(0, 1)).numpy()
codes[0] += 1e-6  # so that what never fires varies, and is like nothing
alike = np.corrcoef(codes.T, truth[10_000:].T)[:96, 96:]
print(f"{(alike.max(0) > 0.9).mean():.0%} of the features have a latent that fires with them")
of = np.where(alike.max(1) > 0.7, kind[alike.argmax(1)], 3)

digits, y = load_digits(return_X_y=True)
network = MLPClassifier((48, 48), random_state=0).fit(digits, y)
first = np.maximum(digits @ network.coefs_[0] + network.intercepts_[0], 0)
second = np.maximum(first @ network.coefs_[1] + network.intercepts_[1], 0)

figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), sharey=True)
left.hist([made[of == i] for i in range(4)], bins, stacked=True, color=[BLUE, GREEN, ORANGE, FAINT])
right.hist(crosscoder(first, second, k=8)[1], bins, color=GREEN)
right.hist(crosscoder(first, rng.permutation(second), k=8)[1], bins, histtype="step", color=MUTED, linewidth=1.8)
left.text(0.03, 30, "first view alone", color=BLUE)
left.text(0.42, 17.6, "both", color=GREEN)
left.text(0.66, 13.2, "second alone", color=ORANGE)
right.text(0.5, 20, "layers of one digit", color=GREEN)
right.text(0.58, 14, "of unrelated digits", color=MUTED)
left.set(title="Two views made of known features", xlabel="share of the second view", ylabel="latents", ylim=(0, 34))
right.set(title="Two layers of a network", xlabel="share of the second layer")
save(figure, out)
