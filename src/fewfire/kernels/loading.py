"""The compiled library, if there is one, and the instruction set to use of it.

``import fewfire`` loads nothing: who first asks does.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache
from pathlib import Path

from fewfire.kernels.building import ISAS, NOT_ON_WINDOWS, built_from, digest

__all__ = ["ABI", "choices", "isa", "library", "why_not"]

ABI = 1
"""the interface that this Python code calls; FEWFIRE_ABI of csrc/abi.h is the same number"""
LIBRARY = Path(__file__).with_name("_native.so")
CSRC = Path(__file__).with_name("csrc")
"""the sources; a wheel has none"""


def library() -> ctypes.CDLL | None:
    """The library, loaded once; None if there is none or FEWFIRE_ISA is none: :func:`why_not` says why."""
    return None if _asked() == "none" else _load(LIBRARY, CSRC)[0]


def why_not() -> str:
    """Why there is no library and what to do; empty if there is one."""
    return "FEWFIRE_ISA is none" if _asked() == "none" else _load(LIBRARY, CSRC)[1]


def choices() -> tuple[str, ...]:
    """What this library has and this processor runs, the best first; the last is always none."""
    return _choices(LIBRARY, CSRC)


def isa() -> str:
    """The instruction set to use: the best that runs here, or the one that FEWFIRE_ISA asks for. ``none``: no library.

    Raises
    ------
    ValueError
        FEWFIRE_ISA asks for what does not exist, was not compiled in, or does not run on this processor.
    """
    asked, known = _asked(), choices()
    if asked and asked not in known:
        lacking = _load(LIBRARY, CSRC)[1]
        raise ValueError(
            f"FEWFIRE_ISA is {asked!r}; choose here from: {', '.join(known)}" + (f" ({lacking})" if lacking else "")
        )
    return asked or known[0]


def _asked() -> str:
    return os.environ.get("FEWFIRE_ISA", "").strip().lower()


@lru_cache
def _choices(path: Path, csrc: Path) -> tuple[str, ...]:
    found = _load(path, csrc)[0]
    return (*(name for name in ISAS if found is not None and found.fewfire_supports(name.encode())), "none")


@lru_cache
def _load(path: Path, csrc: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why. Never built here: an import that starts a compiler would surprise."""
    try:
        if not path.exists():
            return None, _missing(csrc)
        if csrc.is_dir() and built_from(path) != digest(csrc):
            return None, f"{path.name} was built from other sources; run `make build`"
        found = ctypes.CDLL(str(path))
        abi = found.fewfire_abi()
        found.fewfire_supports.argtypes = (ctypes.c_char_p,)
    except (OSError, AttributeError) as error:  # no library at all, or one without our functions
        return None, f"{path.name} cannot be used ({error}); {_remedy(csrc)}"
    if abi != ABI:
        return None, f"{path.name} has interface {abi}, expected {ABI}; {_remedy(csrc)}"
    return found, ""


def _missing(csrc: Path) -> str:
    if sys.platform == "win32":
        return NOT_ON_WINDOWS
    return f"the kernels were not compiled; install a C++ compiler and {_remedy(csrc)}"


def _remedy(csrc: Path) -> str:
    # pip keeps the wheels that it made: without --no-cache-dir it would install the same one again.
    return "run `make build`" if csrc.is_dir() else "reinstall fewfire (pip install --force-reinstall --no-cache-dir)"
