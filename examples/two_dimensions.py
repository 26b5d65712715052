"""Two dimensions: a deep autoencoder with a bottleneck of two, beside the first two principal components.

Hinton & Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks". Held-out digits are drawn and
counted: the vote of five training neighbours in the plane, and whether neighbours there are neighbours in pixels.
"""

from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

import fewfire as ff
from _style import COLOURS, picture_path, plt, save

out = picture_path(__doc__, __file__)
X, y = load_digits(return_X_y=True)
train, test, y_train, y_test = train_test_split(X / 16, y, stratify=y, random_state=0)

deep = ff.SparseAutoencoder(
    2, activation={"name": "plain", "function": "tanh"}, hidden=(128, 32), loss="bce", preprocess=None,
    learning_rate=2e-3, max_epochs=150, random_state=0,
).fit(train)  # fmt: skip

figure, axes = plt.subplots(1, 2, figsize=(9.6, 5.2))
for ax, (name, model) in zip(axes, {"PCA": PCA(2).fit(train), "Deep autoencoder": deep}.items(), strict=True):
    plane = model.transform(test)
    votes = KNeighborsClassifier(5).fit(model.transform(train), y_train).score(plane, y_test)
    trust = trustworthiness(test, plane, n_neighbors=5)
    for digit in range(10):
        ax.scatter(*plane[y_test == digit].T, s=55, marker=rf"$\mathbf{{{digit}}}$", linewidths=0, color=COLOURS[digit])
    ax.set_title(f"{name}: {votes:.0%} by 5 neighbours,\ntrustworthiness {trust:.2f}")
    ax.set(xticks=[], yticks=[])
save(figure, out)
