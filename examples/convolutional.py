"""Convolutional: filters that slide over photographs, and the maps of where each one fires.

Makhzani & Frey 2015, "Winner-Take-All Autoencoders": of each map only the highest place may fire (spatial sparsity),
and that only on a tenth of the pictures (lifetime sparsity).
"""

import numpy as np

import fewfire as ff
from _style import picture_path, plt, save

out = picture_path(__doc__, __file__)
pictures = ff.patches(size=20, n=1000)  # pieces of two photographs that come with scikit-learn, whitened
train, held_out = pictures.split(0.1, seed=0)

# One convolution in and one out. A latent is a filter of 9 x 9 pixels, added wherever its map fires.
network = {"name": "conv", "channels": [], "latents": "maps", "kernel": 9, "stride": 1, "decoder_kernel": 9}
model = ff.Autoencoder(
    400, 16, ff.WinnerTakeAll(rate=0.1), network=network, preprocess="center", layout=pictures.layout, seed=0
)
ff.Trainer(model, train, [ff.MSE()], ff.TrainConfig(steps=150, batch_size=50, learning_rate=4e-3), progress=False).fit()
print(f"maps of {model.latent_shape}; variance of new pictures rebuilt: {1 - ff.evaluate(model, held_out)['fvu']:.0%}")

rows = next(iter(held_out.batches(100, shuffle=False))).x
busy = rows[np.argsort(-(model.encode(rows) > 0).flatten(2).any(2).sum(1).numpy())[0]]
figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 5))
ff.plot.filters(model, left, order=range(16), columns=4)
left.set_title("Learned: 16 filters, 0 to 15")
ff.plot.feature_maps(model, busy, right, n=15, columns=4)
plt.setp(right.texts, fontsize=12)
right.set_title("A new picture, and where they fire")
save(figure, out)
