"""Data space to model space and back: exact where it claims to be, streaming, and loadable from a file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewfire.preprocess import Chain, Preprocess, make_preprocess, whiten_1_over_f

EVERY = sorted(Preprocess.registry)
LEARNING = sorted(set(EVERY) - {"row_mean"})


def make(name: str) -> Preprocess:
    """A member with settings that lose nothing: the clip lies outside the data."""
    settings = {"clip_scale": {"n_sigma": 1e3}, "chain": {"steps": ["row_mean", "standardize", "minmax"]}}
    return Preprocess.from_config({"name": name, **settings.get(name, {})})


@pytest.fixture
def x() -> torch.Tensor:
    """(300, 2, 3) correlated columns of very different sizes."""
    draw = torch.randn(300, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixed = draw @ torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(6, 6) + 0.3 * draw
    scale = torch.tensor([1.0, 10, 0.1, 3, 50, 1], dtype=torch.float64)
    return (mixed * scale + 5).reshape(300, 2, 3)


def once(*blocks: torch.Tensor):
    return lambda: iter(blocks)


# ---------------------------------------------------------------------------------------------- every member


@pytest.mark.parametrize("name", EVERY)
def test_inverse_undoes_forward(name, x):
    prep = make(name).fit(once(x))
    y = prep(x)
    assert y.shape == x.shape
    assert (y - x).abs().max() > 0.1, "forward did something"
    torch.testing.assert_close(prep.inverse(y, like=x), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", LEARNING)
def test_streaming_fit_is_the_fit_on_one_block(name, x):
    whole, streamed = make(name).fit(once(x)), make(name).fit(once(x[:1], x[1:120], x[:0], x[120:]))
    assert whole.state_dict().keys() == streamed.state_dict().keys() != set()
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(streamed.state_dict()[key], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LEARNING)
def test_a_fresh_instance_is_filled_from_a_state_dict(name, x):
    prep = make(name).fit(once(x))
    saved = {key: value.clone() for key, value in prep.state_dict().items()}
    fresh = Preprocess.from_config(prep.config())
    assert not fresh.fitted
    assert not fresh.state_dict()
    fresh.load_state_dict(saved)
    assert fresh.fitted
    assert torch.equal(fresh(x), prep(x))


@pytest.mark.parametrize("name", LEARNING)
def test_half_a_state_dict_is_refused(name, x):
    saved = make(name).fit(once(x)).state_dict()
    saved.popitem()
    with pytest.raises(RuntimeError, match="Missing key"):
        make(name).load_state_dict(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", EVERY)
def test_dtype_is_kept_and_fitted_values_are_never_rounded(name, dtype, x):
    prep = make(name).fit(once(x))
    exact = prep(x)
    prep.to(dtype)
    assert all(value.dtype == torch.float64 for value in prep.state_dict().values())
    y = prep(x.to(dtype))
    assert y.dtype == dtype
    assert prep.inverse(y).dtype == dtype
    assert torch.equal(prep(x), exact)
    torch.testing.assert_close(y.double(), exact, rtol=0.05, atol=0.2 if dtype.itemsize == 2 else 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e9, -3e-7])
@pytest.mark.parametrize("name", LEARNING)
def test_a_constant_column_stays_finite_and_small(name, value, dtype, x):
    x = x.to(dtype)
    x[:, 1, 2] = value
    # Blocks of unequal length leave rounding in the running mean, which must not be taken for spread.
    prep = Preprocess.from_config(name if name != "chain" else {"name": name, "steps": ["standardize"]})
    y = prep.fit(once(*x.split(7)))(x)
    assert y.isfinite().all()
    if name in ("standardize", "minmax", "center", "whiten", "chain"):
        assert y[:, 1, 2].abs().max() < 1e-5


@pytest.mark.parametrize("name", LEARNING)
def test_data_without_any_spread_stay_finite(name):
    x = torch.full((1000, 4), 0.1, dtype=torch.float64)
    prep = make(name).fit(once(*x.split(33)))
    assert (prep(x) - prep(x)[:1]).abs().max() < 1e-12
    torch.testing.assert_close(prep.inverse(prep(x), like=x), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["standardize", "center", "minmax", "whiten"])
def test_rounding_is_not_spread(name):
    x = torch.full((1000, 4), 1e9 / 3, dtype=torch.float64)
    x[::2] += torch.finfo(torch.float64).eps * x[0]  # every other row is one rounding step away
    prep = make(name).fit(once(*x.split(33)))
    torch.testing.assert_close(prep(x + 1) - prep(x), torch.ones_like(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_config_round_trips_as_plain_data(name):
    prep = make(name)
    again = Preprocess.from_config(prep.config())
    assert type(again) is type(prep)
    assert again.config() == prep.config()
    assert repr(prep).startswith(type(prep).__name__)


@pytest.mark.parametrize("name", EVERY)
def test_global_random_state_is_untouched(name, x):
    before = torch.get_rng_state()
    make(name).fit(once(x))(x)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------- what each one is


def test_standardize_gives_mean_0_and_deviation_1(x):
    y = make("standardize").fit(once(x))(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(2, 3, dtype=torch.float64))


def test_center_keeps_relative_scales_and_gives_rows_unit_mean_square(x):
    y = make("center").fit(once(x))(x)
    assert y.square().mean().item() == pytest.approx(1)
    ratio = y.std(0) / x.std(0)
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio))


def test_minmax_reaches_both_ends_and_never_passes_them_in_float32(x):
    x[:, 0, 0] += 1e6  # here float32 has 4 digits left for the spread
    prep = Preprocess.from_config({"name": "minmax", "low": -1.0, "high": 2.0}).fit(once(x))
    y = prep(x.float())
    assert torch.equal(y.amin(0), torch.full((2, 3), -1.0))
    assert torch.equal(y.amax(0), torch.full((2, 3), 2.0))
    x[:, 1, 1] = 7
    assert (prep.fit(once(x))(x)[:, 1, 1] == -1).all(), "a constant column becomes low"


def test_minmax_over_all_values_keeps_the_order_between_columns(x):
    y = Preprocess.from_config({"name": "minmax", "per_column": False}).fit(once(x))(x)
    torch.testing.assert_close(y, (x - x.min()) / (x.max() - x.min()))


def test_row_mean_is_restored_only_from_like(x):
    prep = make("row_mean")
    y = prep(x)
    torch.testing.assert_close(y, x - x.mean((1, 2), keepdim=True))
    torch.testing.assert_close(prep.inverse(y), y)
    torch.testing.assert_close(prep.inverse(y, like=x), x)
    with pytest.raises(ValueError, match="like"):
        prep.inverse(y, like=x[:1])


def test_clip_scale_is_the_ufldl_normalisation(x):
    rows = (x - x.mean((1, 2), keepdim=True)).numpy()
    limit = 1.5 * rows.std()
    expected = (np.clip(rows, -limit, limit) / limit + 1) * 0.4 + 0.1
    prep = make_preprocess(["row_mean", {"name": "clip_scale", "n_sigma": 1.5}]).fit(once(x))
    y = prep(x)
    torch.testing.assert_close(y, torch.from_numpy(expected))
    assert y.min() == pytest.approx(0.1), "something was clipped"
    inside = (y > 0.1 + 1e-9) & (y < 0.9 - 1e-9)
    torch.testing.assert_close(prep.inverse(y, like=x)[inside], x[inside])


def test_whiten_decorrelates_and_does_not_care_about_the_unit(x):
    prep = Preprocess.from_config({"name": "whiten", "eps": 1e-9}).fit(once(x))
    y = prep(x).flatten(1)
    torch.testing.assert_close(y.T.cov(correction=0), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(prep.whitening, prep.whitening.T)
    assert torch.linalg.eigvalsh(prep.whitening).min() > 0, "zero-phase: symmetric and positive"
    default = make("whiten")
    torch.testing.assert_close(default.fit(once(x))(x), default.fit(once(x * 1e3))(x * 1e3))


def test_whiten_leaves_faint_directions_faint():
    x = torch.randn(2000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[:, 1] *= 1e-4
    y = make("whiten").fit(once(x))(x)
    assert y.std(0)[0] == pytest.approx(1, abs=0.02)
    assert y.std(0)[1] < 0.01


def test_chain_fits_each_step_on_what_the_earlier_ones_give(x):
    chain = Chain(["row_mean", "standardize"]).fit(once(x))
    rows = make("row_mean")(x)
    torch.testing.assert_close(chain(x), make("standardize").fit(once(rows))(rows))


def test_chain_hands_each_step_its_own_like(x):
    chain = Chain(["standardize", "row_mean"]).fit(once(x))
    torch.testing.assert_close(chain.inverse(chain(x), like=x), x)
    assert not torch.allclose(chain.inverse(chain(x)), x)


# ------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize("name", LEARNING)
def test_unfitted_use_is_refused(name, x):
    for use in (make(name), make(name).inverse):
        with pytest.raises(ValueError, match="not fitted"):
            use(x)


@pytest.mark.parametrize("name", ["standardize", "center", "minmax", "whiten"])
def test_rows_of_another_shape_are_refused_not_broadcast(name, x):
    prep = make(name).fit(once(x))
    with pytest.raises(ValueError, match=r"fitted on rows of shape \(2, 3\)"):
        prep(x[:, :1])
    with pytest.raises(ValueError, match="fitted on rows"):
        prep.inverse(x.flatten(1))


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        ([], ValueError, "no rows"),
        ([torch.zeros(0, 3)], ValueError, "no rows"),
        ([torch.zeros(3)], ValueError, r"row shape"),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], ValueError, r"rows of shape \(3,\)"),
        ([torch.zeros(2, 3, dtype=torch.uint8)], TypeError, "floating-point"),
        ([np.zeros((2, 3))], TypeError, "floating-point"),
        ([torch.zeros(5, 3), torch.tensor([[0, 0, 0.0], [0, float("nan"), 0]])], ValueError, "row 6 "),
        ([torch.tensor([[0, float("inf")]])], ValueError, "row 0 "),
    ],
)
@pytest.mark.parametrize("name", LEARNING)
def test_a_bad_stream_is_refused_and_changes_nothing(name, blocks, error, message):
    prep = make(name)
    with pytest.raises(error, match=message):
        prep.fit(once(*blocks))
    assert not prep.fitted


@pytest.mark.parametrize("name", ["standardize", "center", "clip_scale", "whiten"])
def test_values_too_large_to_square_are_refused(name):
    x = torch.tensor([[1e200, 0], [-1e200, 1]], dtype=torch.float64)
    with pytest.raises(ValueError, match="overflow"):
        make(name).fit(once(x))


def test_integers_and_single_rows_are_refused():
    with pytest.raises(TypeError, match=r"\.float\(\)"):
        make("row_mean")(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x\[None\]"):
        make("row_mean")(torch.zeros(3))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("standardise", ValueError, "choose from: .*standardize"),
        ({"per_column": True}, ValueError, "choose from"),
        ({"name": "minmax", "clip": True}, ValueError, "no setting 'clip'"),
        ({"name": "minmax", "low": 1.0}, ValueError, "low below high"),
        ({"name": "clip_scale", "n_sigma": 0}, ValueError, "n_sigma"),
        ({"name": "whiten", "eps": 0}, ValueError, "eps"),
        ({"name": "chain", "steps": []}, ValueError, "at least one"),
        ({"name": "chain", "steps": "row_mean"}, TypeError, "list"),
        (["row_mean", None], ValueError, "no empty"),
        (3, TypeError, "not int"),
    ],
)
def test_a_bad_spec_is_refused(spec, error, message):
    with pytest.raises(error, match=message):
        make_preprocess(spec)


def test_make_preprocess_takes_every_spelling():
    assert make_preprocess(None) is None
    assert make_preprocess([]) is None
    member = make("minmax")
    assert make_preprocess(member) is member
    assert make_preprocess("whiten").config() == {"name": "whiten", "eps": 1e-2}
    chain = make_preprocess(["row_mean", {"name": "minmax", "low": -1.0}, member])
    assert [step["name"] for step in chain.config()["steps"]] == ["row_mean", "minmax", "minmax"]


# --------------------------------------------------------------------------------------------- 1/f whitening


def test_whitening_a_1_over_f_picture_leaves_the_filter_s_own_roll_off():
    h, w = 128, 192
    f = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w))
    phase = np.fft.fft2(np.random.default_rng(0).standard_normal((h, w)))
    picture = np.fft.ifft2(phase / np.abs(phase) / np.maximum(f, 1e-9) * (f > 0)).real
    white = whiten_1_over_f(picture * 40 + 100)
    assert white.mean() == pytest.approx(0, abs=1e-12)
    assert white.var() == pytest.approx(1)
    amplitude = np.abs(np.fft.fft2(white))
    expected = np.exp(-((f / 0.4) ** 4)) * (f > 0)
    np.testing.assert_allclose(amplitude / amplitude.max(), expected / expected.max(), atol=1e-6)


def test_whitening_a_photograph_flattens_its_mid_frequencies():
    from sklearn.datasets import load_sample_image

    photograph = load_sample_image("china.jpg").mean(2)
    f = np.hypot(np.fft.fftfreq(427)[:, None], np.fft.fftfreq(640))
    window = np.hanning(427)[:, None] * np.hanning(640)

    def steepness(image: np.ndarray) -> float:
        """How many times stronger the lower mid frequencies are than the upper ones."""
        amplitude = np.abs(np.fft.fft2((image - image.mean()) * window))
        return amplitude[(f > 0.02) & (f < 0.06)].mean() / amplitude[(f > 0.2) & (f < 0.3)].mean()

    assert steepness(photograph) > 4
    assert 0.7 < steepness(whiten_1_over_f(photograph)) < 1.4


def test_a_picture_without_contrast_becomes_zeros():
    assert (whiten_1_over_f(np.full((16, 16), 0.1)) == 0).all()


@pytest.mark.parametrize(
    "image",
    [np.zeros(4), np.zeros((4, 4, 3)), np.zeros((0, 4)), np.full((4, 4), np.nan), np.full((4, 4), 1j)],
)
def test_what_is_not_a_grey_picture_is_refused(image):
    with pytest.raises(ValueError, match="expected"):
        whiten_1_over_f(image)
