"""Pictures of every view, for docs/explorer.md.

    python frontend/screenshots.py BUNDLE docs/pictures/explorer/NAME [view=address ...]

Serves the bundle and writes NAME-VIEW.png and NAME-VIEW-dark.png. Needs playwright and Chromium.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

VIEWS = ["features=features", "feature=feature/5", "map=map", "rows=rows", "row=row/5", "run=run"]
COMMAND = [sys.executable, "-c", "from fewfire.cli import main; main()", "explore"]


def main(bundle: str, name: str, *views: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen([*COMMAND, bundle, "--port", "0", "--no-open"], stderr=subprocess.PIPE, text=True)
    try:
        line = server.stderr.readline() if server.stderr else ""
        while "http://127" not in line:
            line = server.stderr.readline() if server.stderr else ""
        with sync_playwright() as tool:
            browser = tool.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": 1200, "height": 760}, color_scheme=scheme)
                for view in views or VIEWS:
                    label, _, place = view.partition("=")
                    page.goto("about:blank")
                    page.goto(f"{line.split()[0]}#/{place}")
                    page.wait_for_load_state("networkidle")
                    page.wait_for_timeout(400)
                    page.screenshot(path=f"{name}-{label}{'-dark' if scheme == 'dark' else ''}.png")
            browser.close()
    finally:
        server.terminate()
        server.wait(10)


if __name__ == "__main__":
    main(*sys.argv[1:])
