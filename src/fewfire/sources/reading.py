"""Files that people point at: an error while reading one names it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["machine_memory", "reading"]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes one line that begins with the path.

    Libraries raise nearly anything over a damaged file: that is a ValueError here. A failing disk stays an OSError.

    Raises
    ------
    FileNotFoundError
        There is nothing at ``path``.
    TypeError, ValueError
        It is not a file, or cannot be used.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if not path.is_file():  # a folder; or a pipe, which would block for ever
        raise ValueError(f"{path} is not a file")
    try:
        yield
    except TypeError as error:
        raise TypeError(f"{path}: {_line(error)}") from None
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # a hostile offset makes a seek invalid
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise ValueError(f"{path}: it is damaged ({_line(error)})") from None
    except Exception as error:
        own = type(error) is ValueError
        raise ValueError(f"{path}: {_line(error) if own else f'it is damaged ({_line(error)})'}") from None


def machine_memory() -> int | None:
    """Bytes of this machine's memory, where the system tells: it ends a process that asks for more."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
