"""Variational: new digits drawn from a normal distribution, and the way from one digit to another.

Kingma & Welling 2014, "Auto-encoding variational Bayes". ``beta`` below 1 asks for sharper digits at the price of
latents that are less exactly normal.
"""

import numpy as np
from sklearn.datasets import load_digits

import fewfire as ff
from _style import grid, picture_path, plt, save

out = picture_path(__doc__, __file__)
X, y = load_digits(return_X_y=True)
X = X / 16  # shares of ink, from 0 to 1
vae = ff.VariationalAutoencoder(6, loss="bce", beta=0.5, preprocess=None, max_epochs=150, random_state=0).fit(X)

new = vae.sample(48, random_state=0)  # no digit went in: decoded draws of six normal numbers
ways = [vae.interpolate(X[y == a][4], X[y == b][4], steps=12) for a, b in [(0, 6), (2, 3), (4, 5)]]

figure, (above, below) = plt.subplots(2, figsize=(9.6, 6.6), height_ratios=[4, 3])
grid(above, new.reshape(-1, 8, 8), 12, vmin=0, vmax=1)
above.set_title("48 digits that nobody wrote")
grid(below, np.concatenate(ways).reshape(-1, 8, 8), 12, vmin=0, vmax=1)
below.set_title("From 0 to 6, from 2 to 3, from 4 to 5")
save(figure, out)
