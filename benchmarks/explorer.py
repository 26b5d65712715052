"""The explorer at 100,000 features: how long a bundle takes to build, and how fast its pages come.

    python benchmarks/explorer.py                 # 100,000 features of 100,000 rows; some four minutes
    python benchmarks/explorer.py --features 20000 --keep FOLDER

The model is a TopK dictionary with random directions, the rows are sums of six of them; the bundle is built by the same
code as any other, and served by the same server in a process of its own. Then a person's questions one after another,
64 clients at once, and the first paint in Chromium, where it and playwright are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch

import fewfire as ff
from fewfire import plot
from fewfire.explorer import build as building
from fewfire.explorer.neighbours import by_angle
from fewfire.explorer.progress import Stages
from fewfire.explorer.store import Store
from fewfire.runs import Run

COLUMNS, PER_ROW, K = 64, 6, 32
CLIENTS, SECONDS = 64, 10
CHROMIUM = "/usr/bin/chromium"


def world(n_features: int, n_rows: int) -> tuple[ff.Autoencoder, ff.ArraySource]:
    """A dictionary that knows the directions which its rows are made of."""
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(n_features, COLUMNS)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rows = np.zeros((n_rows, COLUMNS), dtype=np.float32)
    for _ in range(PER_ROW):
        strength = 0.5 + generator.exponential(size=(n_rows, 1)).astype(np.float32)
        rows += strength * directions[generator.integers(0, n_features, n_rows)]
    source = ff.ArraySource(rows, layout={"kind": "table", "columns": [f"sensor {i:02d}" for i in range(COLUMNS)]})
    model = ff.Autoencoder(COLUMNS, n_features, ff.TopK(k=K), layout=source.layout)
    with torch.no_grad():
        model.encoder.W_enc.copy_(torch.from_numpy(directions))
        model.decoder.W_dec.copy_(torch.from_numpy(directions))
    return model, source


def build(folder: Path, n_features: int, n_rows: int) -> Path:
    model, source = world(n_features, n_rows)
    run = Run(path=folder, model=model, config=None, provenance={})
    kept: list[Stages] = []

    class Kept(Stages):
        def __init__(self, wanted: bool | None) -> None:
            super().__init__(wanted)
            kept.append(self)

    building.Stages = Kept  # to see how long each stage took
    start, cpu = time.perf_counter(), time.process_time()
    bundle = building.build(run, source, progress=False)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    for name, took in kept[0].seconds.items():
        print(f"    {name:<22}{took:7.1f} s")
    size = sum(path.stat().st_size for path in bundle.iterdir()) / 1e6
    print(f"bundle of {n_features:,} features and {n_rows:,} rows: {seconds:.1f} s, {cpu:.1f} CPU seconds, ", end="")
    print(f"{size:,.0f} MB on disk, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB of memory")
    start = time.perf_counter()
    building.build(run, source, progress=False)
    print(f"the same again: {time.perf_counter() - start:.1f} s")
    recall(model)
    return bundle


def recall(model: ff.Autoencoder, n: int = 500) -> None:
    """The share of the true ten nearest features that are found."""
    vectors = plot.feature_vectors(model)
    found = by_angle(vectors).features[:n]
    unit = torch.nn.functional.normalize(vectors, dim=1)
    cosine = unit[:n] @ unit.T
    cosine[torch.arange(n), torch.arange(n)] = -2
    true = cosine.topk(found.shape[1], dim=1).indices.numpy()
    share = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, true, strict=True)])
    print(f"nearest features by angle: {share:.1%} of the true ones, of random directions, which have no structure")


def serve(bundle: Path) -> tuple[subprocess.Popen[str], str]:
    command = [
        sys.executable,
        "-c",
        "from fewfire.cli import main; main()",
        "explore",
        str(bundle),
        "--port",
        "0",
        "--no-open",
    ]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    line = server.stderr.readline() if server.stderr else ""
    return server, line.split()[0]


def one_by_one(address: str, bundle: Path) -> list[str]:
    """Questions of a person, one after another; returns addresses for the crowd."""
    generator = np.random.default_rng(1)
    n = len(Store(bundle).numbers("features"))
    some = generator.integers(0, n, 200).tolist()
    words = [f"sensor {i:02d}" for i in range(COLUMNS)]
    questions = {
        "feature page": [f"features/{i}.json" for i in some],
        "first page of the table": ["features.json?sort=density&limit=100"] * 20,
        "a page deep in the table": [f"features.json?sort=max&offset={i}&limit=100" for i in some[:50]],
        "search, one word": [f"features.json?q={word[-2:]}&limit=100" for word in words],
        "search, a word of all labels": ["features.json?q=sensor&sort=norm&limit=100"] * 10,
        "row page": [f"rows/{i}.json" for i in generator.choice(Store(bundle).numbers("rows"), 200)],
        "map": ["map.json"] * 5,
    }
    for name, paths in questions.items():
        took = []
        for path in paths:
            start = time.perf_counter()
            with urllib.request.urlopen(address + "api/" + path.replace(" ", "%20")) as answer:
                size = len(answer.read())
            took.append(1000 * (time.perf_counter() - start))
        print(f"    {name:<30}{np.median(took):7.1f} ms, slowest {max(took):6.1f} ms, {size / 1000:8.1f} kB")
    return (
        questions["feature page"]
        + questions["a page deep in the table"][:10]
        + questions["row page"][:100]
        + questions["search, one word"][:20]
    )


def crowd(address: str, paths: list[str]) -> None:
    """64 clients, each with a connection, asking again as soon as it is answered; in a process of their own."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import explorer; explorer.ask_all()"
    given = json.dumps([address, paths])
    print(
        subprocess.run([sys.executable, "-c", code], input=given, text=True, capture_output=True, check=True).stdout,
        end="",
    )


def ask_all() -> None:
    address, paths = json.loads(sys.stdin.read())
    port = int(address.rstrip("/").rpartition(":")[2])
    took: list[float] = []
    errors = 0

    async def client(number: int, end: float) -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        i = number
        while time.perf_counter() < end:
            start = time.perf_counter()
            path = paths[i % len(paths)].replace(" ", "%20")
            writer.write(f"GET /api/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            errors += not head.startswith(b"http/1.1 200")
            took.append(1000 * (time.perf_counter() - start))
            i += 7
        writer.close()

    async def everybody() -> None:
        end = time.perf_counter() + SECONDS
        await asyncio.gather(*(client(i, end) for i in range(CLIENTS)))

    asyncio.run(everybody())
    p50, p99 = np.percentile(took, [50, 99])
    print(
        f"{CLIENTS} clients for {SECONDS} s: {len(took) / SECONDS:,.0f} answers a second, median {p50:.0f} ms, ", end=""
    )
    print(f"p99 {p99:.0f} ms, {errors} errors")


def first_paint(address: str) -> None:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("first paint: not measured, playwright is not installed")
        return
    if not Path(CHROMIUM).exists():
        print("first paint: not measured, there is no Chromium")
        return
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=arguments)
        for name, path, wanted in [
            ("table", "#/features", ".line .spark"),
            ("feature", "#/feature/77", ".example"),
            ("map", "#/map", ".atlas canvas"),
        ]:
            took = []
            for _ in range(3):
                page = browser.new_page()
                page.goto("about:blank")
                start = time.perf_counter()
                page.goto(address + path)
                page.wait_for_selector(wanted)
                took.append(1000 * (time.perf_counter() - start))
                paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
                page.close()
            print(f"    {name:<10} content after {min(took):5.0f} ms, first contentful paint {paint or 0:5.0f} ms")
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="a folder for the bundle; one that is there is not built again")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        bundle = folder / "explorer"
        if not bundle.is_dir():
            bundle = build(folder, given.features, given.rows)
        server, address = serve(bundle)
        try:
            print("one after another:")
            paths = one_by_one(address, bundle)
            crowd(address, paths)
            print("in Chromium:")
            first_paint(address)
        finally:
            server.terminate()
            server.wait(10)
    finally:
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
