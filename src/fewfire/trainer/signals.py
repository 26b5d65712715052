"""Ctrl-C, SIGTERM and SIGHUP end training between two steps, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

from fewfire.contracts import Batch, Source

__all__ = ["Interrupted", "StopSignals", "interruptible"]

HEARD = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Ctrl-C; what batch systems and containers send before they kill; and what a lost connection sends"""


class Interrupted(KeyboardInterrupt):
    """Training was told to stop, and has. The message says where its checkpoint is."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
        """the signal that ended it, such as ``signal.SIGTERM``"""


class StopSignals:
    """The first signal is remembered, and asked for where stopping is safe; a second one ends the work at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen. Afterwards all is as before: the handlers too.

        Python handles signals in the main thread alone; in another one nothing is heard. A signal that is ignored, as
        under ``nohup``, stays ignored.
        """
        self.received = None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in HEARD}
        handlers = {n: handler for n, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}
        try:
            for number in handlers:
                signal.signal(number, self._hear)
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise Interrupted("stopped at once, in the middle of a step; what was saved before is whole", signum)
        self.received = signum

    def check(self, message: str) -> None:
        """Raise Interrupted with this message if a signal was received."""
        if self.received is not None:
            raise Interrupted(message, self.received)


def interruptible(source: Source, stop: StopSignals, message: str) -> Source:
    """The same source, whose batches end in Interrupted when a signal was received."""
    return cast(Source, _Interruptible(source, stop, message))


class _Interruptible:
    def __init__(self, source: Source, stop: StopSignals, message: str) -> None:
        self.source, self.stop, self.message = source, stop, message

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def batches(self, *args: Any, **kwargs: Any) -> Iterator[Batch]:
        for batch in self.source.batches(*args, **kwargs):
            self.stop.check(self.message)
            yield batch
