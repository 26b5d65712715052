import torch

from fewfire import rng


def test_a_function_of_its_key():
    assert torch.equal(rng.permutation(100, 1, 2), rng.permutation(100, 1, 2))
    assert not torch.equal(rng.permutation(100, 1, 2), rng.permutation(100, 1, 3))
    assert not torch.equal(rng.permutation(100, 12), rng.permutation(100, 1, 2))


def test_these_bits_for_ever():
    """A resumed run must draw what the interrupted one would have drawn, in the next version too."""
    draw = torch.rand(3, generator=rng.generator(0, "weights"), dtype=torch.float64)
    assert draw.tolist() == EXPECTED, draw.tolist()


EXPECTED = [0.42006112972072407, 0.572496113773015, 0.8548697807716651]
