"""The page and its JSON, on this machine alone.

Everything below is a GET. Answers are ``application/json`` in UTF-8; an error is ``{"error": "a sentence"}`` with a
status of 400 (a parameter), 404 (no such thing), 503 (too slow), or one of ``guard``'s. Arrays are
``{"dtype", "shape", "data"}``: base64 of little-endian bytes in C order. Features and rows are numbered from 0.

::

    api/meta.json               names, sizes, the renderer and what it must know once, counts of features
    api/features.json           {"total", "offset", "features": [{"id", "density", "max", "mean", "norm", "dead",
                                "dense", "label", "spark"}]}; spark: 24 digits, the heights of the histogram's bars
        ?sort=density           id, density, max, mean, norm, label, match (as well as q fits)
        &order=desc             asc, desc
        &show=all               all, alive, dead, dense, labelled
        &q=                     words that must be in the label or the examples
        &offset=0&limit=100     at most 500
    api/features/N.json         a feature: histogram, examples (rows and values in the order of meta's "groups", -1 for
                                none, and what in each row made it fire), near ones, drawing, and the rows themselves
    api/rows.json               {"total", "offset", "rows": [...]}
        ?sort=id                id, score, n_active, label
        &order=asc&only=        anomalies: those alone
        &offset=0&limit=24      at most 60
    api/rows/N.json             a row: how it looks, its reconstruction, where the error is, which features fire
    api/map.json                places (L, 2) of all features, with density, largest activation and main class
    api/run.json                curves, numbers and what they mean, the configuration
    api/comparison.json         the partner of each feature in the other run, where one was given

``fewfire explore RUN --export DIR`` writes files at the same addresses. There, ``features.json`` holds all features and
``rows.json`` the first rows, and what follows a ``?`` means nothing: the page sorts and searches by itself.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.resources import files

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fewfire.explorer.guard import Guard, refusal
from fewfire.explorer.store import ROW_SORTS, SORTS, Store, TooSlowError

__all__ = ["CHOICES", "application", "page_files"]

THREADS = 4
"""that ask the bundle at the same time"""
LARGEST = 1 << 31
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "features": {"sort": SORTS, "order": ("desc", "asc"), "show": ("all", "alive", "dead", "dense", "labelled")},
    "rows": {"sort": ROW_SORTS, "order": ("asc", "desc"), "only": ("", "anomalies")},
}
"""what parameters may be; the first is what counts when nothing is said, but features are sorted by density"""


class _WrongError(ValueError):
    """A parameter that is not one."""


def application(store: Store) -> Guard:
    """The ASGI application of a bundle."""
    page = page_files()
    answers: dict[str, Callable[[Store, Request], str | None]] = {
        "features": _features,
        "features/{number}": _feature,
        "rows": _rows,
        "rows/{number}": _row,
        **{key: partial(_text, key) for key in ("meta", "map", "run", "comparison")},
    }
    in_threads = _Threads()
    routes = [
        *(Route(f"/api/{name}.json", _json(partial(answer, store), in_threads)) for name, answer in answers.items()),
        *(Route(f"/{name}", _file(name, content)) for name, content in page.items()),
        Route("/", _file("index.html", page["index.html"])),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={404: _not_found, 405: _not_found, 500: _failed}))


def page_files() -> dict[str, bytes]:
    """The built front end: name -> content. Read once, so that no address ever becomes a path."""
    folder = files("fewfire.explorer") / "page"
    found = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}
    return {name: content for name, content in found.items() if "." + name.rpartition(".")[2] in TYPES}


class _Threads:
    """At most so many at a time. The limit belongs to the loop that runs, and so is made when it is needed."""

    def __init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, answer: Callable[[Request], str | None], request: Request) -> str | None:
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(THREADS)
        return await anyio.to_thread.run_sync(answer, request, limiter=self._limiter)


def _json(answer: Callable[[Request], str | None], in_threads: _Threads) -> Callable[[Request], Awaitable[Response]]:
    """A route that asks the bundle."""

    async def route(request: Request) -> Response:
        status = 200
        try:
            text = await in_threads.run(answer, request)
            if text is None:
                status, text = 404, refusal("there is no such thing")
        except _WrongError as error:
            status, text = 400, refusal(str(error))
        except TooSlowError as error:
            status, text = 503, refusal(str(error))
        return Response(text, status, media_type="application/json")

    return route


def _file(name: str, content: bytes) -> Callable[[Request], Awaitable[Response]]:
    kind = TYPES["." + name.rpartition(".")[2]]

    async def route(_: Request) -> Response:
        return Response(content, media_type=kind)

    return route


# ------------------------------------------------------------------------------------------------ answers


def _features(store: Store, request: Request) -> str:
    chosen = {name: _choice(request, name, allowed) for name, allowed in CHOICES["features"].items()}
    return store.features(
        sort=chosen["sort"] if "sort" in request.query_params else "density",
        descending=chosen["order"] == "desc",
        show=chosen["show"],
        query=request.query_params.get("q", "")[:400],
        offset=_whole(request, "offset", 0),
        limit=_whole(request, "limit", 100),
    )


def _rows(store: Store, request: Request) -> str:
    chosen = {name: _choice(request, name, allowed) for name, allowed in CHOICES["rows"].items()}
    return store.rows(
        sort=chosen["sort"],
        descending=chosen["order"] == "desc",
        anomalies=chosen["only"] == "anomalies",
        offset=_whole(request, "offset", 0),
        limit=_whole(request, "limit", 24),
    )


def _feature(store: Store, request: Request) -> str | None:
    return store.feature(_number(request.path_params["number"]))


def _row(store: Store, request: Request) -> str | None:
    return store.row(_number(request.path_params["number"]))


def _text(key: str, store: Store, _: Request) -> str | None:
    return store.text(key)


def _choice(request: Request, name: str, allowed: tuple[str, ...]) -> str:
    given = request.query_params.get(name, allowed[0])
    if given not in allowed:
        raise _WrongError(f"expected {name} to be one of: {', '.join(allowed)}")
    return given


def _whole(request: Request, name: str, default: int) -> int:
    given = request.query_params.get(name)
    return default if given is None else _number(given, name)


def _number(given: str, name: str = "the number") -> int:
    if re.fullmatch(r"[0-9]{1,10}", given, re.ASCII) is None or int(given) >= LARGEST:
        raise _WrongError(f"expected {name} to be a whole number from 0 to {LARGEST - 1}")
    return int(given)


async def _not_found(_: Request, error: Exception) -> Response:
    return Response(refusal("there is no such page"), 404, media_type="application/json")


async def _failed(_: Request, error: Exception) -> Response:
    sentence = "the bundle could not be read; remove the folder explorer of the run and explore it again"
    return Response(refusal(sentence), 500, media_type="application/json")
