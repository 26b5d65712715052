"""What stands before every route: who may ask, how, how much, and what a browser may do with the answer.

A page on the Internet can make a browser ask a server on its own machine. It cannot choose the Host header, cannot read
answers of another origin, and here finds nothing that it could change: so the name must be one of this machine's, there
is no CORS, and there is no route that writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HEADERS", "LONGEST_ADDRESS", "Guard", "refusal"]

LONGEST_ADDRESS = 1000
"""bytes of a path and its query"""
HOST = re.compile(rb"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
"""any port: a tunnel may end at another one"""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: dict[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-cache",
}
"""of every answer"""


class Guard:
    """Refuses what is not a plain GET of somebody on this machine, and puts ``HEADERS`` on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no WebSockets, and no life span to speak of
            return
        refused = self._refuses(scope)
        if refused is not None:
            await _answer(send, *refused)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((n, v) for n, v in _encoded(HEADERS) if n not in own)]
            await send(message)

        await self.app(scope, receive, guarded)

    def _refuses(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence; None: it may pass."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or HOST.fullmatch(hosts[0]) is None:
            return 421, "this server answers to localhost, 127.0.0.1 and [::1] only"
        if scope["method"] not in ("GET", "HEAD"):
            return 405, "nothing can be written here: GET and HEAD only"
        if _has_body(scope["headers"]):
            return 413, "a question has no body"
        if len(scope["raw_path"]) + len(scope["query_string"]) > LONGEST_ADDRESS:
            return 414, f"an address has at most {LONGEST_ADDRESS} bytes"
        return None


def refusal(sentence: str) -> str:
    """The JSON of an error. Sentences hold nothing that a client sent."""
    return f'{{"error":"{sentence}"}}'


def _has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" 0") != b"")
        for name, value in headers
    )


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = refusal(sentence).encode()
    own = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    if status == 405:
        own["allow"] = "GET, HEAD"
    await send({"type": "http.response.start", "status": status, "headers": _encoded({**own, **HEADERS})})
    await send({"type": "http.response.body", "body": body})
