"""A web server on the loopback interface, which waits for nobody."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fewfire.explorer.server import application
from fewfire.explorer.store import Store

__all__ = ["PORT", "listen", "serve"]

HOST = "127.0.0.1"
PORT = 8765
HEAD_SECONDS = 10.0
"""in which the head of a request must have come"""
IDLE_SECONDS = 15
MOST_CONNECTIONS = 1000
LARGEST_HEAD = 16 * 1024
"""bytes"""


class Impatient(H11Protocol):
    """Closes a connection whose request does not arrive in time: uvicorn waits for ever."""

    _too_late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._wait()  # a part of a head
        elif self.conn.their_state is not h11.IDLE:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._too_late is None:
            self._too_late = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None


def listen(port: int | None = None) -> socket.socket:
    """A socket on the loopback interface. Without a port: 8765, or any that is free where that one is taken.

    Raises
    ------
    OSError
        The port asked for is taken, or not allowed.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        try:
            listening.bind((HOST, PORT if port is None else port))
        except OSError as error:
            if port is not None:
                raise OSError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from None
            listening.bind((HOST, 0))
    except BaseException:
        listening.close()
        raise
    return listening


def serve(folder: Path, listening: socket.socket, *, ready: Callable[[str], Any] = lambda address: None) -> None:
    """Serve a bundle until Ctrl-C.

    Parameters
    ----------
    ready
        Called with the page's address just before the first request can be answered.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no bundle in the folder, or one of another version.
    """
    store = Store(folder)
    address = f"http://{HOST}:{listening.getsockname()[1]}/"
    server = uvicorn.Server(_settings(store))
    listening.listen(128)  # whoever opens the page now waits for the loop, and is not refused
    ready(address)
    with suppress(KeyboardInterrupt), listening:
        server.run(sockets=[listening])


def _settings(store: Store) -> uvicorn.Config:
    return uvicorn.Config(
        application(store),
        http=Impatient,
        ws="none",
        lifespan="off",
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whoever asks is who asks, whatever a header says
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        h11_max_incomplete_event_size=LARGEST_HEAD,
    )
