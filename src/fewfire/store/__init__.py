"""The activation store: what a layer put out, where each row comes from, and the documents.

A folder of ``shard-*.safetensors``, ``rows.parquet``, ``documents.parquet`` and ``manifest.json`` (docs/harvest.md).
``StoreWriter`` makes it a part at a time and goes on where it was killed; ``ActivationStore`` reads it, and believes
nothing that the files do not bear out.
"""

from fewfire.store.manifest import DTYPES, MANIFEST, PER, SHARD_BYTES, Manifest, Shard, StoreError
from fewfire.store.reading import ActivationStore, stores_in
from fewfire.store.writing import Done, Part, StoreWriter, rows_per_shard

__all__ = [
    "DTYPES",
    "MANIFEST",
    "PER",
    "SHARD_BYTES",
    "ActivationStore",
    "Done",
    "Manifest",
    "Part",
    "Shard",
    "StoreError",
    "StoreWriter",
    "rows_per_shard",
    "stores_in",
]
