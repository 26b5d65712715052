"""What stands for the content of a file, and whether it is still the file that was opened."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = ["FileState", "file_digest"]

BLOCK_BYTES = 1 << 20
WHOLE_BYTES = 64 << 20
SAMPLED_BLOCKS = 32


@dataclass(frozen=True)
class FileState:
    """A file as it was when it was opened: reading goes on only while it is the same."""

    path: Path
    size: int
    """bytes"""
    modified: int
    """nanoseconds"""

    @classmethod
    def of(cls, path: Path) -> Self:
        """Raises FileNotFoundError when there is no such file."""
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def check(self) -> None:
        """Refuse to go on with a file that is not the one that was opened.

        Raises
        ------
        ValueError
            Its size or modification time is another, or it is gone.
        """
        try:
            now = FileState.of(self.path)
        except OSError:
            raise ValueError(f"{self.path} went away while it was read; nothing read since then was used") from None
        if now != self:
            raise ValueError(f"{self.path} was changed while it was read; open it again when it is complete")


def file_digest(state: FileState) -> str:
    """sha256 of a file's content; beyond 64 MiB, of its size, its modification time and 32 spread blocks of 1 MiB.

    So a terabyte takes no time to open; a copy of it must keep the time.
    """
    digest = hashlib.sha256()
    with state.path.open("rb") as file:
        if state.size <= WHOLE_BYTES:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
        else:
            digest.update(f"{state.size} {state.modified}".encode())
            for i in range(SAMPLED_BLOCKS):
                file.seek(i * (state.size - BLOCK_BYTES) // (SAMPLED_BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    state.check()
    return digest.hexdigest()
