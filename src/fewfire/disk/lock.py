"""One writer at a time in a folder; the next is told who is there."""

from __future__ import annotations

import errno
import importlib
import json
import os
import platform
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fewfire.disk.atomic import explained, fsync_folder, process_lives, sweep
from fewfire.disk.strict_json import parse_json

if sys.platform == "win32":
    import msvcrt
else:
    fcntl: Any
    try:
        fcntl = importlib.import_module("fcntl")
    except ImportError:  # a system that is neither
        fcntl = None

__all__ = ["LOCK", "FolderInUseError", "locked"]

LOCK = ".lock"
"""The file, in the folder, whose lock is the folder's. Gone after use; a killed writer leaves it, unlocked."""

_held: dict[str, tuple[int, int]] = {}
"""folder -> (thread, open file) of the locks of this process"""


class FolderInUseError(RuntimeError):
    """Another writer is at work in the folder; the message says who."""


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Be the only writer of ``folder``, which is made when it does not exist. Readers need no lock.

    The system keeps the lock (``flock``) and ends it with the process, however that ends. The thread that holds it
    may take it again. On entering, temporary files that killed writers left are removed.

    Raises
    ------
    FolderInUseError
        Another process holds the lock, or another thread of this one.
    OSError
        The folder cannot be made or written to.

    Warns
    -----
    UserWarning
        The file system has no locks: nothing stops a second writer there.
    """
    folder = Path(folder)
    key = os.path.realpath(folder)
    if _held.get(key, (None,))[0] == threading.get_ident():
        yield
        return
    handle = _acquire(folder)
    _held[key] = (threading.get_ident(), handle)
    try:
        sweep(folder)
        yield
    finally:
        if _held.pop(key, None):  # not in a forked child, which leaves the lock to its parent
            _release(handle, folder / LOCK)


def _acquire(folder: Path) -> int:
    """An open ``.lock`` that we have locked and that still has its name."""
    for _ in range(100):
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                fsync_folder(folder.parent)
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # a writer that came to nothing has just removed its folder
            continue
        except OSError as error:
            raise explained(error, folder, "nothing was changed") from error
        try:
            ours = _lock(handle)
            if ours is None:
                _check_unlockable(folder)
            elif not ours:
                raise FolderInUseError(_refusal(folder, _holder(folder / LOCK)))
            if _is_named(handle, folder / LOCK):
                _write_holder(handle)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed it between our opening and our locking it: another may have a new one
    raise FolderInUseError(f"{folder} could not be locked: {LOCK} in it keeps vanishing; choose another folder")


def _release(handle: int, path: Path) -> None:
    """Remove the file while it is ours, then let go: whoever has it open already will see that it has no name."""
    if sys.platform == "win32":  # where a file in use cannot be removed
        os.close(handle)
        with suppress(OSError):
            path.unlink()
        return
    with suppress(OSError):
        if _is_named(handle, path):
            path.unlink()
    os.close(handle)


def _is_named(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _lock(handle: int) -> bool | None:
    """Whether we got the lock; None where nobody can."""
    if sys.platform == "win32":
        try:
            os.lseek(handle, 1 << 30, os.SEEK_SET)  # beyond what is written: others may not read a locked byte
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}:
            return None
        raise
    return True


# ------------------------------------------------------------------------------------------------ who it is


def _write_holder(handle: int) -> None:
    program, *arguments = sys.argv or [""]
    holder = {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join([Path(program).name, *arguments])[:200],
    }
    with suppress(OSError):  # for people to read; the lock holds without it, and a full disk will be told elsewhere
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(holder).encode())


def _holder(path: Path) -> dict[str, Any]:
    """What the holder wrote. It has the lock a moment before it says so; a killed one's words may be there still."""
    for _ in range(20):
        holder = _read(path)
        if holder and not (_is_here(holder) and not process_lives(holder["pid"])):
            break
        time.sleep(0.01)
    return holder


def _read(path: Path) -> dict[str, Any]:
    """The file's words; nothing when they make no sense."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        words = parse_json(file.read(10_000))
        return words if isinstance(words, dict) else {}
    return {}


def _is_here(holder: dict[str, Any]) -> bool:
    return holder.get("host") == platform.node() and type(holder.get("pid")) is int


def _refusal(folder: Path, holder: dict[str, Any]) -> str:
    said = {name: "".join(c if c.isprintable() else "?" for c in str(holder.get(name)))[:80] for name in holder}
    who = f"process {said.get('pid', '(not known)')}"
    who += f" on {said['host']}" if "host" in said else ""
    who += f" since {said['since']}" if "since" in said else ""
    who += f" ({said['command']})" if said.get("command") else ""
    return f"{folder} is in use by {who}; wait for it, end it, or choose another folder"


def _check_unlockable(folder: Path) -> None:
    """Without locks, what the file says is all there is to go by."""
    holder = _read(folder / LOCK)
    # Our own number may have been a dead process's: in a container all have the same.
    ours = holder.get("pid") == os.getpid() and os.path.realpath(folder) not in _held
    if _is_here(holder) and not ours and process_lives(holder["pid"]):
        raise FolderInUseError(_refusal(folder, holder))
    warnings.warn(
        f"the file system of {folder} has no locks; make sure that nobody else writes into this folder", stacklevel=2
    )


def _forget() -> None:
    """In a forked child: the lock is the parent's, and must end with it."""
    for _, handle in _held.values():
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
