"""Features: a linear classifier on pixels, on sparse codes and on codes of codes, with few labels and with many.

The autoencoders see digits without labels; then a few labels train the classifier. Errors are those on 450 held-out
digits, averaged over five draws of the labels. k-means clusters are compared with the labels of the same digits.
"""

import numpy as np
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

import fewfire as ff
from _style import BLUE, GREEN, ORANGE, picture_path, plt, save

out = picture_path(__doc__, __file__)
X, y = load_digits(return_X_y=True)
train, test, y_train, y_test = train_test_split(X / 16, y, stratify=y, random_state=0)

settings = {"activation": "sigmoid", "rho": 0.1, "loss": "bce", "preprocess": None}  # the textbook's
sparse = ff.SparseAutoencoder(256, max_epochs=60, random_state=0, **settings)
stacked = make_pipeline(clone(sparse), clone(sparse))

figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), width_ratios=[1.7, 1])
counts = [25, 50, 100, 200, 400, 800]
views = {"pixels": (make_pipeline("passthrough"), BLUE), "codes": (sparse, ORANGE), "stacked": (stacked, GREEN)}
for name, (view, colour) in views.items():
    codes, new = view.fit(train).transform(train), view.transform(test)
    errors = np.zeros((5, len(counts)))
    for draw, i in np.ndindex(*errors.shape):
        some = np.random.default_rng(draw).permutation(len(train))[: counts[i]]
        linear = LogisticRegression(C=10, max_iter=300).fit(codes[some], y_train[some])
        errors[draw, i] = 1 - linear.score(new, y_test)
    clusters = [KMeans(10, n_init=4, random_state=draw).fit(codes).predict(new) for draw in range(5)]
    agreement = np.mean([adjusted_rand_score(y_test, cluster) for cluster in clusters])
    left.plot(counts, errors.mean(0), "o-", color=colour, label=name)
    right.bar_label(right.bar(name, agreement, color=colour, width=0.62), fmt="%.2f", padding=3)
left.set(title="Wrong answers on held-out digits", xlabel="labels", xscale="log", yscale="log")
left.set_xticks(counts, map(str, counts))
left.set_yticks([0.02, 0.05, 0.1, 0.2, 0.3], ["2%", "5%", "10%", "20%", "30%"])
left.minorticks_off()
left.legend()
right.set(title="k-means against labels (ARI)", ylim=(0, 1))
save(figure, out)
