"""Deep: six hidden layers of logistic units, trained as they are, and after greedy pretraining layer by layer.

Bengio et al. 2007, "Greedy layer-wise training of deep networks". The digits that the curves are about, and those that
are drawn, were not trained on; the steps of pretraining count. Each has the best of four learning rates.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fewfire as ff
from _style import BLUE, MUTED, ORANGE, grid, picture_path, plt, save

out = picture_path(__doc__, __file__)
train, test = (ff.ArraySource(part) for part in train_test_split(load_digits().data / 16, random_state=0))
shown = next(iter(test.batches(4, shuffle=False))).x
hidden = [64] * 6  # and then a bottleneck of 10 latents, which the decoder mirrors: seven layers in, seven out
network = {"name": "mlp", "hidden": hidden, "hidden_activation": "sigmoid", "output": "sigmoid"}

figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), width_ratios=[1.3, 1])
lines = {"original": shown}
for name, pretrain, rate, colour in [("from scratch", 0, 3e-3, BLUE), ("pretrained", 80, 8e-3, ORANGE)]:
    before = pretrain * (len(hidden) + 1)
    model = ff.Autoencoder(64, 10, "plain", network=network, seed=0)
    config = ff.TrainConfig(
        steps=1400 - before, pretrain_steps=pretrain, learning_rate=rate, batch_size=128, validate_every=40
    )
    history = ff.Trainer(model, train, [ff.BCE()], config, validation=test, progress=False).fit()
    steps, losses = ff.plot.curve(history, "val_loss")
    left.plot(np.array(steps) + before, losses, color=colour, label=name)
    lines[name] = model.reconstruct(shown)
    print(f"{name}: held-out loss {losses[-1]:.2f}")

left.axvspan(0, before, color=MUTED, alpha=0.12, linewidth=0)
left.text(before / 2, left.get_ylim()[0], "pretraining\n7 × 80 steps", ha="center", va="bottom", color=MUTED)
left.set(title="Cross-entropy of held-out digits", xlabel="optimiser steps, pretraining included", xlim=(0, 1420))
left.legend(loc="upper right")
grid(right, np.concatenate(list(lines.values())).reshape(-1, 8, 8), 4, list(lines), vmin=0, vmax=1)
right.set_title("Through the bottleneck of 10")
save(figure, out)
