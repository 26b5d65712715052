"""What a training run says of itself: ``metrics.jsonl``, one record a line.

::

    {"step": 100, "loss": 0.71, "l0": 31.9, "dead_fraction": 0.0}

Any program reads it, it can be followed while it grows, and ``kill -9`` costs at most the line being written.
Other trackers are adapters: any object with the five methods of :class:`Tracker` will do.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fewfire.disk import atomic_write, parse_json

__all__ = ["MetricsLog", "Tracker", "read_metrics"]

_FILE = "metrics.jsonl"


@runtime_checkable
class Tracker(Protocol):
    """Where Trainer reports to. An adapter for a tracking service has these five methods; no base class."""

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        """A run begins, or is resumed."""
        ...

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Scalars measured after ``step`` steps."""
        ...

    def artifact(self, name: str, path: Path) -> None:
        """A file or folder of the run is complete."""
        ...

    def image(self, name: str, image: Any, step: int) -> None:
        """A picture: (h, w) or (h, w, 3), uint8."""
        ...

    def finish(self) -> None:
        """The run is over, well or not."""
        ...


class MetricsLog:
    """The tracker that is always there: records appended to a file, and kept in ``history``.

    Parameters
    ----------
    path
        The file, or a run folder, which then holds ``metrics.jsonl``. None: memory only.
    resume
        Keep the records of an interrupted run; follow with :meth:`truncate_after`. Otherwise the log starts
        empty, whatever was there.

    Raises
    ------
    ValueError
        On resuming, the file is damaged before its last line.
    OSError
        The disk refused.

    Notes
    -----
    Every record reaches the system before ``log`` returns, so a killed process loses none. A power cut may
    take the newest; :meth:`sync` before a checkpoint is committed keeps those that the checkpoint relies on.

    The file is opened for each record: that costs microseconds and leaves no handle to leak.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, resume: bool = False) -> None:
        self.history: list[dict[str, Any]] = []
        """the records, as the file has them"""
        self.path = None if path is None else _file_of(path)
        if self.path is None:
            return
        if resume and self.path.exists():
            # Also drops a torn last line, to which the next record would otherwise be glued.
            self._keep(_read_lines(self.path))
        else:
            atomic_write(self.path, b"")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one record. NaN and infinities become null, which JSON can hold.

        Parameters
        ----------
        step
            Steps completed.
        values
            Name -> number, text, bool, None, a tensor or array (a list, when it has dimensions), or lists and
            dictionaries of these.

        Raises
        ------
        ValueError
            ``values`` has a name "step".
        TypeError
            A value is none of the above.
        OSError
            The disk refused; the file holds the records before this one.
        """
        if "step" in values:
            raise ValueError("a record has its own 'step'; expected another name for this value")
        record = {"step": int(step), **{str(name): _plain(value, name) for name, value in values.items()}}
        if self.path is not None:
            _append(self.path, json.dumps(record, allow_nan=False).encode() + b"\n")
        self.history.append(record)

    def truncate_after(self, step: int) -> None:
        """Drop the records beyond ``step``, in one atomic replacement of the file.

        A run resumed from a checkpoint at ``step`` repeats what came after it; its log then equals that of a
        run that was never interrupted, up to measured times. ``-1`` drops everything.
        """
        if self.path is None:
            self.history = [record for record in self.history if record["step"] <= step]
        else:
            self._keep(pair for pair in _read_lines(self.path) if pair[1]["step"] <= step)

    def sync(self) -> None:
        """Force the records to the disk, so that they survive a power cut."""
        if self.path is None:
            return
        try:
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise _told(error, self.path) from error

    # The rest of Tracker. The run folder itself is the record of a run: its files need no copy here.

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        """Nothing to do: the run folder holds the config."""

    def artifact(self, name: str, path: Path) -> None:
        """Nothing to do: the run folder holds the file."""

    def image(self, name: str, image: Any, step: int) -> None:
        """Nothing to do: a log has no pictures."""

    def finish(self) -> None:
        """Force the records to the disk."""
        self.sync()

    def _keep(self, lines: Iterable[tuple[bytes, dict[str, Any]]]) -> None:
        """Make these lines, byte for byte, the whole file."""
        kept = list(lines)
        if self.path is not None:
            atomic_write(self.path, b"".join(line + b"\n" for line, _ in kept))
        self.history = [record for _, record in kept]


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a run, oldest first. A torn last line, of a run killed or still writing, is ignored.

    Parameters
    ----------
    path
        A run folder, or the file.

    Raises
    ------
    FileNotFoundError
        There is no log.
    ValueError
        The file is damaged before its last line.
    """
    file = _file_of(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}; expected a run folder with a {_FILE}, or such a file")
    return [record for _, record in _read_lines(file)]


def _file_of(path: str | os.PathLike[str]) -> Path:
    """The log of a run folder, which need not exist yet; or ``path`` itself, if it names such a file."""
    path = Path(path)
    named = path.is_file() or (path.suffix == ".jsonl" and not path.is_dir())
    return path if named else path / _FILE


def _read_lines(file: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Every whole line and its record."""
    lines = file.read_bytes().split(b"\n")
    if not lines[-1]:
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
            if not isinstance(record, dict) or type(record.get("step")) is not int:
                raise ValueError("expected an object with a whole-numbered step")
        except ValueError as error:
            if number == len(lines):  # torn by a kill, or zeros left by a power cut
                break
            raise ValueError(f"{file} is damaged in line {number}: {error}; remove that line") from None
        records.append((line, record))
    return records


def _append(file: Path, line: bytes) -> None:
    try:
        with file.open("ab", buffering=0) as handle:
            end = handle.tell()
            try:
                while line:  # a disk that fills up takes part of a line before it refuses
                    line = line[handle.write(line) :]
            except OSError:
                handle.truncate(end)  # half a line would swallow the next one
                raise
    except OSError as error:
        raise _told(error, file) from error


def _told(error: OSError, file: Path) -> OSError:
    """The same error, naming the file."""
    return OSError(error.errno, f"could not log ({error.strerror or error}); earlier records are safe", str(file))


def _plain(value: Any, name: str) -> Any:
    """Tensors and arrays to numbers, what is not finite to None."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, name) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, name) for inner in value]
    if hasattr(value, "tolist"):  # torch and numpy, arrays and scalars alike
        return _plain(value.tolist(), name)
    raise TypeError(f"expected numbers, text or lists to log, got {type(value).__name__} for {name!r}")
