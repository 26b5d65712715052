"""Whether two models found the same features."""

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire import metrics
from fewfire.comparison import MEANINGS


def model(rows):
    made = ff.Autoencoder(rows.shape[1], len(rows), "relu", network=ff.Linear(unit_norm=False), dtype=torch.float64)
    with torch.no_grad():
        made.decoder.W_dec.copy_(rows)
    return made


def rows_of(n, width=12, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand():
    """Of three features one is found, one is turned by 60 degrees, one by 90; the other model has one of its own."""
    a, b = torch.eye(5, dtype=torch.float64)[:3], torch.eye(5, dtype=torch.float64)
    b = torch.stack([b[3], -2 * b[0], 0.5 * b[1] + 0.75**0.5 * b[4], b[4]])
    found = ff.stability(model(a), model(b))
    assert list(found) == list(MEANINGS)
    assert found == pytest.approx(
        {
            "n_pairs": 3,
            "mcc": (1 + 0.5 + 0) / 3,
            "mmcs": (0 + 0.5 + 0) / 3,
            "mmcs_back": (0 + 0 + 0.5 + 0) / 4,
            "above_0.7": 1 / 3,
            "above_0.9": 1 / 3,
        }
    )


def test_shares_above():
    cosines = torch.tensor([0.95, 0.85, 0.75, 0.65, 0.1], dtype=torch.float64)
    a = torch.eye(10, dtype=torch.float64)
    b = cosines[:, None] * a[:5] + (1 - cosines[:, None] ** 2).sqrt() * a[5:]
    found = ff.stability(model(a[:5]), model(b))
    assert (found["above_0.7"], found["above_0.9"]) == (3 / 5, 1 / 5)


def test_the_order_of_features_does_not_matter():
    rows = rows_of(20)
    shuffled = rows[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    assert ff.stability(model(rows), model(shuffled))["mcc"] == pytest.approx(1)
    other = ff.stability(model(rows), model(rows_of(31, seed=2)))
    assert other["mcc"] == metrics.mcc(rows, rows_of(31, seed=2)) < 0.9
    turned = ff.stability(model(rows_of(31, seed=2)), model(rows))
    assert (turned["mmcs"], turned["mmcs_back"]) == (other["mmcs_back"], other["mmcs"])
    assert turned["mcc"] == pytest.approx(other["mcc"])


def test_estimators_and_tied_weights(rows):
    fitted = [
        ff.SparseAutoencoder(8, tied=tied, max_epochs=2, random_state=0, device="cpu").fit(rows)
        for tied in (False, True)
    ]
    assert ff.stability(*fitted)["n_pairs"] == 8
    assert ff.stability(fitted[0], fitted[0].module_)["above_0.9"] == 1


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: ff.Autoencoder(12, 8, "relu", network=ff.Mlp(hidden=(10,))), "linear decoder.*network 'mlp'"),
        (lambda: ff.Autoencoder(12, 8, "relu", network=ff.Linear(output="sigmoid")), "output 'sigmoid'"),
        (lambda: ff.Autoencoder(13, 8, "relu"), r"same rows.*\(12,\).*\(13,\)"),
        (lambda: np.zeros((8, 12)), "expected an Autoencoder"),
    ],
    ids=["deep", "logistic", "widths", "an array"],
)
def test_what_cannot_be_compared(other, says):
    with pytest.raises((ValueError, TypeError), match=says) as error:
        ff.stability(model(rows_of(8)), other())
    assert "\n" not in str(error.value)
