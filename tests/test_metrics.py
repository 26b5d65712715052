import numpy as np
import pytest
import torch

from fewfire import metrics
from fewfire.metrics.intervals import Blocks


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(500, 7, generator=generator, dtype=torch.float64).to(dtype) * 3 + 5


def test_by_hand():
    x = torch.tensor([[0.0, 2.0], [2.0, 6.0]])
    recon = torch.tensor([[0.0, 3.0], [1.0, 6.0]])
    assert metrics.mse(x, recon) == pytest.approx(0.5)
    # deviations from the column means (1, 4): 1 + 1 + 4 + 4
    assert metrics.fvu(x, recon) == pytest.approx(2 / 10)
    assert metrics.explained_variance(x, recon) == pytest.approx(0.8)


def test_a_mean_predictor_explains_exactly_nothing():
    x = data()
    assert metrics.explained_variance(x, x.mean(0).expand_as(x)) == pytest.approx(0, abs=1e-14)


def test_variance_is_per_column():
    """A predictor of the grand mean is worse than one of the column means (the error several tools made for months)."""
    x = data() + torch.arange(7) * 100
    assert metrics.explained_variance(x, x.mean().expand_as(x)) < -10


@pytest.mark.parametrize(("recon", "expected"), [(1.0, 1.0), (2.0, 0.0)])
def test_constant_data(recon, expected):
    x = torch.ones(10, 3)
    assert metrics.explained_variance(x, torch.full_like(x, recon)) == expected


def test_float16_does_not_overflow():
    x = torch.full((4, 1024), 1000.0, dtype=torch.float16) * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]).half()
    assert metrics.mse(x, torch.zeros_like(x)) == pytest.approx(1e6)


def test_moments_stream_as_they_would_in_memory():
    x = data() + 1e8  # E[x^2] - E[x]^2 would keep no digit here
    streamed = metrics.Moments()
    for block in x.split([1, 99, 0, 400]):
        streamed.update(block)
    assert torch.allclose(streamed.mean, x.mean(0), rtol=1e-15)
    assert torch.allclose(streamed.variance, x.var(0, correction=0), rtol=1e-6)


def test_sparsity_by_hand():
    active = torch.tensor([[True, False, False], [True, True, False]])
    assert metrics.l0(active) == 1.5
    assert metrics.density(active).tolist() == [1.0, 0.5, 0.0]
    assert metrics.dead_fraction(active) == pytest.approx(1 / 3)


def test_a_feature_map_fires_when_any_position_does():
    active = torch.zeros(4, 2, 3, 3, dtype=torch.bool)
    active[0, 1, 2, 2] = active[0, 1, 0, 0] = True
    assert metrics.density(active).tolist() == [0.0, 0.25]
    assert metrics.l0(active) == 0.5


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape.*\(3, 2\).*\(2, 3\)"):
        metrics.mse(torch.zeros(3, 2), torch.zeros(2, 3))


# ------------------------------------------------------------------------------------------- pictures


def pictures(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psnr_is_averaged_over_rows():
    x = torch.zeros(2, 3, 3)
    recon = torch.stack([torch.full((3, 3), 0.1), torch.full((3, 3), 0.01)])
    assert metrics.psnr(x, recon) == pytest.approx((20 + 40) / 2)
    assert metrics.psnr(x * 255, recon * 255, data_range=255) == pytest.approx(30)
    assert metrics.psnr(x, x) == float("inf")


def slow_ssim(a, b, data_range):
    """Place by place, as in the paper."""
    i = np.arange(11) - 5
    window = np.exp(-(i[:, None] ** 2 + i[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2, values = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2, []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return np.mean(values)


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_ssim_is_the_papers(data_range):
    x, noise = pictures(3, 14, 17) * data_range, pictures(3, 14, 17, seed=1) * data_range
    recon = 0.7 * x + 0.3 * noise
    expected = np.mean([slow_ssim(a, b, data_range) for a, b in zip(x.numpy(), recon.numpy(), strict=True)])
    assert metrics.ssim(x, recon, data_range) == pytest.approx(expected, rel=1e-10)
    assert metrics.ssim(x[:, None], recon[:, None], data_range) == pytest.approx(expected, rel=1e-10)
    assert metrics.ssim(x, x, data_range) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 20, 10), (3, 400)])
def test_ssim_needs_room_for_its_window(shape):
    with pytest.raises(ValueError, match="at least 11 x 11"):
        metrics.ssim(torch.zeros(shape), torch.zeros(shape))


# ------------------------------------------------------------------------------------------- directions and lengths


def test_directions_and_lengths_by_hand():
    x = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0]])
    recon = torch.tensor([[6.0, 8.0], [0.0, 5.0], [0.0, 0.0]])
    assert metrics.cosine(x, recon) == pytest.approx((1 + 0 + 0) / 3)
    assert metrics.l2_ratio(x, recon) == metrics.shrinkage(x, recon) == pytest.approx((2 + 5 + 0) / 3)
    assert metrics.relative_bias(x, recon) == pytest.approx((100 + 25) / 50)


def test_relative_bias_is_the_best_divisor():
    x = data()
    recon = 0.6 * x + torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    gamma = metrics.relative_bias(x, recon)
    error = {divisor: metrics.mse(x, recon / divisor) for divisor in (0.999 * gamma, gamma, 1.001 * gamma)}
    assert min(error, key=error.get) == gamma
    assert metrics.relative_bias(x, 0.6 * x) == pytest.approx(0.6)


def test_rows_of_zeros_have_no_direction():
    x, recon = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert (metrics.cosine(x, recon), metrics.l2_ratio(x, recon)) == (1, 0.5)
    nothing = torch.zeros(3, 2)
    assert (metrics.cosine(nothing, nothing), metrics.l2_ratio(nothing, nothing)) == (1, 1)
    assert (metrics.cosine(nothing, nothing + 1), metrics.l2_ratio(nothing, nothing + 1)) == (0, float("inf"))
    assert metrics.relative_bias(x, nothing[:2]) == 0
    assert metrics.relative_bias(nothing, nothing + 1) == float("inf")


@pytest.mark.parametrize("metric", [metrics.cosine, metrics.l2_ratio, metrics.relative_bias])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_directions_do_not_overflow(metric, dtype):
    x = torch.full((4, 1024), 300.0, dtype=dtype)  # float16 holds no square of it
    assert metric(x, x) == pytest.approx(1, abs=1e-12)
    tiny = torch.full((4, 8), 1e-100, dtype=torch.float64)
    assert metric(tiny, tiny) == pytest.approx(1)


def test_a_mean_predictor_explains_nothing_to_the_last_bit():
    for magnitude in range(-5, 8):
        x = data() * 1.7**magnitude + 10**magnitude
        assert metrics.explained_variance(x, x.mean(0).expand_as(x)) == 0


def test_dense_and_histogram_by_hand():
    active = torch.zeros(100, 5, dtype=torch.bool)
    for j, times in enumerate([0, 1, 10, 11, 100]):
        active[:times, j] = True
    assert metrics.dense_fraction(active) == 2 / 5  # more than a tenth, not a tenth
    assert metrics.dense_fraction(active, 0.5) == 1 / 5
    counts, edges, n_dead = metrics.density_histogram(metrics.density(active), bins_per_decade=1)
    assert (counts, edges, n_dead) == ([0, 1, 3], [-3, -2, -1, 0], 1)


# ------------------------------------------------------------------------------------------- dictionaries


def rows_of(n, width, seed=0, dtype=torch.float64):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def all_cosines(a, b):
    a, b = (np.asarray(t.double()) for t in (a, b))
    return (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


@pytest.fixture(params=[1 << 24, 10], ids=["at once", "a few rows at a time"])
def in_parts(request, monkeypatch):
    monkeypatch.setattr(metrics.dictionaries, "COSINES_AT_ONCE", request.param)


def test_dictionaries_by_numpy(in_parts):
    from itertools import permutations

    a, b = rows_of(5, 4), rows_of(7, 4, seed=1)
    cosines = all_cosines(a, b)
    assert metrics.mmcs(a, b) == pytest.approx(cosines.max(1).mean())
    assert metrics.mmcs(b, a) == pytest.approx(cosines.max(0).mean())
    best = max(np.abs(cosines[range(5), chosen]).mean() for chosen in permutations(range(7), 5))
    assert metrics.mcc(a, b) == metrics.mcc(b, a) == pytest.approx(best)
    found = metrics.best_match(a, b)
    assert found.b.tolist() == np.abs(cosines).argmax(1).tolist()
    assert found.cosine.tolist() == pytest.approx(cosines[range(5), found.b].tolist())
    assert metrics.uniqueness(a, b) == len(set(found.b.tolist())) / 5
    of_itself = all_cosines(b, b) - 9 * np.eye(7)
    assert metrics.redundancy(b) == pytest.approx(of_itself.max(1).mean())


@pytest.mark.parametrize("sizes", [(6, 6), (4, 9), (30, 12)], ids=str)
def test_each_row_is_matched_once(sizes, in_parts):
    a, b = rows_of(sizes[0], 3), rows_of(sizes[1], 3, seed=1)
    found = metrics.match(a, b)
    assert len(found.a) == len(set(found.a.tolist())) == len(set(found.b.tolist())) == min(sizes)
    assert found.a.tolist() == sorted(found.a.tolist())
    assert found.cosine.tolist() == pytest.approx(all_cosines(a, b)[found.a, found.b].tolist())


def test_order_length_and_sign_do_not_matter_to_mcc():
    a = rows_of(30, 12)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    turned = -2.5 * a[order]
    found = metrics.match(a, turned)
    assert torch.equal(order[found.b], found.a)
    assert metrics.mcc(a, turned) == pytest.approx(1) and metrics.uniqueness(turned, a) == 1
    assert metrics.mcc(a[:8], turned) == metrics.mcc(turned, a[:8]) == pytest.approx(1)
    assert metrics.mmcs(a, -turned) == pytest.approx(1)
    assert metrics.mmcs(a, turned) < 0.9, "opposite directions are unlike"


def test_copies_are_seen():
    a = rows_of(8, 20)
    copies = a[:1].expand(8, 20)
    assert metrics.redundancy(torch.cat([a, 3 * a])) == pytest.approx(1) and metrics.redundancy(a) < 0.8
    assert metrics.mmcs(copies, a) == pytest.approx(1), "which is why mmcs alone says little"
    assert metrics.mcc(copies, a) < 0.5 and metrics.uniqueness(copies, a) == 1 / 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_any_dtype_and_size(dtype):
    a, b = rows_of(10, 64, dtype=dtype), rows_of(12, 64, seed=1, dtype=dtype)
    exact = all_cosines(a, b)
    assert metrics.mmcs(a, b) == pytest.approx(exact.max(1).mean(), abs=1e-6)
    huge = {torch.float16: 1e4, torch.bfloat16: 1e30, torch.float32: 1e30, torch.float64: 1e200}[dtype]
    assert metrics.mmcs(a / a.abs().max() * huge, b) == pytest.approx(exact.max(1).mean(), abs=2e-3)


def test_a_row_of_zeros_is_like_nothing():
    a = rows_of(4, 6)
    a[1] = 0
    assert metrics.mcc(a, a) == pytest.approx(3 / 4)
    assert metrics.best_match(a, a).cosine[1] == 0


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (rows_of(3, 4), rows_of(3, 5), r"one width; got \(3, 4\) and \(3, 5\)"),
        (rows_of(3, 4)[0], rows_of(3, 4), "two dictionaries"),
        (rows_of(0, 4), rows_of(3, 4), "two dictionaries"),
        (rows_of(3, 4) * float("nan"), rows_of(3, 4), "NaN or infinity"),
    ],
    ids=["widths", "a vector", "no rows", "not finite"],
)
@pytest.mark.parametrize("metric", [metrics.mmcs, metrics.mcc, metrics.uniqueness, metrics.best_match, metrics.match])
def test_dictionaries_that_do_not_compare(metric, a, b, says):
    with pytest.raises(ValueError, match=says):
        metric(a, b)
    with pytest.raises(ValueError, match="two rows"):
        metrics.redundancy(rows_of(1, 4))


# ------------------------------------------------------------------------------------------- against the truth


def test_detection_by_hand():
    truth = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]]).bool()
    latents = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]]).bool()
    found = metrics.detection(latents, truth, torch.tensor([0, 1, 2]))
    assert found.precision == pytest.approx((1 / 2 + 0 + 1 / 4) / 3)
    assert found.recall == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert found.f1 == pytest.approx((1 / 2 + 0 + 2 / 5) / 3)


def test_detection_streams(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    latents, truth = torch.rand(500, 9, generator=generator) < 0.3, torch.rand(500, 14, generator=generator) < 0.2
    matches = torch.randint(14, (9,), generator=generator)
    at_once = metrics.detection(latents, truth, matches)
    monkeypatch.setattr(metrics.truth, "ENTRIES_AT_ONCE", 40)
    streamed = metrics.Detection(matches)
    for some in torch.arange(500).split([1, 99, 0, 400]):
        streamed.update(latents[some], truth[some])
    assert streamed.result() == at_once
    per_latent = [v.numpy() for v in streamed.per_latent()]
    from sklearn.metrics import precision_recall_fscore_support

    expected = precision_recall_fscore_support(truth[:, matches].numpy(), latents.numpy(), zero_division=0.0)
    for ours, theirs in zip(per_latent, expected[:3], strict=True):
        assert ours == pytest.approx(theirs)


def test_detection_of_the_truth_is_perfect():
    truth = torch.rand(100, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    order = torch.tensor([3, 1, 4])
    assert metrics.detection(truth[:, order], truth, order) == (1, 1, 1)


def test_detection_refuses_what_does_not_fit():
    with pytest.raises(TypeError, match="bool"):
        metrics.detection(torch.zeros(3, 2), torch.zeros(3, 2).bool(), torch.arange(2))
    for latents, truth in (((3, 3), (3, 4)), ((3, 2), (4, 4)), ((3, 2), (3,))):
        with pytest.raises(ValueError, match="the same rows of 2 latents"):
            metrics.detection(torch.zeros(latents).bool(), torch.zeros(truth).bool(), torch.arange(2))


# ------------------------------------------------------------------------------------------- blocks of a stream


@pytest.mark.parametrize("n", [1, 63, 64, 65, 128, 129, 1000])
def test_blocks_depend_on_rows_alone(n):
    rows = rows_of(n, 3)
    size = next(s for s in (1, 2, 4, 8, 16) if n <= 64 * s)
    expected = np.add.reduceat(rows.numpy(), np.arange(0, n, size))
    for batches in ([n], [1] * n, [0, n // 3, n - n // 3]):
        blocks = Blocks()
        for batch in rows.split(batches):
            blocks.update(batch)
        assert (blocks.size, blocks.count) == (size, n)
        assert blocks.sums.numpy() == pytest.approx(expected)
        assert blocks.rows.tolist() == [size] * (n // size) + [n % size] * (n % size > 0)
        assert blocks.total.numpy() == pytest.approx(rows.sum(0).numpy())
