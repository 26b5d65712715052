"""Pictures: the right Axes, the right number of tiles, and nothing done to matplotlib behind the caller's back."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import sparse

from fewfire import plot
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Layout
from fewfire.evaluation import Evaluation
from fewfire.plot.features import _ranking
from fewfire.sources import ArraySource

IMAGE = Layout("image", (4, 4))


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def new_ax() -> Axes:
    return Figure().subplots()


def image_model(n_latents: int = 10, **kwargs) -> Autoencoder:
    return Autoencoder(16, n_latents, "relu", layout=IMAGE, **kwargs)


def table_model(columns=("a", "b", "c"), **kwargs) -> Autoencoder:
    return Autoencoder(len(columns), 5, "relu", layout=Layout("table", columns=tuple(columns)), **kwargs)


def drawn(ax: Axes) -> torch.Tensor:
    return torch.as_tensor(ax.images[0].get_array().data)


def render(ax: Axes) -> None:
    ax.figure.savefig("/dev/null", format="png")


# ------------------------------------------------------------------------------------------------- filters


def test_filters_draws_a_tile_per_feature_and_says_how_many():
    ax = new_ax()
    assert plot.filters(image_model(), ax, n=6, columns=3) is ax
    opaque = drawn(ax)[..., 3]
    runs = (opaque.diff(dim=0) > 0).any(1).sum() + 1, (opaque.diff(dim=1) > 0).any(0).sum() + 1
    assert runs == (2, 3)
    assert ax.get_title(loc="left") == "6 of 10 features"
    render(ax)


def test_filter_tiles_are_symmetric_about_grey():
    rows = torch.tensor([[0.0, 1.0, -2.0, 0.5]])
    tile = plot.tiles(rows, Layout("image", (2, 2)), symmetric=True)
    assert tile[0].ravel().tolist() == [0.5, 0.75, 0.0, 0.625]


def test_order_takes_numbers_scores_or_an_evaluation():
    model = image_model(4)
    vectors = plot.feature_vectors(model)
    scores = torch.tensor([0.1, 0.9, 0.5, 0.2])
    assert _ranking(vectors, IMAGE, [3, 1]).tolist() == [3, 1]
    assert _ranking(vectors, IMAGE, scores).tolist() == [1, 2, 3, 0]
    evaluation = Evaluation.over(model, ArraySource(randn(30, 16)))
    by_density = evaluation.density.argsort(descending=True, stable=True)
    assert _ranking(vectors, IMAGE, evaluation).tolist() == by_density.tolist()
    with pytest.raises(ValueError, match="from 0 to 3"):
        plot.filters(model, new_ax(), order=[4])
    with pytest.raises(ValueError, match="a score for each"):
        plot.filters(model, new_ax(), order=[0.5])


def test_smooth_features_come_before_noise():
    model = image_model(3)
    with torch.no_grad():
        model.decoder.W_dec[0] = torch.tensor([1.0, -1.0]).repeat(8)
        model.decoder.W_dec[1] = 1.0
        model.decoder.W_dec[2] = 0.0
    assert _ranking(plot.feature_vectors(model), IMAGE, None).tolist() == [1, 0, 2]


def test_encoder_filters_have_norm_one():
    vectors = plot.feature_vectors(Autoencoder(16, 5, "sigmoid", layout=IMAGE), "encoder")
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize(("shape", "wanted"), [((3, 4, 4), (5, 4, 4, 3)), ((1, 4, 4), (5, 4, 4)), ((4, 4), (5, 4, 4))])
def test_tiles_have_the_channels_of_the_layout(shape, wanted):
    layout = Layout("image", shape)
    model = Autoencoder(shape, 5, "relu", layout=layout)
    assert plot.tiles(plot.feature_vectors(model), layout, symmetric=True).shape == wanted
    render(plot.filters(model, new_ax()))


def test_a_row_of_one_value_and_a_dead_filter_are_grey():
    assert (plot.tiles(torch.full((1, 16), 7.0), IMAGE) == 0.5).all()
    assert (plot.tiles(torch.zeros(1, 16), IMAGE, symmetric=True) == 0.5).all()


def test_the_wrong_picture_points_to_the_right_one():
    with pytest.raises(ValueError, match="top_columns"):
        plot.filters(table_model(), new_ax())
    with pytest.raises(ValueError, match="plot.filters"):
        plot.top_columns(image_model(), 0, new_ax())
    with pytest.raises(ValueError, match="decoder' or 'encoder"):
        plot.filters(image_model(), new_ax(), weights="both")
    with pytest.raises(ValueError, match="got rows of 16"):
        plot.tiles(torch.zeros(1, 16), Layout("image", (5, 5)))


# --------------------------------------------------------------------------------------------- top columns


def test_top_columns_names_the_strongest_first():
    model = table_model()
    with torch.no_grad():
        model.decoder.W_dec[2] = torch.tensor([0.1, -3.0, 2.0])
    ax = new_ax()
    assert plot.top_columns(model, 2, ax, n=2) is ax
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "c"]
    assert [bar.get_width() for bar in ax.patches] == [-3.0, 2.0]


def test_top_columns_of_several_features_and_hostile_names():
    ax = plot.top_columns(table_model(("$\\frac{", "two\nlines", "x" * 90)), [0, 4], new_ax())
    assert {"feature 0", "feature 4"} <= {t.get_text() for t in ax.texts}
    render(ax)
    with pytest.raises(ValueError, match="from 0 to 4"):
        plot.top_columns(table_model(), 5, new_ax())


# ------------------------------------------------------------------------------------- curves and densities

RECORDS = [
    {"step": 0, "engine": "autograd"},
    *({"step": s, "loss": 100.0 / s, "fvu": 1 / s} for s in range(1, 40)),
    {"step": 20, "val_loss": 5.0, "val_fvu": None},
    {"step": 39, "seconds": 1.0, "summary": {"fvu": 0.1}},
]


def test_history_draws_lines_and_validation_dots(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))

    class Run:
        def history(self):
            return RECORDS

    for run in (RECORDS, tmp_path, Run()):
        ax = new_ax()
        assert plot.history(run, ax) is ax
        assert [line.get_label() for line in ax.lines] == ["loss", "loss, held out", "fvu"]
        assert len(ax.lines[0].get_xdata()) == 39
        assert ax.get_yscale() == "log"
    assert plot.history([{"step": i, "fvu": 0.5 + i / 10} for i in range(3)], new_ax()).get_yscale() == "linear"


def test_history_says_what_there_is():
    with pytest.raises(ValueError, match="there is: fvu, loss, seconds, val_loss"):
        plot.history(RECORDS, new_ax(), fields=["accuracy"])
    with pytest.raises(ValueError, match="there is: nothing"):
        plot.history([], new_ax())


def test_density_counts_every_feature_once():
    rates = torch.tensor([0.0, 0.0, 1.0, 0.5, 0.001])
    counts, edges, dead = plot.rate_histogram(rates)
    assert (sum(counts), dead, len(edges)) == (3, 2, len(counts) + 1)
    ax = plot.density(rates, new_ax())
    assert sum(bar.get_height() for bar in ax.patches) == 5
    assert [t.get_text() for t in ax.get_xticklabels()] == ["never", "1%", "10%", "100%"]
    assert [t.get_text() for t in ax.texts] == ["2"]
    render(plot.density([0.0, 0.0], new_ax()))
    with pytest.raises(ValueError, match="between 0 and 1"):
        plot.density([1.5], new_ax())


# ----------------------------------------------------------------------------------------- reconstructions


@pytest.mark.parametrize(
    "model", [image_model(), table_model(), Autoencoder(60, 4, "relu")], ids=["image", "table", "wide"]
)
def test_reconstructions(model):
    x = randn(12, *model.input_shape)
    ax = new_ax()
    assert plot.reconstructions(model, x.numpy(), ax, n=3) is ax
    render(ax)
    render(plot.reconstructions(model, torch.ones(1, *model.input_shape), new_ax()))
    with pytest.raises(ValueError, match="at least one row"):
        plot.reconstructions(model, x[:0], new_ax())


# --------------------------------------------------------------------------------------------- manners


def test_with_an_ax_pyplot_and_rcparams_stay_untouched():
    import matplotlib.pyplot as plt

    before, figures = dict(matplotlib.rcParams), plt.get_fignums()
    plot.filters(image_model(), new_ax())
    plot.density([0.1, 0.2], new_ax())
    plot.history(RECORDS, new_ax())
    assert (dict(matplotlib.rcParams), plt.get_fignums()) == (before, figures)


def test_without_an_ax_a_figure_is_made():
    import matplotlib.pyplot as plt

    figures = plt.get_fignums()
    ax = plot.filters(image_model())
    render(ax)
    assert len(plt.get_fignums()) == len(figures) + 1
    plt.close(ax.figure)


def test_importing_plot_does_not_import_matplotlib():
    code = "import sys, fewfire.plot, fewfire.report; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------- scatter


def test_scatter_has_a_colour_and_a_name_for_each_class():
    kind = torch.arange(60) % 3
    ax = new_ax()
    assert (
        plot.scatter(table_model(), randn(60, 3) + 9 * torch.eye(3)[kind], [("a", "$b$", "c")[k] for k in kind], ax)
        is ax
    )
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [r"\$b\$", "a", "c"]
    assert sum(len(dots.get_offsets()) for dots in ax.collections) == 60
    assert ax.get_title(loc="left") == "codes of 60 rows (PCA)"
    render(ax)
    bare = plot.scatter(table_model(), randn(60, 3).tolist(), ax=new_ax())
    assert bare.get_legend() is None and len(bare.collections) == 1
    for labels in (kind[:50], torch.arange(60), torch.zeros(60)):
        with pytest.raises(ValueError, match=r"a label for each of 60 rows, of 2 to 20 classes; got labels of shape"):
            plot.scatter(table_model(), randn(60, 3), labels, new_ax())


def test_scatter_takes_what_estimators_take():
    x, kind = randn(60, 3), torch.arange(60) % 3
    plain = plot.scatter(table_model(), x, kind, new_ax())
    thin = plot.scatter(table_model(), sparse.csr_array(x.numpy()), kind, new_ax())
    for dots, same in zip(plain.collections, thin.collections, strict=True):
        assert np.allclose(dots.get_offsets(), same.get_offsets())
    gaps = pd.array([None, *kind.tolist()[1:]], dtype="Int64")
    assert plot.scatter(table_model(), x, gaps, new_ax()).get_title(loc="left") == "codes of 59 rows (PCA)"
    many = torch.zeros(2100, 3)
    with pytest.raises(ValueError, match="a label for each of 2,100 rows"):
        plot.scatter(table_model(), many, torch.arange(2050) % 3, new_ax())
    with pytest.raises(ValueError, match="at least one row"):
        plot.scatter(table_model(), x[:0], ax=new_ax())


def test_near_rows_are_near_in_a_plane():
    kind = torch.arange(150) % 5
    rows = 9 * torch.eye(5)[kind] + randn(150, 5)
    points, method = plot.in_a_plane(rows)
    assert (points.shape, method) == ((150, 2), "t-SNE")
    assert plot.alike(points, kind.numpy()) > 0.95 > 0.4 > plot.alike(points, kind.roll(1).sort().values.numpy())
    assert (points == plot.in_a_plane(rows)[0]).all()


@pytest.mark.parametrize(
    "rows",
    [randn(99, 5), randn(150, 2), randn(150, 1), torch.ones(150, 4), randn(150, 1) * torch.ones(150, 4), randn(2, 3)],
    ids=["few", "two columns", "one column", "all alike", "on a line", "two rows"],
)
def test_what_needs_no_tsne_is_drawn_by_pca(rows):
    points, method = plot.in_a_plane(rows)
    assert points.shape == (len(rows), 2) and method == "PCA"
    centred = rows.double() - rows.double().mean(0)
    kept = torch.linalg.svdvals(centred)[:2].square().sum()
    assert (points**2).sum() == pytest.approx(float(kept), rel=1e-5, abs=1e-9)


def test_classes_are_in_order_and_gaps_are_none():
    assert plot.classes([10, 2, 10]) == (["2", "10"], pytest.approx([1, 0, 1]))
    assert plot.classes([10.0, math.nan, 2.5]) == (["2.5", "10"], pytest.approx([1, -1, 0]))
    assert plot.classes(["b", "", "a"])[0] == ["a", "b"]
    assert plot.classes([1, 0, 1], ["cat", "dog"])[0] == ["cat", "dog"]
    assert plot.classes(np.array([1, "x", None], dtype=object))[0] == ["1", "x"]
    assert plot.classes(np.arange(20)) is not None and plot.classes(np.arange(21)) is None
    assert len(set(plot.STYLE["classes"])) == plot.MAX_CLASSES


def test_a_dot_is_no_neighbour_of_its_own():
    assert plot.alike([[0.0, 0], [1, 0], [9, 0]], np.array([0, 1, 1])) == pytest.approx(1 / 3)
