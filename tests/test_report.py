"""report.html: complete, self-contained, inert whatever the data call themselves, and small."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from fewfire import files, plot
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Batch, Layout
from fewfire.evaluation import LIMITED, Evaluation, evaluate
from fewfire.report import METRICS, charts, labels, words, write_report
from fewfire.report import gather as gathering
from fewfire.runs import Run, load_config, open_run, train
from fewfire.sources import ArraySource

HOSTILE = "<script>alert(1)</script>\"><img src=http://evil.example/x onerror=alert(1)>'{{ 7*7 }}"
VOID = {"meta", "img", "br", "link", "input", "hr"}


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Page(HTMLParser):
    """Every tag with its attributes; refuses tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags, self._open = text, [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID and tag not in {"path", "polyline", "polygon"}:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in {"path", "polyline", "polygon"}:
            assert self._open.pop() == tag

    def all(self, name: str) -> list[dict]:
        return [attrs for tag, attrs in self.tags if tag == name]

    def count(self, name: str, cls: str) -> int:
        return sum(cls in (attrs.get("class") or "").split() for attrs in self.all(name))


def bare_run(path: Path, model: Autoencoder, **provenance) -> Run:
    files.save(model, path, provenance=provenance)
    return open_run(path)


def page_of(run: Run, source) -> Page:
    return Page(write_report(run, source).read_text(encoding="utf-8"))


def check_self_contained(page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "action", "style"):
            assert not re.search(r"https?:|url\(|//", (attrs.get(name) or "").partition("base64,")[0])
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in page.all("img"))
    assert "default-src 'none'" in page.all("meta")[1]["content"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Run:
    config = load_config(
        settings=[
            "train.steps=30",
            "model.n_latents=32",
            "train.validation_fraction=0.1",
            "model.activation={name: topk, k: 4}",
        ],
        path="digits",
    )
    return train(config, tmp_path_factory.mktemp("runs") / "digits", progress=False)


def test_a_run_of_images(digits, monkeypatch):
    monkeypatch.setattr("fewfire.plot.MAX_DOTS", 150)  # t-SNE of all of them takes seconds
    page = page_of(digits, digits.source())
    check_self_contained(page)
    assert "32 features of 1,617 handwritten digits" in page.text
    assert "about 4 fire per row" in page.text
    assert page.count("div", "tiles") in (1, 2)
    groups = [gathering.gather(digits.model, digits.source())]
    examples = sum(len(top) for top in groups[0].top.values())
    assert len(page.all("img")) == 32 + 2 * 12 + 12 + examples
    assert len(page.all("polyline")) >= 2 and 'class="dots"' in page.text
    assert "All settings (config.yaml)" in page.text and "validation_fraction: 0.1" in page.text
    assert digits.provenance["data_fingerprint"][:12] in page.text
    assert "fingerprints differ" not in page.text
    result = evaluate(digits.model, digits.source())
    limits = {f"{name}_{end}" for name in LIMITED for end in ("low", "high")}
    assert list(METRICS) == [name for name in result if name not in limits]
    assert all(f"<code>{metric}</code>" in page.text for metric in METRICS)
    reach = result["cosine"] - result["cosine_low"]
    assert f"{charts.short(result['cosine'])} ± {reach:.2g}" in page.text
    assert '<td class="num">4</td>' in page.text, "k is k on any rows: l0 has no ±"


def test_other_data_are_noticed(digits):
    page = page_of(digits, ArraySource(np.random.default_rng(0).random((50, 64), dtype=np.float32)))
    assert "fingerprints differ" in page.text


def test_a_table_with_hostile_names_in_a_bare_model_folder(tmp_path):
    layout = Layout("table", columns=(HOSTILE, "b", "c", "d"))
    model = Autoencoder(4, 6, "relu", preprocess="standardize", layout=layout)
    source = ArraySource(randn(300, 4) * 1e6, layout=layout, name=HOSTILE)
    model.preprocess.fit(lambda: [source._x])
    run = bare_run(tmp_path / "model", model, data=HOSTILE, engine=HOSTILE)
    page = page_of(run, source)
    check_self_contained(page)
    assert not page.all("img")
    assert "&lt;script&gt;" in page.text and "{{ 7*7 }}" in page.text
    assert page.count("article", "card") == 6 + 6 + len(gathering.gather(model, source).top)
    assert "No curves" in page.text and "No config.yaml" in page.text


def test_dead_features_and_models_that_learned_nothing_are_said(tmp_path):
    model = Autoencoder(16, 40, "relu", layout=Layout("image", (4, 4)))
    with torch.no_grad():
        model.encoder.b_enc.fill_(-1e4)
    source = ArraySource(randn(60, 16))
    page = page_of(bare_run(tmp_path, model), source)
    assert "40 of 40 features (100%) never fired" in page.text
    assert "No feature fired on these rows" in page.text
    assert "Nothing to count" in page.text
    assert "Never fired on these rows: 40, of which 32 are drawn" in page.text


def test_logistic_units_are_spoken_of_by_their_activation(tmp_path):
    model = Autoencoder(16, 9, "sigmoid", layout=Layout("image", (4, 4)))
    with torch.no_grad():
        model.encoder.b_enc.fill_(-3.0)
    objective = [{"name": "kl", "weight": 3.0, "rho": 0.01}, {"name": "somebody's own", "weight": 1.0}]
    page = page_of(bare_run(tmp_path, model, objective=objective), ArraySource(randn(90, 16) * 0.1))
    assert "mean activation" in page.text and "the target is 0.01" in page.text
    assert "The KL penalty did not reach its target" in page.text
    assert "No unit rose above one half" in page.text
    assert "features never fired" not in page.text


def test_a_transcoder_of_images_has_no_pictures_of_its_targets(tmp_path):
    model = Autoencoder(16, 5, "relu", d_out=7, layout=Layout("image", (4, 4)))
    source = ArraySource(randn(40, 16), randn(40, 7), layout=Layout("image", (4, 4)))
    page = page_of(bare_run(tmp_path, model), source)
    assert "targets of another shape" in page.text and page.count("div", "stair") == 6


def test_few_rows_one_column_and_constants(tmp_path):
    source = ArraySource(torch.ones(1, 1))
    check_self_contained(page_of(bare_run(tmp_path, Autoencoder(1, 1, "relu")), source))


def test_many_latents_stay_small_fast_and_say_how_many_are_shown(tmp_path):
    layout = Layout("image", (3, 64, 64))
    model = Autoencoder((3, 64, 64), 600, "relu", layout=layout)
    source = ArraySource(randn(64, 3, 64, 64), layout=layout)
    run = bare_run(tmp_path, model)
    started = time.perf_counter()
    path = write_report(run, source)
    assert time.perf_counter() - started < 8
    assert path.stat().st_size < 4_000_000
    assert "Shown are 400 of 600" in path.read_text()


# ------------------------------------------------------------------------------------------------- the rows


class Endless:
    """Batches without an end; counts those it gave."""

    n_rows, row_shape, target_shape, layout, fingerprint = None, (4,), (4,), Layout(), "endless"

    def __init__(self) -> None:
        self.given = 0

    def batches(self, batch_size, *, seed=0, epoch=0, start=0, shuffle=True):
        assert not shuffle
        while True:
            self.given += 1
            x = torch.randn(batch_size, 4, generator=torch.Generator().manual_seed(start))
            yield Batch(x, x, torch.arange(start * batch_size, (start + 1) * batch_size))
            start += 1

    def split(self, fraction, seed=0):
        raise NotImplementedError


def test_an_endless_source_is_read_as_far_as_needed(tmp_path):
    source = Endless()
    run = bare_run(tmp_path, Autoencoder(4, 8, "relu"))
    page = page_of(run, source)
    assert "the first 5,000 rows" in page.text and "8 features of data" in page.text
    assert source.given <= 2 * -(-5000 // 512)


def test_gather_finds_the_rows_that_excite_a_feature_most():
    model = Autoencoder(4, 8, "relu")
    source = ArraySource(randn(700, 4))
    found = gathering.gather(model, source)
    latents = model.encode(source._x)
    assert found.evaluation.result() == pytest.approx(Evaluation.over(model, source).result())
    for j, top in found.top.items():
        wanted = latents[:, j].topk(8)
        assert [value for value, _ in top] == wanted.values.tolist()
        for value, position in top:
            assert latents[position, j] == value and torch.equal(
                found.examples[position].x.float(), source._x[position]
            )


def test_no_rows_is_an_error():
    class Empty(Endless):
        def batches(self, batch_size, **_):
            return iter(())

    with pytest.raises(ValueError, match="gave none"):
        gathering.gather(Autoencoder(4, 8, "relu"), Empty())


# ---------------------------------------------------------------------------------------------- labels


def bundles(n: int, kinds: int = 3, width: int = 6) -> tuple[torch.Tensor, np.ndarray]:
    """(n, width) rows about as many middles as there are kinds, and which each belongs to."""
    kind = np.arange(n) % kinds
    return 20 * torch.eye(max(width, kinds))[kind, :width] + randn(n, width), kind


def test_rows_are_coloured_by_label_beside_the_columns(tmp_path):
    x, kind = bundles(120)
    names = np.array([HOSTILE, "b", "c"])
    source = ArraySource(x, labels=names[kind])
    run = bare_run(tmp_path, Autoencoder(6, 40, "relu"))
    page = page_of(run, source)
    check_self_contained(page)
    assert page.text == page_of(run, source).text  # t-SNE as well
    assert page.count("div", "cloud") == 2 and page.text.count("&lt;script&gt;") == 1  # too long to stand in a picture
    colours = [f"background:{colour}" for colour in plot.STYLE["classes"][:3]]
    assert [i["style"] for i in page.all("i") if i.get("style") in colours] == colours
    found = labels.clouds(run.model, source)
    assert [n for _, _, n in found.legend] == [40, 40, 40] and found.method == "t-SNE"
    for picture in found.pictures:
        places = [tuple(map(float, at.split())) for _, dots in picture.dots for at in dots[1:-2].split("h0M")]
        assert len(places) == 120 and np.min(places) >= 0 and np.max(places) <= 100
        assert picture.alike > 0.9
    assert found.says in page.text and "100% among the columns; by chance it would be 33%." in found.says


def test_short_names_stand_where_their_class_is():
    x, kind = bundles(120)
    found = labels.clouds(Autoencoder(6, 2, "relu"), ArraySource(x, labels=kind))
    assert found.method == "PCA (first) and t-SNE (second)"
    columns = found.pictures[1]
    assert [name for name, _, _ in columns.names] == ["0", "1", "2"]
    for (_, left, top), colour in zip(columns.names, plot.STYLE["classes"], strict=False):
        own = [
            tuple(map(float, at.split())) for c, dots in columns.dots if c == colour for at in dots[1:-2].split("h0M")
        ]
        assert np.abs(np.mean(own, 0) - (left, top)).max() < 10
    assert labels.clouds(Autoencoder(6, 2, "relu"), ArraySource(randn(120, 6), labels=kind)).pictures[1].names == []


def test_a_name_stands_where_its_class_is_thickest_and_inside_the_picture():
    far, thick = np.array([[5.0, 5], [95, 5]]), 50 + randn(20, 2).double().numpy()
    ((_, left, top),) = labels._names(np.concatenate([far, thick]), np.zeros(22, dtype=int), ["a"])
    assert abs(left - 50) < 3 and abs(top - 50) < 3
    assert next(labels._names(np.array([[1.0, 50]]), np.zeros(1, dtype=int), ["ten letter"])) == ("ten letter", 14, 50)


def test_the_second_picture_is_turned_towards_the_first():
    points = randn(50, 2).double().numpy()
    turned = points @ np.array([[0.6, 0.8], [0.8, -0.6]]) + 3  # mirrored as well
    assert np.allclose(labels._turned(turned, points), points - points.mean(0))


@pytest.mark.parametrize(
    "given",
    [None, np.arange(120), np.zeros(120), np.zeros((120, 2)), randn(120).numpy()],
    ids=["none", "all different", "one class", "2-d", "measurements"],
)
def test_without_a_few_classes_there_is_no_picture(tmp_path, given):
    source = ArraySource(bundles(120)[0], labels=given)
    assert 'class="cloud"' not in page_of(bare_run(tmp_path, Autoencoder(6, 3, "relu")), source).text


def test_sorted_files_are_drawn_from_throughout(monkeypatch):
    monkeypatch.setattr("fewfire.plot.MAX_DOTS", 30)
    x, kind = bundles(3000)
    kind = np.sort(kind).astype(float)
    x[::2], kind[::7] = torch.nan, np.nan
    found = labels.clouds(Autoencoder(6, 3, "relu"), ArraySource(x, labels=kind))
    assert len(found.legend) == 3 and all(n for _, _, n in found.legend) and found.n_rows < 30


def test_of_gaussian_latents_the_mean_activation_is_no_mean_of_sigmoids(tmp_path):
    model = Autoencoder(16, 9, "gaussian")
    with torch.no_grad():
        model.encoder.b_enc[:9] = 3.0
    page = page_of(bare_run(tmp_path, model, objective=[{"name": "kl", "rho": 0.05}]), ArraySource(randn(90, 16)))
    assert "KL penalty" not in page.text
    with torch.no_grad():
        model.encoder.b_enc.zero_(), model.encoder.W_enc.zero_()
    page = page_of(bare_run(tmp_path / "still", model), ArraySource(randn(90, 16)))
    assert "9 of 9 normal latents hardly vary" in page.text and "one half" not in page.text


# ---------------------------------------------------------------------------------------- words and charts


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.07123, "0.0712"),
        (-3.5, "−3.5"),
        (1234.5, "1,234"),
        (2.5e7, "2.50e7"),
        (1e-9, "1.00e-9"),
        (16.0, "16"),
    ],
)
def test_numbers_are_short(value, text):
    assert charts.short(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0%"),
        (1.0, "100%"),
        (1e-5, "<0.1%"),
        (0.99999, ">99.9%"),
        (0.052, "5.2%"),
        (0.78, "78%"),
        (0.9899, "99.0%"),
    ],
)
def test_percentages_never_round_to_nothing_or_all(share, text):
    assert words.percent(share) == text


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.0), (-3.0, 8.0), (0.0, 3136.0), (1e-7, 3e-7)])
def test_even_ticks_cover_the_range(low, high):
    ticks = charts.even_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high * (1 - 1e-9) and len(ticks) <= 8


def test_a_constant_curve_is_not_drawn_and_a_long_one_is_thinned():
    assert charts.curve_chart([{"step": s, "l0": 16.0} for s in range(9)], "l0", "") is None
    chart = charts.curve_chart([{"step": s, "loss": 1.0 + s} for s in range(5000)], "loss", "Loss")
    assert len(chart.line.split()) <= charts.MAX_POINTS and chart.line.split()[-1].startswith("100.0,")


def test_bad_spells_are_told():
    overfitted = [{"step": 1, "fvu": 0.1}, {"step": 1, "val_fvu": 0.4}]
    assert "by heart" in next(words._overfitted(overfitted))
    result = {"explained_variance": -1.0, "l0": 1, "n_latents": 4, "mean_activation": 0.0}
    assert "worse than the mean" in words.verdict(result)
