import numpy as np
import pytest
import torch

from fewfire import metrics


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
