"""Where rows come from: resumable streams of batches.

A source is any object with the names of :class:`fewfire.contracts.Source`; the ones here also carry ``name``,
a short label, and ``suggested_preprocess``, what suits their data. ``open_source`` finds the right one::

    open_source("digits")                   # a built-in data set
    open_source("world")                    # rows made of known features
    open_source("activations.npy")          # a file, memory-mapped
    open_source("table.parquet")            # or .csv: streamed, larger than memory if need be
    open_source("sensors.csv", window=64)   # windows of a time series
    open_source("photographs/", patch=8)    # a folder of pictures, whole or in patches
    open_source("store/")                   # what a layer of a model put out: fewfire harvest
    open_source("in.npy", target="out.npy")  # what a layer was given, and what it made of it
    open_source("a.npy", views=["b.npy"])   # several views of the same rows
    open_source(array)                      # numpy, torch, a DataFrame, a sparse matrix

How to add a kind: :mod:`fewfire.sources.registry`.
"""

from fewfire.sources.activations import StoreSource
from fewfire.sources.arrays import ArraySource
from fewfire.sources.blocks import BlockSource
from fewfire.sources.builtin import digits, patches, photographs
from fewfire.sources.csv import CsvSource
from fewfire.sources.images import ImageSource, image_folder
from fewfire.sources.npy import NpySource
from fewfire.sources.npz import NpzSource
from fewfire.sources.opening import open_source
from fewfire.sources.parquet import ParquetSource
from fewfire.sources.registry import KINDS, Kind
from fewfire.sources.safetensors import SafetensorsSource
from fewfire.sources.synthetic import SyntheticWorld, world
from fewfire.sources.views import Pairs, Views
from fewfire.sources.windows import cut_windows

__all__ = [
    "KINDS",
    "ArraySource",
    "BlockSource",
    "CsvSource",
    "ImageSource",
    "Kind",
    "NpySource",
    "NpzSource",
    "Pairs",
    "ParquetSource",
    "SafetensorsSource",
    "StoreSource",
    "SyntheticWorld",
    "Views",
    "cut_windows",
    "digits",
    "image_folder",
    "open_source",
    "patches",
    "photographs",
    "world",
]
