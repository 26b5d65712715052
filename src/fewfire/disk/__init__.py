"""Files that are whole or not there, and tensors that are what was saved.

Two promises:

*Nothing is half-written.* A file is written under a temporary name in its own folder, forced to the disk, and
renamed over the old one. A crash, a full disk or a kill at any instant leaves the old file or the new one.

*Nothing is silently changed.* safetensors alone carries no checksums: one random damage in nine loads as
other numbers. Here every tensor and the metadata travel with their SHA-256; what does not match is refused.

>>> save_tensors("weights.safetensors", {"W": W}, {"made by": "hand"})
>>> tensors, metadata = load_tensors("weights.safetensors")
"""

from fewfire.disk.atomic import atomic_write, atomic_writer, fsync_folder
from fewfire.disk.strict_json import canonical_json, parse_json, sha256_json
from fewfire.disk.tensors import ModelFileError, load_tensors, read_metadata, save_tensors

__all__ = [
    "ModelFileError",
    "atomic_write",
    "atomic_writer",
    "canonical_json",
    "fsync_folder",
    "load_tensors",
    "parse_json",
    "read_metadata",
    "save_tensors",
    "sha256_json",
]
