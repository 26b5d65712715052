"""Write a file whole, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_write", "atomic_writer", "fsync_folder"]


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Replace the file at ``path`` by ``data`` (text as UTF-8), or leave it untouched.

    Raises
    ------
    OSError
        The disk refused. The subclass and ``errno`` are the system's, the message names ``path``.
    """
    with atomic_writer(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write to. It becomes ``path`` when the block ends well, and vanishes when it does not.

    >>> with atomic_writer("codes.npz") as file:
    ...     numpy.savez(file, codes=codes)

    The folder must exist. The new file's mode is 0666 less the umask, as for any file that a program creates.
    When only the very last step fails, forcing the folder to the disk, the new file is in place and the error
    is raised all the same: after a power cut the old file may be back.

    Raises
    ------
    OSError
        The disk refused. The subclass and ``errno`` are the system's, the message names ``path``.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:  # a Ctrl-C leaves no litter either
        with suppress(OSError):
            temporary.unlink()
        # An OSError about some other file, raised inside the caller's block, already says what it is about.
        if isinstance(error, OSError) and str(error.filename) in {"None", str(temporary)}:
            raise _explained(error, target, "what was there before is untouched") from error
        raise
    try:
        fsync_folder(target.parent)
    except OSError as error:
        raise _explained(error, target, "the new file is in place, but may not survive a power cut") from error


def fsync_folder(folder: str | os.PathLike[str]) -> None:
    """Make new names and renames in ``folder`` survive a power cut, where the system can.

    Raises
    ------
    OSError
        The disk failed.
    """
    if os.name == "nt":  # Windows cannot open a folder
        return
    # Some network file systems know no fsync of a folder, and a folder may be writable but not readable.
    unable = {errno.EINVAL, errno.ENOTSUP, errno.EACCES}
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in unable:
            raise


_REMEDIES = {
    errno.ENOSPC: "; free some space",
    errno.EDQUOT: "; free some of your quota",
    errno.EACCES: "; check the permissions of its folder",
    errno.EROFS: "; choose a folder that can be written",
    errno.ENOENT: "; make its folder first",
}


def _explained(error: OSError, path: Path, outcome: str) -> OSError:
    """The same error with the path that the user knows, not the temporary one."""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "")
    # OSError itself picks the subclass (PermissionError, ...) that belongs to errno.
    return OSError(error.errno, f"could not write ({reason}); {outcome}{remedy}", str(path))
