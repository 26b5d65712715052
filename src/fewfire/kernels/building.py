"""Compile the kernels: one source, an object for each instruction set, one shared library.

The build hook (``hatch_build.py``) and ``make build`` load this file by its path, before fewfire is installed: it needs
the standard library and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["ISAS", "NOT_ON_WINDOWS", "build", "built_from", "digest", "find_compiler", "isas"]

_AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mpopcnt")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mbmi2", "-mpopcnt")
ISAS: dict[str, tuple[str, ...]] = {
    "avx512vnni": (*_AVX512, "-mavx512vnni"),
    "avx512": _AVX512,
    "avx2": _AVX2,
    "portable": (),
}
"""instruction set -> what the compiler is told, the best first; all but portable are of x86-64"""

NOT_ON_WINDOWS = "on Windows there are no compiled kernels"

_COMPILE = ("-std=c++17", "-O3", "-fPIC", "-pthread", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden")
_LINK = ("-shared", "-pthread", *(("-Wl,--no-undefined",) if sys.platform.startswith("linux") else ()))
# With libstdc++ inside, and nothing of it to be seen from outside, the library meets no other one in the process.
_SELF_CONTAINED = ("-static-libstdc++", "-static-libgcc", "-Wl,--version-script=exports")
_EXPORTS = "{ global: fewfire_*; local: *; };\n"
_AT_ONCE = 2
"""compilers; each takes several hundred megabytes"""
_PATIENCE = 900
"""seconds after which a compiler is taken to hang"""


class _NoLibraryError(Exception):
    """One sentence saying why there will be no library."""


def build(csrc: Path, target: Path) -> str | None:
    """Compile what is in ``csrc`` to the library ``target``: None, or one sentence saying why there is no library.

    A library that was there before stays until the new one takes its place by a rename: a process that has it loaded
    goes on with it.
    """
    if sys.platform == "win32":
        return NOT_ON_WINDOWS
    try:
        compiler = _compiler()
        with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as folder:
            library = Path(folder, target.name)
            _link(compiler, _compile(compiler, csrc.resolve(), Path(folder)), library)
            library.replace(target)
    except _NoLibraryError as error:
        return str(error)
    except OSError as error:
        return f"{target.name} could not be written: {error}"
    return None


def digest(csrc: Path) -> str:
    """sha256 of all sources in ``csrc`` and of how they are compiled."""
    total = hashlib.sha256(repr((ISAS, _COMPILE, _LINK, _SELF_CONTAINED)).encode())
    for path in sorted(csrc.iterdir()):
        if path.suffix in {".cpp", ".h"} and not path.name.startswith("."):  # an editor's own files are hidden ones
            total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def built_from(library: Path) -> str | None:
    """The digest of the sources that a library was built from, read without loading it; None if it has none."""
    found = re.search(rb"fewfire-sources:([0-9a-f]{64})", library.read_bytes())
    return found[1].decode() if found else None


def isas() -> tuple[str, ...]:
    """The instruction sets that are compiled on this sort of processor, the best first."""
    return tuple(ISAS) if platform.machine().lower() in {"x86_64", "amd64"} else ("portable",)


def find_compiler() -> list[str] | None:
    """The command of a C++ compiler: $CXX, which may bring options, or else the first that is on the PATH."""
    asked = shlex.split(os.environ.get("CXX", ""))
    for command in [asked] if asked else (["c++"], ["g++"], ["clang++"]):
        if shutil.which(command[0]):
            return command
    return None


def _compiler() -> list[str]:
    compiler = find_compiler()
    if compiler is None and os.environ.get("CXX"):
        raise _NoLibraryError(f"CXX is {os.environ['CXX']!r}, and there is no such compiler")
    if compiler is None:
        raise _NoLibraryError("there is no C++ compiler (looked for $CXX, c++, g++ and clang++)")
    return compiler


def _compile(compiler: list[str], csrc: Path, folder: Path) -> list[Path]:
    """The objects, in the order in which they are to be linked."""
    sources = digest(csrc)  # before compiling: of files that change meanwhile, the library must not claim to be made
    known = [isa for isa in isas() if _takes(compiler, ISAS[isa], folder)]
    defined = [f"-DFEWFIRE_HAS_{isa}" for isa in known]
    tasks = {"dispatch": ["dispatch.cpp", f'-DFEWFIRE_SOURCES="{sources}"', *defined]}
    # Inline functions that several objects have are linked once, from the first: portable goes first, so that the
    # one that stays runs on every processor.
    tasks |= {isa: ["kernels.cpp", f"-DFEWFIRE_ISA={isa}", *ISAS[isa]] for isa in reversed(known)}
    objects = {name: folder / f"{name}.o" for name in tasks}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        running = {
            name: pool.submit(_run, [*compiler, *_COMPILE, *task, "-c", "-o", str(objects[name])], csrc)
            for name, task in tasks.items()
        }
    for name, done in running.items():
        if (error := done.result()) is not None:
            raise _NoLibraryError(f"{compiler[0]} could not compile {tasks[name][0]} ({name}): {error}")
    return list(objects.values())


def _link(compiler: list[str], objects: list[Path], library: Path) -> None:
    names = [path.name for path in objects]
    (library.parent / "exports").write_text(_EXPORTS)
    for options in (_SELF_CONTAINED, ()):  # not every linker knows the former
        error = _run([*compiler, *_LINK, "-o", library.name, *names, *options], library.parent)
        if error is None:
            return
    raise _NoLibraryError(f"{compiler[0]} could not link the library: {error}")


def _takes(compiler: list[str], flags: tuple[str, ...], folder: Path) -> bool:
    """Whether the compiler knows the flags. Without any, what is wrong with it is for compiling to find out."""
    (folder / "empty.cpp").write_text("")
    return not flags or _run([*compiler, *flags, "-c", "empty.cpp", "-o", "empty.o"], folder) is None


def _run(command: list[str], folder: Path) -> str | None:
    """None, or the first line that says what went wrong."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return f"it did not end within {_PATIENCE} seconds"
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stderr + done.stdout).decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"it ended with status {done.returncode} and said nothing"])[0]


def main(arguments: list[str]) -> str | None:
    """Build beside this file; with ``--if-changed`` only if the library there is of other sources."""
    here = Path(__file__).resolve().parent
    csrc, target = here / "csrc", here / "_native.so"
    if "--if-changed" in arguments and target.exists() and built_from(target) == digest(csrc):
        return None
    return build(csrc, target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
