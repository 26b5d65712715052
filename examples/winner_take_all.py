"""Winner-take-all: how often each unit fires, when rows choose their units and when units choose their rows.

Makhzani & Frey 2013, "k-Sparse Autoencoders" (tied weights; k annealed from many to few), and 2015, "Winner-Take-All
Autoencoders". Firing is counted on held-out digits.
"""

import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fewfire as ff
from _style import BLUE, GREEN, ORANGE, picture_path, plt, save

out = picture_path(__doc__, __file__)
train, test = train_test_split(load_digits().data / 16, random_state=0)
warnings.simplefilter("ignore", ff.SparsityWarning)  # that most units never fire is what is shown
units, k = 256, 8
annealed = {"activation.k": [(0, 4 * k), (0.5, k)]}  # (fraction of training, value)
ways = {
    "naive top-k": (ff.TopK(k), {}, BLUE),
    "k annealed": (ff.TopK(k), annealed, GREEN),
    "winner-take-all": (ff.WinnerTakeAll(rate=k / units), {}, ORANGE),
}

figure, ax = plt.subplots(figsize=(9.6, 4.4))
for name, (activation, schedules, colour) in ways.items():
    model = ff.Autoencoder(64, units, activation, network={"name": "linear", "tied": True}, seed=0)
    config = ff.TrainConfig(steps=600, learning_rate=2e-3, schedules=schedules)
    ff.Trainer(model, ff.ArraySource(train), [ff.MSE()], config, progress=False).fit()
    fires = model.encode(test).numpy() > 0
    rates = np.sort(fires.mean(axis=0))[::-1]
    alive = (rates > 0).mean()
    unexplained = ff.evaluate(model, test)["fvu"]
    print(f"{name}: {alive:.0%} alive, {fires.sum(1).mean():.1f} fire on a digit, {unexplained:.0%} not rebuilt")
    ax.step(np.arange(units), np.where(rates > 0, rates, np.nan), color=colour, where="mid")
    last = np.flatnonzero(rates)[-1]
    ax.annotate(f"{name}\n{alive:.0%} alive", (last, rates[last]), (6, 4), textcoords="offset points", color=colour)
ax.set(
    yscale="log", xlim=(-2, units + 42), xlabel="units, the busiest first", ylabel="share of digits on which it fires"
)
ax.set_xticks(range(0, units + 1, 64))
ax.set_yticks([0.01, 0.1, 1], ["1%", "10%", "100%"])
ax.set_title(f"How often each of {units} units fires on held-out digits")
save(figure, out)
