"""Contractive: codes that hardly move with noise, and still move as far when the digit does.

Rifai et al. 2011, "Contractive auto-encoders": logistic units, tied weights, cross-entropy. How far a code moves is
told as a share of the distance between two digits' codes, so that it does not help to shrink them all. Held-out digits.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fewfire as ff
from _style import BLUE, GREEN, MUTED, ORANGE, picture_path, plt, save

out = picture_path(__doc__, __file__)
train, test = train_test_split(load_digits().data / 16, random_state=0)
rng = np.random.default_rng(0)
noise = rng.normal(size=test.shape)
noise /= np.linalg.norm(noise, axis=1, keepdims=True)  # of length 1 in each row
others = rng.permutation(len(test))
aside = np.pad(test.reshape(-1, 8, 8), ((0, 0), (0, 0), (1, 0)))[:, :, :8].reshape(-1, 64)  # a pixel to the right

logistic = {"activation": "sigmoid", "penalty": None, "tied": True, "loss": "bce", "preprocess": None}
settings = {"n_components": 128, "max_epochs": 80, "random_state": 0, **logistic}
weights = [0, 0.03, 0.1, 0.3, 1]
contracted = [ff.ContractiveAutoencoder(contraction=weight, **settings).fit(train) for weight in weights]
denoising = ff.DenoisingAutoencoder(noise_level=0.3, **settings).fit(train)


def moves(model, rows):
    """How far codes are from those of ``test``, as a share of the distance between two digits' codes."""
    codes = model.transform(test)
    near, far = model.transform(rows) - codes, codes[others] - codes
    return np.linalg.norm(near, axis=1).mean() / np.linalg.norm(far, axis=1).mean()


figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2))
lengths = np.linspace(0, 2, 9)
lines = {"plain": (contracted[0], BLUE), "denoising": (denoising, GREEN), "contractive, 0.3": (contracted[3], ORANGE)}
for name, (model, colour) in lines.items():
    left.plot(lengths, [moves(model, test + length * noise) for length in lengths], color=colour, label=name)
left.set(title="Codes move with noise …", xlabel="length of the noise", ylabel="move of a code (1: another digit)")
left.legend()
right.plot([moves(model, aside) for model in contracted], "o-", color=MUTED, label="move: digit a pixel aside")
right.plot([moves(model, test + noise) for model in contracted], "o-", color=ORANGE, label="move: noise of length 1")
right.plot([1 - model.score(test) for model in contracted], "o-", color=BLUE, label="variance not rebuilt")
right.set(title="… less under contraction, at a price", xlabel="weight of the contraction", ylim=(0, 1.05))
right.set_xticks(range(5), [f"{weight:g}" for weight in weights])
right.legend(loc="center left", bbox_to_anchor=(0, 0.62))
save(figure, out)
