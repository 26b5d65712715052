"""evaluate: what comes from a stream is what fewfire.metrics gives in memory."""

import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import fewfire as ff
from fewfire import metrics
from fewfire.activations import Activation
from fewfire.contracts import Batch
from fewfire.evaluation import LIMITED, Evaluation, evaluate
from fewfire.networks import Decoder, Network, Pair

OURS = [n for n, a in Activation.registry.items() if a.__module__.startswith("fewfire")]


def data(n=203, width=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-1, 1, width, dtype=torch.float64)
    return (torch.randn(n, width, generator=generator, dtype=torch.float64) * scales + 100).to(dtype)


def make(activation="topk", preprocess="standardize", rows=None, **settings):
    model = ff.Autoencoder(6, 10, activation, preprocess=preprocess, **settings)
    if model.preprocess is not None:
        model.preprocess.fit(lambda: [data() if rows is None else rows])
    with torch.no_grad():
        model.encoder.b_enc[3] = -1e6  # a latent that never fires
    return model


def columns(x):
    return x.flatten(1).unbind(1)


def in_memory(model, x, target=None):
    """The same numbers from plain tensors, all rows at once."""
    target = x if target is None else target
    latents = model.encode(x)
    recon = model.decode(latents, like=x if x.shape == target.shape else None)
    active = model.activation.active(latents)
    found = {
        "n_rows": len(x),
        "n_latents": latents.shape[1],
        "mse": metrics.mse(target, recon),
        "fvu": metrics.fvu(target.flatten(1), recon.flatten(1)),
        "fvu_columns": np.mean(
            [min(1, metrics.fvu(*pair)) for pair in zip(columns(target), columns(recon), strict=True)]
        ),
        "explained_variance": metrics.explained_variance(target.flatten(1), recon.flatten(1)),
        "cosine": metrics.cosine(target, recon),
        "l2_ratio": metrics.l2_ratio(target, recon),
        "relative_bias": metrics.relative_bias(target, recon),
        "l0": metrics.l0(active),
        "dead_fraction": metrics.dead_fraction(active),
        "dense_fraction": metrics.dense_fraction(active),
        "mean_activation": metrics.mean_activation(latents),
    }
    return found | limits_in_memory(*(part.flatten(1).double().numpy() for part in (target, recon, active)), found)


def limits_in_memory(x, recon, active, found):
    """As docs/metrics.md says, row by row."""
    n, size = len(x), 1
    while n > 64 * size:
        size *= 2
    length, recon_length = np.linalg.norm(x, axis=1), np.linalg.norm(recon, axis=1)
    error, deviation = ((recon - x) ** 2).sum(1), ((x - x.mean(0)) ** 2).sum(1)
    ratios = {
        "mse": (error, np.full(n, x.shape[1])),
        "fvu": (error, deviation),
        "explained_variance": (deviation - error, deviation),
        "cosine": ((x * recon).sum(1) / length / np.where(recon_length, recon_length, 1), np.ones(n)),
        "l2_ratio": (recon_length / length, np.ones(n)),
        "relative_bias": (recon_length**2, (x * recon).sum(1)),
        "l0": (active.sum(1), np.ones(n)),
    }
    possible = {"mse": (0, np.inf), "fvu": (0, np.inf), "explained_variance": (-np.inf, 1), "cosine": (-1, 1),
                "l2_ratio": (0, np.inf), "relative_bias": (-np.inf, np.inf), "l0": (0, active.shape[1])}  # fmt: skip
    given = {}
    for name, (above, below) in ratios.items():
        low, high = possible[name]
        if n > 1:
            moved = [(above - found[name] * below)[i : i + size].sum() for i in range(0, n, size)]
            error_of = np.sqrt(len(moved) / (len(moved) - 1) * np.square(moved).sum()) / below.sum()
            half = scipy.stats.t.ppf(0.975, len(moved) - 1) * abs(error_of)
            low, high = max(low, found[name] - half), min(high, found[name] + half)
        given |= {f"{name}_low": low, f"{name}_high": high}
    return given


@pytest.mark.parametrize("batch_size", [1, 7, 64, 203, 4096])
@pytest.mark.parametrize("activation", OURS)
def test_streamed_as_in_memory(activation, batch_size):
    x = data()
    model = make(activation)
    assert evaluate(model, ff.ArraySource(x), batch_size=batch_size) == pytest.approx(in_memory(model, x), rel=1e-9)


@pytest.mark.parametrize("preprocess", [None, "row_mean", "whiten", "center", ["row_mean", "standardize"]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_in_data_space(preprocess, dtype):
    x = data(dtype=dtype)
    model = make("relu", preprocess)
    got = evaluate(model, ff.ArraySource(x), batch_size=50)
    rel = 1e-9 if dtype == torch.float64 else 1e-5  # decode() of a few rows may round unlike that of many
    assert got == pytest.approx(in_memory(model, x), rel=rel)
    recon = model.reconstruct(x).double().numpy()
    clean = x.double().numpy()
    by_hand = ((recon - clean) ** 2).sum() / ((clean - clean.mean(0)) ** 2).sum()
    assert got["fvu"] == pytest.approx(by_hand, rel=rel)


@pytest.mark.parametrize("batch_size", [3, 203])
def test_pairs_are_judged_by_their_targets(batch_size):
    x, y = data(), data(width=4, seed=1).view(-1, 2, 2)
    model = make("relu", d_out=(2, 2))
    got = evaluate(model, ff.ArraySource(x, y), batch_size=batch_size)
    assert got == pytest.approx(in_memory(model, x, y), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch_size", [7, 4096])
def test_a_mean_predictor_explains_exactly_nothing(batch_size, dtype):
    x = torch.tensor([[1.0, -20.0], [3.0, 40.0]]).repeat(64, 1).to(dtype)  # means 2 and 10 without rounding
    model = ff.Autoencoder(2, 4)
    with torch.no_grad():
        model.decoder.W_dec.zero_()
        model.decoder.b_dec.copy_(torch.tensor([2.0, 10.0]))
    got = evaluate(model, ff.ArraySource(x), batch_size=batch_size)
    assert got["fvu"] == pytest.approx(1, abs=1e-14)
    assert got["explained_variance"] == pytest.approx(0, abs=1e-14)
    if batch_size == 4096:
        assert (got["fvu"], got["explained_variance"]) == (1.0, 0.0)


@pytest.mark.parametrize("offset", [0, 100, 1e4], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_streamed_as_in_memory_whatever_the_dtype(dtype, offset):
    """300 rows, of which 8 to a block: blocks that end within a batch, batches that end within a block."""
    x = (data(300) - 100 + offset).to(dtype)
    model = make("relu", None, network=ff.Linear(tied=True))
    assert evaluate(model, ff.ArraySource(x)) == pytest.approx(in_memory(model, x), rel=1e-6)
    for batch_size in (1, 17, 256):
        rel = 1e-6 if dtype in (torch.float32, torch.float64) else 1e-4  # decode() itself rounds by the batch
        assert evaluate(model, ff.ArraySource(x), batch_size=batch_size) == pytest.approx(
            evaluate(model, ff.ArraySource(x)), rel=rel
        )


def test_a_huge_mean_takes_no_digits_from_the_limits():
    """Squares of 1e9 leave none of a spread of 1 in float64."""
    x = data(500) - 100
    near, far = (Evaluation(make("relu", None)) for _ in range(2))
    for evaluation, offset in ((near, 0), (far, 2.0**30)):
        recon = 0.7 * x + offset
        evaluation.model.decode = lambda latents, like=None, recon=recon: recon
        evaluation.update(x + offset, x + offset)
    near, far = near.result(), far.result()
    for name in ("mse", "fvu", "explained_variance"):
        for key in (name, f"{name}_low", f"{name}_high"):
            assert far[key] == pytest.approx(near[key], rel=1e-6)


def test_a_perfect_model_explains_everything():
    x = data().abs()
    model = ff.Autoencoder(6, 6, "relu", network=ff.Linear(unit_norm=False), dtype=torch.float64)
    with torch.no_grad():
        for weight in (model.encoder.W_enc, model.decoder.W_dec):
            weight.copy_(torch.eye(6))
    got = evaluate(model, ff.ArraySource(x))
    assert (got["mse"], got["fvu"], got["explained_variance"]) == (0, 0, 1)


def test_one_row_and_constant_data_have_no_variance():
    x = data(1)
    got = evaluate(make("relu"), ff.ArraySource(x))
    assert got["fvu"] == 1
    assert math.isfinite(got["mse"])


@pytest.mark.parametrize(
    "value",
    [2.5, 0.1],  # of three 0.1 the mean is not quite 0.1
)
@pytest.mark.parametrize("n", [3, 7, 11])
def test_constant_data_have_no_variance(value, n):
    x = torch.full((n, 6), value, dtype=torch.float64)
    assert evaluate(make("relu"), ff.ArraySource(x))["fvu"] == 1
    assert metrics.fvu(x, torch.zeros_like(x)) == 1


def test_fvu_columns_gives_each_column_the_same_say():
    """One column in millions, reproduced; one in millionths, not at all; one constant."""
    evaluation = Evaluation(make("relu"))
    x = data() * torch.tensor([1e6, 1e-6, 1, 1, 1, 0], dtype=torch.float64)
    far_off = torch.cat([x[:, :1], (x[:, 1:].mean(0) + torch.tensor([9e6, 0, 0, 0, 0])).expand(len(x), 5)], 1)
    evaluation.model.decode = lambda latents, like=None: far_off
    evaluation.update(x, x)
    got = evaluation.result()
    assert got["fvu_columns"] == pytest.approx(4 / 5)


def test_sparsity_by_hand():
    """k of the latents fire on every row; the one with a bias of minus a million never does."""
    x = data(64)
    model = make(ff.TopK(k=2))
    evaluation = Evaluation.over(model, ff.ArraySource(x), batch_size=10)
    latents = model.encode(x)
    assert evaluation.result()["l0"] == float((latents != 0).sum()) / 64
    assert evaluation.result()["dead_fraction"] == int(((latents != 0).sum(0) == 0).sum()) / 10
    assert torch.equal(evaluation.density, metrics.density(latents != 0))
    assert torch.equal(evaluation.largest, latents.amax(0).double())
    assert evaluation.density[3] == 0


def test_a_logistic_unit_fires_above_one_half():
    model, x = make("sigmoid"), data()
    assert evaluate(model, ff.ArraySource(x))["l0"] == float((model.encode(x) > 0.5).sum()) / len(x)


# ------------------------------------------------------------------------------------------ how many rows


class Endless:
    """A source without a last row. ``asked`` counts the batches that were taken."""

    n_rows = None
    row_shape = target_shape = (6,)
    layout = ff.Layout()
    fingerprint = "endless"

    def __init__(self):
        self.asked = 0

    def batches(self, batch_size, *, seed=0, epoch=0, start=0, shuffle=True):
        while True:
            x = data(batch_size, seed=self.asked)
            self.asked += 1
            yield Batch(x, x, torch.arange(batch_size))


def test_endless():
    with pytest.raises(ValueError, match=r"endless.*max_rows=100_000"):
        evaluate(make(), Endless())
    source = Endless()
    assert evaluate(make(), source, batch_size=10, max_rows=30)["n_rows"] == 30
    assert source.asked == 3


@pytest.mark.parametrize("batch_size", [1, 8, 10, 64, 4096])
@pytest.mark.parametrize("max_rows", [1, 10, 64, 203, 9999])
def test_no_more_rows_than_asked_for(max_rows, batch_size):
    x, model = data(), make("relu")
    got = evaluate(model, ff.ArraySource(x), batch_size=batch_size, max_rows=max_rows)
    assert got["n_rows"] == min(max_rows, 203)
    assert got == pytest.approx(in_memory(model, x[:max_rows]), rel=1e-9)


@pytest.mark.parametrize("max_rows", [0, -1])
def test_max_rows_of_nothing_is_refused(max_rows):
    with pytest.raises(ValueError, match=f"max_rows.*{max_rows}"):
        evaluate(make(), ff.ArraySource(data()), max_rows=max_rows)


def test_a_source_without_rows_is_refused():
    class Empty(Endless):
        n_rows = 0

        def batches(self, batch_size, **settings):
            return iter(())

    with pytest.raises(ValueError, match="no rows"):
        evaluate(make(), Empty())


def test_rows_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(rows, 6\).*\(203, 4\)"):
        evaluate(make(), ff.ArraySource(data(width=4)))


def test_targets_of_another_shape_are_refused():
    """(B, 1) would broadcast against (B, 6) and give a number that means nothing."""
    with pytest.raises(ValueError, match=r"\(6,\).*\(1,\)"):
        evaluate(make(), ff.ArraySource(data(), data()[:, :1]))


def test_plain_rows_are_refused_by_a_model_with_other_targets():
    with pytest.raises(ValueError, match=r"\(1,\).*\(6,\)"):
        evaluate(ff.Autoencoder(6, 10, d_out=1), ff.ArraySource(data()))


def test_rows_that_are_not_finite_are_named_or_left_out():
    x = data()
    x[17, 2] = torch.nan
    with pytest.raises(ValueError, match="first in row 17"):
        evaluate(make("relu"), ff.ArraySource(x))
    left_out = Evaluation.over(make("relu"), ff.ArraySource(x), skip_nonfinite=True).result()
    assert left_out["n_rows"] == len(x) - 1
    x[:50] = torch.nan  # a whole batch of them, and a few of the next
    rest = Evaluation.over(make("relu"), ff.ArraySource(x), batch_size=40, skip_nonfinite=True)
    assert rest.n_rows == len(x) - 50
    assert all(math.isfinite(v) for v in left_out.values())
    assert math.isnan(metrics.fvu(x, data()))
    assert math.isnan(metrics.fvu(x[:, 2:3], data()[:, 2:3])), "no other column to give it a variance"
    assert math.isnan(metrics.fvu(data(), x))


@pytest.mark.parametrize("metric", [metrics.l0, metrics.density, metrics.dead_fraction])
def test_latents_are_not_taken_for_which_fire(metric):
    with pytest.raises((TypeError, ValueError), match="bool"):
        metric(data(5, 3))


# ------------------------------------------------------------------------------------------ limits


def covered(names, n_sets, n_rows, draw):
    """Share of data sets whose limits hold the truth, which is that of all of them together."""
    model = make("relu", None, network=ff.Linear(tied=True))
    sets = [draw(n_rows, seed) for seed in range(n_sets)]
    truth = evaluate(model, ff.ArraySource(torch.cat(sets)))
    found = [evaluate(model, ff.ArraySource(x)) for x in sets]
    return {n: np.mean([f[f"{n}_low"] <= truth[n] <= f[f"{n}_high"] for f in found]) for n in names}


def independent(n_rows, seed):
    return torch.randn(n_rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 0.3


@pytest.mark.parametrize("n_rows", [40, 300])
def test_limits_hold_the_truth_19_times_of_20(n_rows):
    for name, share in covered(LIMITED, 400, n_rows, independent).items():
        assert 0.90 <= share <= 0.99, name


def test_neighbours_that_are_alike_do_not_make_it_sure():
    """Of 25 rows that are nearly the same, 24 say nothing new. Taken for new, they miss the truth 2 times of 3."""

    def texts(n_rows, seed):
        rows = independent(n_rows // 25, seed).repeat_interleave(25, 0)
        return rows + 0.05 * independent(n_rows, seed + 10_000)

    for name, share in covered(LIMITED, 200, 4000, texts).items():
        assert 0.88 <= share <= 0.99, name


def test_limits_close_in_on_the_number():
    few, many = (evaluate(make("relu"), ff.ArraySource(data(n))) for n in (200, 20_000))
    for name in LIMITED:
        assert many[f"{name}_low"] <= many[name] <= many[f"{name}_high"]
        width = [found[f"{name}_high"] - found[f"{name}_low"] for found in (few, many)]
        assert width[0] / width[1] == pytest.approx(10, rel=0.5)


def test_one_row_says_nothing_of_others():
    got = evaluate(make("relu"), ff.ArraySource(data(1)))
    assert (got["fvu_low"], got["fvu_high"]) == (got["mse_low"], got["mse_high"]) == (0, math.inf)
    assert (got["explained_variance_low"], got["explained_variance_high"]) == (-math.inf, 1)
    assert (got["l0_low"], got["l0_high"]) == (0, 10)
    assert not any(math.isnan(v) for v in got.values())


def test_data_without_variance_say_nothing_of_it():
    got = evaluate(make("relu"), ff.ArraySource(torch.full((3, 6), 0.1, dtype=torch.float64)))
    assert (got["fvu_low"], got["fvu_high"]) == (0, math.inf)
    assert got["mse_low"] == pytest.approx(got["mse"]) == pytest.approx(got["mse_high"])


def test_what_does_not_vary_is_sure():
    """k latents fire whatever the row is; and the mean of the very rows explains nothing of them."""
    x = torch.tensor([[1.0, -20.0], [3.0, 40.0]], dtype=torch.float64).repeat(64, 1)
    model = ff.Autoencoder(2, 8, ff.TopK(k=3), dtype=torch.float64)
    with torch.no_grad():
        model.decoder.W_dec.zero_()
        model.decoder.b_dec.copy_(torch.tensor([2.0, 10.0]))
        model.encoder.b_enc.fill_(1e3)
    got = evaluate(model, ff.ArraySource(x))
    assert got["l0_low"] == got["l0"] == got["l0_high"] == 3
    assert (got["explained_variance_low"], got["explained_variance"], got["explained_variance_high"]) == (0, 0, 0)


def test_rows_of_zeros_give_no_direction():
    x = data(30) - 100
    x[::3] = 0
    model = make("relu", None)
    got = evaluate(model, ff.ArraySource(x), batch_size=7)
    recon = model.reconstruct(x)
    for name in ("cosine", "l2_ratio", "relative_bias"):
        assert got[name] == pytest.approx(getattr(metrics, name)(x, recon))
    nothing = evaluate(model, ff.ArraySource(torch.zeros(9, 6, dtype=torch.float64)))
    assert (nothing["cosine_low"], nothing["cosine_high"], nothing["l2_ratio_low"]) == (-1, 1, 0)
    assert not any(math.isnan(v) for v in nothing.values())


# ------------------------------------------------------------------------------------------ feature maps


class ConvForEvaluation(Network):
    output = "identity"

    def build(self, sizes, *, unit_norm, generator):
        encoder = nn.utils.skip_init(nn.Conv2d, 1, sizes.n_latents, 3, padding=1)
        decoder = _ConvDecoder(sizes.n_latents)
        for layer in (encoder, decoder.conv):
            nn.init.normal_(layer.weight, std=0.3, generator=generator)
            nn.init.zeros_(layer.bias)
        return Pair(encoder, decoder, (sizes.n_latents, *sizes.input_shape[1:]))


class _ConvDecoder(Decoder):
    def __init__(self, maps):
        super().__init__()
        self.conv = nn.utils.skip_init(nn.ConvTranspose2d, maps, 1, 3, padding=1)

    def forward(self, latents):
        return self.conv(latents)


@pytest.mark.parametrize("batch_size", [5, 40])
def test_a_feature_map_is_one_latent(batch_size):
    x = data(40, 30).view(40, 1, 6, 5) - 100
    model = ff.Autoencoder((1, 6, 5), 4, "relu", network=ConvForEvaluation())
    with torch.no_grad():
        model.encoder.bias[2] = -1e6
    evaluation = Evaluation.over(model, ff.ArraySource(x), batch_size=batch_size)
    got, latents = evaluation.result(), model.encode(x)
    assert latents.shape == (40, 4, 6, 5)
    assert got == pytest.approx(in_memory(model, x), rel=1e-9)
    assert got["n_latents"] == 4
    assert got["dead_fraction"] == 0.25
    assert torch.equal(evaluation.density, metrics.density(latents != 0))
    assert torch.equal(evaluation.largest, latents.amax((0, 2, 3)).double())


# ------------------------------------------------------------------------------------------ the rest


def test_nothing_is_changed():
    x = data()
    model = make("topk")
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    kept = x.clone()
    evaluate(model, ff.ArraySource(x))
    assert torch.equal(x, kept)
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_plain_numbers():
    got = evaluate(make(), ff.ArraySource(data()))
    assert list(got) == [
        *("n_rows", "n_latents", "mse", "fvu", "fvu_columns", "explained_variance"),
        *("cosine", "l2_ratio", "relative_bias"),
        *("l0", "dead_fraction", "dense_fraction", "mean_activation"),
        *(f"{name}_{end}" for name in LIMITED for end in ("low", "high")),
    ]
    assert {type(v) for v in got.values()} <= {int, float}


def test_a_large_mean_does_not_hide_the_variance():
    """In float32 the squares of 10,000 leave no digit for a spread of 1."""
    x = (torch.randn(500, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e4).float()
    model = ff.Autoencoder(6, 10, "relu")
    with torch.no_grad():
        model.decoder.W_dec.zero_()
        model.decoder.b_dec.fill_(1e4)
    exact = x.double()
    expected = float((exact - 1e4).square().sum() / (exact - exact.mean(0)).square().sum())
    assert evaluate(model, ff.ArraySource(x), batch_size=64)["fvu"] == pytest.approx(expected, rel=1e-9)


def test_the_function_is_there_whatever_was_imported_first():
    """A module called evaluate would take the function's place as soon as anything imported it."""
    code = (
        "import fewfire as ff; ff.Trainer, ff.plot; import fewfire.evaluation; ff.evaluate.__call__; print(ff.evaluate)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("<function evaluate")
