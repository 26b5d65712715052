"""Where rows come from: resumable streams of batches.

A source is any object with the names of :class:`fewfire.contracts.Source`; the ones here also carry ``name``,
a short label, and ``suggested_preprocess``, what suits their data. ``open_source`` finds the right one::

    open_source("digits")                   # a built-in data set
    open_source("activations.npy")          # a file, memory-mapped
    open_source(array)                      # numpy, torch, a DataFrame

How to add a kind: :mod:`fewfire.sources.registry`.
"""

from fewfire.sources.arrays import ArraySource
from fewfire.sources.builtin import digits, patches, photographs
from fewfire.sources.files import NpySource
from fewfire.sources.opening import open_source
from fewfire.sources.registry import KINDS, Kind

__all__ = [
    "KINDS",
    "ArraySource",
    "Kind",
    "NpySource",
    "digits",
    "open_source",
    "patches",
    "photographs",
]
