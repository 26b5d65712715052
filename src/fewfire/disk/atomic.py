"""Write a file whole, or not at all."""

from __future__ import annotations

import errno
import os
import platform
import re
import secrets
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_write", "atomic_writer", "explained", "fsync_folder", "is_temporary", "process_lives", "sweep"]

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(r"\..+\.tmp-([0-9a-f]{8})-([0-9]{1,10})-[0-9a-f]{8}")
_open: set[str] = set()
"""names of the temporary files that this process is writing"""


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
    What killed writers left in the folder is removed on the way, see :func:`sweep`.

    When only the very last step fails, forcing the folder to the disk, the new file is in place and the error is raised
    all the same: after a power cut the old file may be back.

    Raises
    ------
    OSError
        The disk refused. The subclass and ``errno`` are the system's, the message names ``path``.
    """
    target = Path(path)
    # at most 40 characters of the name: a long one must leave room for what comes behind it
    temporary = target.with_name(f".{target.name[:40]}.tmp-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}")
    sweep(target.parent, untouched_for=60)
    _open.add(temporary.name)
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
            raise explained(error, target, "what was there before is untouched") from error
        raise
    finally:
        _open.discard(temporary.name)
    try:
        fsync_folder(target.parent)
    except OSError as error:
        raise explained(error, target, "the new file is in place, but may not survive a power cut") from error


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
            raise OSError(error.errno, error.strerror, str(folder)) from error  # of a handle it would name nothing


def sweep(folder: str | os.PathLike[str], untouched_for: float = 0) -> None:
    """Remove the temporary files that writers killed on this machine left in ``folder``; others' stay.

    A file goes when its writer is no more: no process here has its number, or we have and are not writing it (in a
    container every process may have the same one). Processes that share our host's name but not our process numbers
    are told from dead ones by ``untouched_for`` seconds, which whoever holds the folder's lock need not wait for. A
    folder that cannot be read, or a file that cannot be removed, is left as it is.
    """
    with suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208  # a folder of data may hold a million names
            match = _TEMPORARY.fullmatch(name)
            if match is None or match[1] != _HOST:
                continue
            writer = int(match[2])
            if name not in _open if writer == os.getpid() else not process_lives(writer):
                with suppress(OSError):
                    path = Path(folder, name)
                    if time.time() - path.stat().st_mtime >= untouched_for:
                        path.unlink()


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that :func:`atomic_writer` is writing, or was when it was killed."""
    return _TEMPORARY.fullmatch(name) is not None


def process_lives(number: int) -> bool:
    """Whether this machine has a process of this number. On Windows, where asking would end it: yes."""
    if os.name == "nt":
        return True
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


_REMEDIES = {
    errno.ENOSPC: "; free some space",
    errno.EDQUOT: "; free some of your quota",
    errno.EACCES: "; check the permissions of its folder",
    errno.EROFS: "; choose a folder that can be written",
    errno.ENOENT: "; make its folder first",
}


def explained(error: OSError, path: Path, outcome: str) -> OSError:
    """The same error with the path that the user knows, not the temporary one."""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "")
    # OSError itself picks the subclass (PermissionError, ...) that belongs to errno.
    return OSError(error.errno, f"could not write ({reason}); {outcome}{remedy}", str(path))
