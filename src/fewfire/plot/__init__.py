"""Pictures for notebooks: matplotlib Axes, drawn where you say.

A model is an Autoencoder or a fitted estimator. Every function takes ``ax`` and returns the Axes it drew on. With
``ax=None`` it makes a figure of its own through pyplot, so that a notebook shows it; with an ``ax`` it leaves pyplot
alone. Nothing is shown, saved or configured.

    ff.plot.filters(model)                     what each feature of images looks like
    ff.plot.feature_maps(model, x)             where features of a convolution fire in a row
    ff.plot.top_columns(model, 7)              which columns of a table a feature is about
    ff.plot.history("run/")                    loss and unexplained variance while training
    ff.plot.density(evaluation)                how often features fire
    ff.plot.reconstructions(model, x)          rows and what the model makes of them
    ff.plot.scatter(model, x, labels)          rows as dots, near where their codes are near

The numbers behind the pictures are functions as well (``feature_vectors``, ``tiles``, ``strongest_columns``,
``curve``, ``rate_histogram``, ``in_a_plane``): the HTML report draws the same ones.
"""

from fewfire.metrics import density_histogram as rate_histogram
from fewfire.plot.curves import curve, density, history, rate_label, spans_decades
from fewfire.plot.drawing import STYLE
from fewfire.plot.features import (
    column_name,
    filter_tiles,
    filters,
    strongest_columns,
    tiles,
    top_columns,
)
from fewfire.plot.maps import feature_maps
from fewfire.plot.responses import Drawn, Weights, drawn, feature_vectors
from fewfire.plot.rows import reconstructions
from fewfire.plot.scatter import MAX_CLASSES, MAX_DOTS, alike, classes, in_a_plane, scatter

__all__ = [
    "MAX_CLASSES",
    "MAX_DOTS",
    "STYLE",
    "Drawn",
    "Weights",
    "alike",
    "classes",
    "column_name",
    "curve",
    "density",
    "drawn",
    "feature_maps",
    "feature_vectors",
    "filter_tiles",
    "filters",
    "history",
    "in_a_plane",
    "rate_histogram",
    "rate_label",
    "reconstructions",
    "scatter",
    "spans_decades",
    "strongest_columns",
    "tiles",
    "top_columns",
]
