"""Data space to model space and back.

A preprocess is fitted once on a stream, stored in the model as float64 buffers, and applied by whoever stands
between a source and a network, so that engines, terms and kernels never see raw data::

    rows = lambda: (batch.x for batch in source.batches(4096, shuffle=False))
    prep = make_preprocess("standardize").fit(rows)
    y = prep(x)                    # model space
    x = prep.inverse(y)            # and back

Every member keeps the row shape. To add one, subclass :class:`Preprocess` and write two pure functions::

    class Halve(Preprocess, name="halve"):
        def _forward(self, x): return x / 2
        def _inverse(self, y, like): return y * 2

plus, if it learns from the data, a ``_fit`` that returns what it learned, by the names in ``fitted_names``.
"""

from fewfire.preprocess.chain import Chain, Spec, make_preprocess
from fewfire.preprocess.family import Preprocess, Stream
from fewfire.preprocess.members import Center, ClipScale, MinMax, RowMean, Standardize, Whiten
from fewfire.preprocess.pictures import whiten_1_over_f

__all__ = [
    "Center",
    "Chain",
    "ClipScale",
    "MinMax",
    "Preprocess",
    "RowMean",
    "Spec",
    "Standardize",
    "Stream",
    "Whiten",
    "make_preprocess",
    "whiten_1_over_f",
]
