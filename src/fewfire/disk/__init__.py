"""Files that are whole or not there, and tensors that are what was saved.

Three promises:

*Nothing is half-written.* A file is written under a temporary name in its own folder, forced to the disk, and
renamed over the old one. A crash, a full disk or a kill at any instant leaves the old file or the new one.

*Nothing is silently changed.* safetensors alone carries no checksums: one random damage in nine loads as
other numbers. Here every tensor and the metadata travel with their SHA-256; what does not match is refused.

*A folder has one writer.* The system's own lock, which ends with the process that holds it.

>>> save_tensors("weights.safetensors", {"W": W}, {"made by": "hand"})
>>> tensors, metadata = load_tensors("weights.safetensors")
"""

from fewfire.disk.atomic import atomic_write, atomic_writer, fsync_folder, is_temporary, sweep
from fewfire.disk.lock import LOCK, FolderInUseError, locked
from fewfire.disk.strict_json import canonical_json, one_line, parse_json, sha256_json, short
from fewfire.disk.tensors import (
    ModelFileError,
    load_foreign_tensors,
    load_tensors,
    read_metadata,
    save_tensors,
    stored_size,
)

__all__ = [
    "LOCK",
    "FolderInUseError",
    "ModelFileError",
    "atomic_write",
    "atomic_writer",
    "canonical_json",
    "fsync_folder",
    "is_temporary",
    "load_foreign_tensors",
    "load_tensors",
    "locked",
    "one_line",
    "parse_json",
    "read_metadata",
    "save_tensors",
    "sha256_json",
    "short",
    "stored_size",
    "sweep",
]
