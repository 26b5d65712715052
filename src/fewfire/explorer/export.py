"""The page as files, for any web server: the addresses of ``server``, without what follows a ``?``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fewfire.disk import atomic_write
from fewfire.explorer.packing import to_json
from fewfire.explorer.progress import Stages
from fewfire.explorer.server import page_files
from fewfire.explorer.store import Store

__all__ = ["export"]

MOST_ROWS = 2_000
"""in the list of rows; each row that is an example has a page of its own all the same"""


def export(bundle: Path, out: str | Path, *, progress: bool | None = None) -> int:
    """Write the page and its JSON into a new folder; returns the number of files.

    What only a server can do is absent, and the page says so: searching the text of examples, and a list of more than
    2,000 rows. ``index.html`` comes last: a folder with one is whole.

    Raises
    ------
    FileExistsError
        ``out`` holds something.
    FileNotFoundError, ValueError
        There is no bundle, or one of another version.
    """
    store, out = Store(bundle), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; give --export the name of a new folder")
    page = page_files()
    written = 0
    features, rows = store.numbers("features"), store.numbers("rows")
    total = len(features) + len(rows)
    with Stages(progress)("writing files", total) as advance:
        for name, text in _answers(store, features, rows):
            path = out / "api" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")  # not each by itself: the folder is whole when index.html is there
            written += 1
            advance(1)
    for name in sorted(page, key=lambda name: name == "index.html"):
        atomic_write(out / name, page[name])
    return written + len(page)


def _answers(store: Store, features: list[int], rows: list[int]) -> Iterator[tuple[str, str]]:
    """(address below api/, JSON)."""
    meta = json.loads(store.text("meta") or "{}")
    yield "meta.json", to_json({**meta, "static": True})
    for key in ("map", "run", "comparison"):
        text = store.text(key)
        if text is not None:
            yield f"{key}.json", text
    lines = ",".join(store.every_feature())
    yield "features.json", f'{{"total":{len(features)},"offset":0,"features":[{lines}]}}'
    for number in features:
        yield f"features/{number}.json", store.feature(number) or "{}"
    listed = store.some_rows(MOST_ROWS)
    yield "rows.json", f'{{"total":{len(listed)},"offset":0,"rows":[{",".join(listed)}]}}'
    for number in rows:
        yield f"rows/{number}.json", store.row(number) or "{}"
