"""The page, in a real browser: every view, no request to anybody else, no error on its console, text as text."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import fewfire as ff
from fewfire.disk import locked
from fewfire.explorer.build import build
from fewfire.explorer.export import export
from fewfire.explorer.server import page_files
from fewfire.explorer.store import Store
from fewfire.runs import Run, RunConfig, open_run, train
from fewfire.store import Part, StoreWriter
from test_explorer_server import HOSTILE, served, small_run

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """A page of a server on a port, which writes down what it asks for and complains of."""

    def __init__(self, chromium, port, **settings):
        self.address = f"http://127.0.0.1:{port}/"
        self.context = chromium.new_context(viewport={"width": 1280, "height": 860}, **settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.asked, self.complaints = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("a dialog"), dialog.dismiss()))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        outside = [url for url in self.asked if not url.startswith(self.address)]
        self.context.close()
        if kind is None:
            assert not outside
            assert not self.complaints
            assert self.asked

    def go(self, place, wanted):
        self.page.goto(self.address + place)
        self.page.wait_for_selector(wanted)
        return self.page

    @property
    def place(self):
        return self.page.url.partition("#/")[2]

    def lands(self, pattern):
        until(self.page, "pattern => new RegExp(pattern).test(location.hash)", pattern)
        return self.place


def until(page, expression, argument=None):
    """Wait for it. Playwright's own way evaluates text within the page, which its policy forbids."""
    end = time.monotonic() + 15
    while not page.evaluate(expression, argument):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


# ------------------------------------------------------------------------------------------------------------ smoke


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    run, source = small_run(tmp_path_factory.mktemp("hostile") / f"run {HOSTILE.replace('/', '')}"[:60])
    with served(build(run, source, progress=False)) as port:
        yield port


def test_smoke_and_text_is_text(chromium, hostile):
    """A run whose name, columns and labels are markup: they are read, and never run."""
    with Visit(chromium, hostile) as visit:
        page = visit.go("", ".line .spark")
        assert HOSTILE[:12] in page.inner_text(".brand")
        assert page.locator("a.line").count() == 16
        page.fill("input[type=search]", "onerror")
        until(page, "document.querySelector('.total').textContent.includes(' of ')")
        page = visit.go("#/feature/3", ".example")
        assert HOSTILE in page.inner_text("article")
        page = visit.go("#/rows", ".card")
        page.click(".card")
        visit.lands(r"row/\d+")
        page.wait_for_selector("article.row")
        assert "alert(2)" in page.inner_text("article")
        assert page.locator("article img, article script, iframe").count() == 0
        visit.go("#/run", ".meanings")
        visit.go("#/map", ".atlas canvas")


def test_a_script_that_is_not_the_pages_own_does_not_run(chromium, hostile):
    visit = Visit(chromium, hostile)
    page = visit.go("", ".line .spark")
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    )
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 2\">')")
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for text in visit.complaints)
    visit.context.close()


# ------------------------------------------------------------------------------------------------------ three bundles

SENTENCES = [
    "the cat sat on the mat and the dog sat on the rug",
    "a dog chased a cat across the green garden in the rain",
    "rain fell on the garden and the river rose by the old bridge",
    "the old river runs under the bridge to the sea",
    "prices rose and the bank raised the rate again this year",
    "the bank by the river was green after the rain",
    "a new rate this year made prices fall at the market",
    "the market by the sea sells fish and bread to the old town",
]


def texts(folder):
    """A store of words whose vectors are directions of their own, and a little of those before."""
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    directions = np.random.default_rng(0).normal(size=(len(words), 24))
    documents = SENTENCES * 6
    rows, vectors = {name: [] for name in ("document", "position", "token_id", "token", "start", "end", "label")}, []
    for number, text in enumerate(documents):
        before = np.zeros(24)
        for position, match in enumerate(re.finditer(r"\S+", text)):
            index = words.index(match[0])
            before = directions[index] + 0.3 * before
            vectors.append(before)
            label = "money" if "rate" in text else "nature"
            line = (number, position, index, match[0], match.start(), match.end(), label)
            for name, value in zip(rows, line, strict=True):
                rows[name].append(value)
    described = {
        "document": range(len(documents)),
        "text": documents,
        "label": ["money" if "rate" in t else "nature" for t in documents],
    }
    with locked(folder):
        writer = StoreWriter(folder, ["layer"], "float32", "token", {"model": "none"})
        array = torch.from_numpy(np.array(vectors)).float()
        writer.write(Part({"layer": array}, pa.table(rows), pa.table(described), "digest", len(documents)))
        writer.finish()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """name -> bundle: photograph patches, digits as a table, texts."""
    folder = tmp_path_factory.mktemp("bundles")
    digits = ff.open_source("digits")
    (batch,) = digits.batches(2000, shuffle=False)
    names = ",".join(f"row {i // 8} column {i % 8}" for i in range(64))
    np.savetxt(folder / "digits.csv", batch.x.numpy(), delimiter=",", header=names, comments="", fmt="%d")
    texts(folder / "store")
    settings = {
        "patches": (
            {"path": "patches", "options": {"size": 10, "n": 4000}},
            {"n_latents": 100, "activation": {"name": "topk", "k": 6}},
        ),
        "table": ({"path": str(folder / "digits.csv")}, {"n_latents": 64, "activation": {"name": "topk", "k": 6}}),
        "text": ({"path": str(folder / "store")}, {"n_latents": 48, "activation": {"name": "topk", "k": 3}}),
    }
    made = {}
    for name, (data, model) in settings.items():
        config = {"data": data, "model": model, "train": {"steps": 400, "learning_rate": 3e-3}}
        run = train(RunConfig.model_validate(config), folder / name, progress=False)
        other = open_run(folder / "patches") if name == "patches" else None
        made[name] = build(run, run.source(), compare=other, progress=False)
    return made


@pytest.fixture(scope="module", params=["patches", "table", "text"])
def explored(bundles, request):
    with served(bundles[request.param]) as port:
        yield request.param, port, Store(bundles[request.param])


@slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view(chromium, explored, scheme):
    _, port, _ = explored
    with Visit(chromium, port, color_scheme=scheme) as visit:
        for place, wanted in [
            ("#/features", ".line .spark"),
            ("#/feature/1", ".example"),
            ("#/map", ".atlas canvas"),
            ("#/rows", ".card"),
            ("#/row/0", ".active"),
            ("#/run", ".meanings"),
        ]:
            page = visit.go(place, wanted)
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")


@slow
def test_every_view_on_a_phone(chromium, explored):
    _, port, _ = explored
    with Visit(chromium, port) as visit:
        visit.page.set_viewport_size({"width": 375, "height": 740})
        for place, wanted in [("#/features", ".line .label"), ("#/feature/1", ".example"), ("#/map", ".atlas canvas"),
                              ("#/rows", ".card"), ("#/row/0", ".active"), ("#/run", ".meanings")]:  # fmt: skip
            page = visit.go(place, wanted)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), place


@slow
def test_the_table(chromium, explored):
    name, port, store = explored
    with Visit(chromium, port) as visit:
        page = visit.go("", ".line .spark")
        ids = lambda: [int(t) for t in page.locator("a.line .id").all_inner_texts()[:5]]  # noqa: E731
        wanted = lambda **options: [f["id"] for f in json.loads(store.features(**options))["features"]][:5]  # noqa: E731
        assert ids() == wanted()
        page.click(".head-max button")
        visit.lands("sort=max")
        until(page, f"document.querySelector('a.line .id')?.textContent === '{wanted(sort='max')[0]}'")
        assert ids() == wanted(sort="max")
        page.click(".head-max button")
        visit.lands("order=asc")
        until(
            page, f"document.querySelector('a.line .id')?.textContent === '{wanted(sort='max', descending=False)[0]}'"
        )
        page.reload()  # a permalink
        page.wait_for_selector(".line .spark")
        assert ids() == wanted(sort="max", descending=False)
        page.keyboard.press("/")
        page.keyboard.type("no such word anywhere")
        page.wait_for_selector(".empty")
        page.click(".empty button")
        page.wait_for_selector("a.line")
        page.click("text=Dead")
        until(page, "document.querySelector('.empty') || document.querySelector('em.mark')")
        visit.go("?again#/features", ".line .spark")
        until(page, f"document.querySelector('a.line .id')?.textContent === '{wanted()[0]}'")
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.wait_for_selector("a.line.on")
        page.keyboard.press("Enter")
        assert visit.lands(r"feature/\d+") == f"feature/{wanted()[1]}"
        if name == "patches":
            visit.go("#/features?as=wall", ".tile canvas")


@slow
def test_a_features_page(chromium, explored):
    name, port, store = explored
    with Visit(chromium, port) as visit:
        first, second = [f["id"] for f in json.loads(store.features(limit=2))["features"]]
        visit.go("#/features", ".line .spark")
        page = visit.go(f"#/feature/{first}", ".example")
        body = page.inner_text("article")
        for words in ("Strongest", "Near misses", "Point the same way", "max", "Activations"):
            assert words in body
        assert page.locator(".group-top .example").count() == 16
        picture = lambda: page.locator(".group-top").screenshot()  # noqa: E731
        if name != "table":
            warm = picture()
            page.click(".switch input")
            assert picture() != warm
        if name == "text":
            assert page.locator(".text .own").count() >= 16
        page.keyboard.press("Escape")
        visit.go(f"#/feature/{first}", ".example")
        page.wait_for_selector("a[aria-label='next feature']")
        page.keyboard.press("ArrowRight")
        assert visit.lands(f"feature/{second}$")
        page.wait_for_selector(".near a")
        page.click(".near a")
        visit.lands(r"feature/\d+")
        page.wait_for_selector(".example")
        page.click(".example")
        visit.lands(r"row/\d+")
        page.wait_for_selector(".active .near")
        page.hover(".hint")
        page.wait_for_selector(".tip:visible")
        visit.go("#/features", ".line .spark")
        page.keyboard.press("?")
        page.wait_for_selector("[role=dialog]")
        page.keyboard.press("Escape")
        page.keyboard.press("2")
        visit.lands("map")


@slow
def test_what_is_not_there_says_so(chromium, explored):
    _, port, _ = explored
    visit = Visit(chromium, port)
    for place in ("#/feature/9999", "#/row/999999", "#/nonsense", "#/feature/..%2f..%2fetc"):
        page = visit.go(place, ".empty, main:empty")
        assert "not" in page.inner_text("main").lower() or "no " in page.inner_text("main").lower()
    visit.context.close()


@slow
def test_a_dot_of_the_map_opens_its_feature(chromium, explored):
    _, port, store = explored
    with Visit(chromium, port) as visit:
        page = visit.go("#/map", ".atlas canvas")
        page.wait_for_timeout(200)
        box = page.locator(".atlas canvas").bounding_box()
        drawn = page.evaluate(
            """() => { const c = document.querySelector('.atlas canvas');
            const {data, width} = c.getContext('2d').getImageData(0, 0, c.width, c.height);
            const at = []; for (let i = 3; i < data.length; i += 4) if (data[i] > 150)
                at.push([(i >> 2) % width, Math.floor((i >> 2) / width)]);
            return at; }"""
        )
        assert len(drawn) > 5 * len(store.numbers("features"))
        x, y = drawn[len(drawn) // 2]
        page.mouse.move(box["x"] + x, box["y"] + y)
        page.wait_for_selector(".over b")
        number = page.inner_text(".over b")
        before = page.locator(".atlas > canvas").screenshot()
        page.mouse.wheel(0, -300)
        page.wait_for_timeout(100)
        assert page.locator(".atlas > canvas").screenshot() != before
        page.mouse.click(box["x"] + x, box["y"] + y)
        assert visit.lands(r"feature/\d+") == f"feature/{number}"


@slow
def test_the_data_and_the_run(chromium, explored):
    name, port, _ = explored
    with Visit(chromium, port) as visit:
        page = visit.go("#/rows", ".card")
        page.select_option("select", "score")
        visit.lands("sort=score")
        page.wait_for_load_state("networkidle")
        assert "anomaly" in page.inner_text(".card")  # the worst of all: above what 99 % stay below
        page.click("text=Anomalies")
        visit.lands("only=anomalies")
        page.wait_for_load_state("networkidle")
        page.click(".card")
        visit.lands(r"row/\d+")
        page.wait_for_selector(".active .near")
        assert "anomaly" in page.inner_text("article")
        page = visit.go("#/run", ".meanings")
        assert "variance unexplained" in page.inner_text("main")
        assert page.locator(".charts canvas").count() >= 2
        if name == "patches":
            page.wait_for_selector(".line.pair .share")
            assert "100 of 100 agree" in page.inner_text("main")


@slow
def test_the_wheel_turns_ten_thousand_lines(chromium, tmp_path):
    rows = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    run = Run(path=tmp_path, model=ff.Autoencoder(8, 10_000, ff.TopK(k=4)), config=None, provenance={})
    with served(build(run, ff.ArraySource(rows), progress=False)) as port, Visit(chromium, port) as visit:
        page = visit.go("#/features?sort=id&order=asc", ".line .spark")
        for place in (0.5, 0.99, 0.1):
            page.evaluate(f"document.querySelector('.virtual').scrollTop = {int(place * 10_000 * 44)}")
            until(
                page,
                "n => [...document.querySelectorAll('a.line .id')].some(e => Math.abs(e.textContent - n) < 20)",
                int(place * 10_000),
            )
            assert page.locator("a.line").count() < 60


@slow
def test_an_export_works_from_any_web_server(chromium, bundles, tmp_path):
    export(bundles["patches"], tmp_path / "site", progress=False)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "site"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Visit(chromium, server.server_address[1]) as visit:
            page = visit.go("", ".line .spark")
            assert page.get_attribute("input[type=search]", "placeholder") == "Search labels"
            page.click(".head-max button")
            visit.lands("sort=max")
            first = json.loads(Store(bundles["patches"]).features(sort="max"))["features"][0]["id"]
            until(page, f"document.querySelector('a.line .id')?.textContent === '{first}'")
            page.fill("input[type=search]", "edge")
            until(page, "document.querySelector('.total').textContent.includes(' of ')")
            for place, wanted in [("#/feature/1", ".example"), ("#/map", ".atlas canvas"), ("#/rows", ".card"),
                                  ("#/row/0", ".active"), ("#/run", ".meanings")]:  # fmt: skip
                visit.go(place, wanted)
    finally:
        server.shutdown()
        server.server_close()


# ------------------------------------------------------------------------------------------------- the built bundle


@slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm")
def test_the_page_is_what_its_sources_build(tmp_path):
    """In a copy, with the node_modules of the checkout where they are, else with installed ones."""
    copy = tmp_path / "frontend"
    shutil.copytree(ROOT / "frontend", copy, ignore=shutil.ignore_patterns("node_modules"))
    if (ROOT / "frontend" / "node_modules").is_dir():
        (copy / "node_modules").symlink_to(ROOT / "frontend" / "node_modules")
    elif subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=copy, capture_output=True).returncode:
        pytest.skip("npm cannot install what the front end is built with")
    subprocess.run(
        ["npx", "vite", "build", "--outDir", str(tmp_path / "page")], cwd=copy, check=True, capture_output=True
    )
    built = {path.name: path.read_bytes() for path in (tmp_path / "page").iterdir()}
    assert built == page_files(), "the sources changed: cd frontend && npm ci && npm run build"


def test_the_lock_names_no_registry():
    lock = json.loads((ROOT / "frontend" / "package-lock.json").read_text())
    assert lock["packages"]["node_modules/preact"]["version"]
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]
    assert "http" not in re.sub(r'"(url|funding)": "[^"]*"', "", json.dumps(lock)).replace("https://opencollective", "")
