"""The detector and what it is made of: views, scales, samples, known rows, thresholds, files."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fewfire.anomaly import (
    DETECTOR,
    THRESHOLDS,
    Detector,
    Ensemble,
    Prototypes,
    Sample,
    Surprisal,
    Views,
    load_detector,
    p_values,
    save_detector,
    threshold,
)
from fewfire.anomaly.known import Known
from fewfire.disk import ModelFileError, load_tensors, save_tensors


def normal(n: int, d: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def parts() -> list[Any]:
    """Small ones, of every kind, through every view."""
    return [
        Ensemble(members=4, hidden=8, steps=20),
        Prototypes(view=("range", "asinh"), members=4, size=64),
        Prototypes(view=("directions",), members=4, size=16),
    ]


def small(rows: torch.Tensor, seed: int = 0) -> Detector:
    return Detector(parts(), seed=seed).fit(rows)


# ------------------------------------------------------------------------------------------------ what it finds


def test_far_rows_are_found_and_their_columns_named() -> None:
    detector = small(normal(300))
    rows = normal(50, seed=1)
    usual = detector(rows).score
    rows[torch.arange(50), torch.arange(50) % 4] += 12.0
    found = detector(rows, explain=True)
    assert found.share is not None
    assert (found.score > usual.quantile(0.95)).all()
    assert (found.share.argmax(1) == torch.arange(50) % 4).double().mean() >= 0.98
    assert torch.allclose(found.share.sum(1), torch.ones(50, dtype=torch.float64))
    assert (found.share >= 0).all()


def test_a_broken_correlation_is_found() -> None:
    """Each value in its range, the row nowhere: what an ensemble that looks at columns alone would miss."""
    rows = normal(500, 1) * torch.ones(1, 3) + 0.05 * normal(500, 3, seed=1)
    detector = Detector([Ensemble(members=4, steps=150)]).fit(rows)
    broken = torch.tensor([[1.0, 1.0, -1.0], [-0.5, 1.0, -0.5]], dtype=torch.float64)
    assert (detector(broken).score > detector.usual.quantile(0.99)).all()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 31])
@pytest.mark.parametrize("d", [1, 4])
def test_few_rows_give_finite_scores(n: int, d: int) -> None:
    detector = small(normal(n, d))
    found = detector(torch.cat([normal(n, d), 1e300 * normal(9, d), 1e-300 * normal(9, d)]), explain=True)
    assert torch.isfinite(found.score).all()
    assert torch.isfinite(found.share).all()  # type: ignore[arg-type]
    assert len(detector.usual) == n


HOSTILE = {
    "equal rows": torch.full((40, 3), 7.0, dtype=torch.float64),
    "three rows, often": normal(3).repeat(20, 1),
    "Cauchy": normal(200) / normal(200, seed=1),
    "1e-300 ... 1e300": normal(100) * 10.0 ** torch.tensor([-300, -150, 150, 300], dtype=torch.float64),
    "near the largest float": normal(100).clamp(-1, 1) * 1.7e308,
    "both ends": torch.cat([normal(100), 1.7e308 * torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 4)]),
    "subnormal": torch.cat([torch.zeros(99, 4), torch.ones(1, 4)]).double() * 1e-320,
    "one row apart": torch.cat([torch.zeros(99, 4), torch.ones(1, 4)]).double(),
    "a fill value": torch.cat([normal(200), torch.full((3, 4), 9.97e36)]).double(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_any_finite_table_gives_finite_scores_and_shares(name: str) -> None:
    rows = HOSTILE[name]
    detector = small(rows)
    ends = torch.tensor([[1.79e308], [-1.79e308], [5e-324], [0.0], [1.0]], dtype=torch.float64)
    found = detector(torch.cat([rows, ends.expand(-1, rows.shape[1])]), explain=True)
    assert torch.isfinite(detector.usual).all()
    assert torch.isfinite(found.score).all()
    total = found.share.sum(1)  # type: ignore[union-attr]
    assert ((total - 1).abs() < 1e-9).logical_or(total == 0).all()
    assert all(math.isfinite(threshold(rule, detector.usual, 0.1)) for rule in THRESHOLDS)


def test_units_change_nothing() -> None:
    """Columns in other units, powers of two of the old ones, give the same bits: 1e-300 as well as 1."""
    rows, new = normal(200), normal(50, seed=1)
    units = 2.0 ** torch.tensor([-1000, -3, 10, 1000], dtype=torch.float64)
    assert torch.equal(small(rows)(new).score, small(rows * units)(new * units).score)


def test_a_fill_value_does_not_hide_what_is_usual() -> None:
    rows = torch.cat([normal(500, 2), torch.full((2, 2), 9.97e36)]).double()
    seen = Views.fit(rows, {"asinh"})(rows, ["asinh"])[:500]
    assert (seen.std(0) > 0.05).all()  # by the standard deviation as scale, all would be the same number


def test_another_value_in_a_constant_column_is_strange() -> None:
    rows = normal(100)
    rows[:, 2] = 7.0
    detector = small(rows)
    plain, other = normal(20, seed=1), normal(20, seed=1)
    plain[:, 2], other[:, 2] = 7.0, 7.5
    found = detector(other, explain=True)
    assert torch.allclose(found.score - detector(plain).score, torch.tensor(math.log(101), dtype=torch.float64))
    assert (found.share.argmax(1) == 2).all()  # type: ignore[union-attr]
    assert (detector(plain, explain=True).share[:, 2] == 0).all()  # type: ignore[index]


# ------------------------------------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("d", [1, 3, 5, 9])
def test_a_row_has_the_same_bits_alone_in_any_batch_and_as_a_training_row(d: int) -> None:
    """3, 5 and 9 columns: where a product of these sizes rounds a row by its place in the batch."""
    rows = normal(300, d)
    detector = Detector([Ensemble(view=["standard"], members=4, hidden=8, steps=20), *parts()]).fit(rows)
    mixed = torch.cat([rows[:40], normal(500, d, seed=1)])
    scores, shares = detector(mixed, explain=True)
    order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(0))
    again = detector(mixed[order], explain=True)
    assert torch.equal(again.score, scores[order])
    assert torch.equal(again.share, shares[order])  # type: ignore[arg-type, index]
    for i in (0, 39, 40, 300, 539):
        assert torch.equal(detector(mixed[i : i + 1]).score, scores[i : i + 1])
    # as it was measured in fit
    assert torch.equal(detector(rows).score.sort().values, detector.usual)


def test_equal_training_rows_are_judged_alike_in_fit_and_after() -> None:
    rows = normal(300, 2).round()
    detector = small(rows)
    assert torch.equal(detector(rows).score.sort().values, detector.usual)


def test_the_same_seed_gives_the_same_bits_with_any_number_of_threads() -> None:
    rows, new = normal(200, 9), normal(300, 9, seed=1)
    expected = small(rows, seed=3)(new, explain=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = small(rows, seed=3)(new, explain=True)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found.score, expected.score)
    assert torch.equal(found.share, expected.share)  # type: ignore[arg-type]
    assert not torch.equal(small(rows, seed=4)(new).score, expected.score)


def test_what_the_caller_has_set_in_torch_changes_nothing() -> None:
    rows, new = normal(100), normal(50, seed=1)
    expected = small(rows)(new).score
    with torch.no_grad():
        assert torch.equal(small(rows)(new).score, expected)
    with torch.inference_mode():
        assert torch.equal(small(rows)(new).score, expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(small(rows)(new).score, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_training_row_is_judged_by_members_that_have_not_seen_it() -> None:
    """Of prototypes, a row that is one is at distance 0; it must not be its own neighbour."""
    rows = normal(200, 6)
    detector = Detector([Prototypes(members=8)]).fit(rows)
    nearly = rows + 1e-7  # no training row any more, and next to one in every member that has seen it
    assert detector(rows).score.median() > 2 * detector(nearly).score.median()


def test_scores_of_training_rows_measure_new_ones() -> None:
    """The honest test of conformal thresholds: false alarms on rows like the training rows, over several draws."""
    for kind in (lambda x: x, lambda x: x.exp(), lambda x: torch.cat([x[:, :2], x[:, 2:].sign()], 1)):
        alarms = []
        for seed in range(4):
            usual = kind(normal(1400, 4, seed))
            detector = small(usual[:400], seed)
            end = threshold("conformal", detector.usual, 0.05)
            alarms.append((detector(usual[400:]).score > end).double().mean())
        assert 0.02 < sum(alarms) / 4 < 0.075


# ------------------------------------------------------------------------------------------------ its pieces


def test_surprisal_is_minus_the_log_of_the_share_as_large() -> None:
    scale = Surprisal.fit(torch.arange(1.0, 100.0))
    assert scale(torch.tensor([1.0, 50.0, 99.0])).tolist() == pytest.approx([-math.log(s) for s in (0.99, 0.5, 0.01)])
    between = scale(torch.tensor([49.0, 49.5, 50.0]))
    assert between[1] == pytest.approx(float(between[0] + between[2]) / 2)
    assert scale(torch.tensor([-1e30])) == scale(torch.tensor([1.0]))


def test_surprisal_goes_on_as_an_exponential_tail() -> None:
    """Of exponential scores a further unit is a further nat, also where no score was seen."""
    scores = torch.distributions.Exponential(1.0).icdf((torch.arange(10_000) + 0.5).double() / 10_000)
    scale = Surprisal.fit(scores)
    beyond = scale(torch.tensor([12.0, 22.0], dtype=torch.float64))
    assert float(beyond[1] - beyond[0]) == pytest.approx(10.0, rel=0.1)
    assert torch.isfinite(scale(torch.tensor([1e308], dtype=torch.float64))).all()


@pytest.mark.parametrize("scores", [[3.0], [3.0, 3.0], [0.0, 0.0, 1.0], [-2.0, -2.0], [1e30, 1e30]])
def test_surprisal_of_few_or_equal_scores_never_falls(scores: list[float]) -> None:
    scale = Surprisal.fit(torch.tensor(scores))
    nats = scale(torch.linspace(-3e30, 3e30, 1001, dtype=torch.float64))
    assert torch.isfinite(nats).all()
    assert (nats >= 0).all()
    assert (nats.diff() >= 0).all()


def test_a_sample_is_the_same_whatever_the_blocks() -> None:
    rows = torch.arange(20_000.0, dtype=torch.float64).unsqueeze(1)
    samples = []
    for sizes in ([20_000], [1] * 5 + [19_995], [4096] * 4 + [3616], [9_999, 0, 10_001]):
        sample = Sample(500, seed=1)
        for block in rows.split(sizes):
            sample.add(block)
        assert sample.n_seen == 20_000
        samples.append(sample.rows)
    assert all(torch.equal(samples[0], other) for other in samples)
    drawn = samples[0].flatten()
    assert len(drawn) == 500
    assert (drawn.diff() > 0).all()  # in their order
    assert abs(float(drawn.mean()) - 10_000) < 4 * 20_000 / math.sqrt(12 * 500)  # and from everywhere


def test_all_of_few_rows_are_the_sample() -> None:
    sample = Sample(500, seed=1)
    sample.add(normal(300))
    sample.add(normal(200, seed=1))
    assert torch.equal(sample.rows, torch.cat([normal(300), normal(200, seed=1)]))


def test_known_rows_are_known_by_their_bits() -> None:
    rows = normal(100)
    known = Known.fit(rows)
    assert torch.equal(known(rows), torch.arange(100))
    assert (known(rows + 1e-15) == -1).all()
    assert (known(rows.flip(1)) == -1).all()  # the same values in other columns
    assert torch.equal(Known.fit(torch.zeros(3, 2).double())(torch.tensor([[-0.0, 0.0]]).double()), torch.tensor([0]))


def test_views_are_what_they_say() -> None:
    rows = normal(1000, 3) * torch.tensor([1.0, 100.0, 1e-6]) + 5.0
    views = Views.fit(rows, {"range", "standard", "asinh", "directions"})
    standard = views(rows, ["standard"])
    assert standard.mean(0).abs().max() < 1e-5
    assert (standard.std(0, correction=0) - 1).abs().max() < 1e-5
    assert views(rows, ["range"]).var(0, correction=0).mean() == pytest.approx(1.0, abs=1e-4)
    assert views(rows, ["asinh"]).std(0, correction=0).tolist() == pytest.approx([1.0] * 3, abs=1e-4)
    assert views(rows, ["range", "asinh"]).square().sum() == pytest.approx(
        float(views(rows, ["range"]).square().sum() + views(rows, ["asinh"]).square().sum()) / 2, rel=1e-5
    )
    with pytest.raises(ValueError, match="expected different views"):
        views(rows, ["state"])


# ------------------------------------------------------------------------------------------------ thresholds


def exponential(n: int) -> torch.Tensor:
    """Its quantiles: scores whose tail is -log of the share above."""
    return -torch.log1p(-(torch.arange(n) + 0.5).double() / n)


@pytest.mark.parametrize("rule", ["auto", "quantile", "tail", "conformal"])
def test_rules_agree_where_the_tail_is_exponential(rule: str) -> None:
    assert threshold(rule, exponential(5000), 0.01) == pytest.approx(-math.log(0.01), rel=0.03)


def test_a_tail_tells_of_shares_smaller_than_one_in_n() -> None:
    assert threshold("tail", exponential(1000), 1e-5) == pytest.approx(-math.log(1e-5), rel=0.1)
    uniform = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert 0.99 < threshold("tail", uniform, 1e-5) < 1.01  # a tail that ends
    heavy = (1 - (torch.arange(5000) + 0.5).double() / 5000).pow(-0.3)
    assert threshold("tail", heavy, 1e-4) == pytest.approx(1e-4**-0.3, rel=0.15)


def test_auto_and_mad_are_not_moved_by_anomalies_among_the_rows() -> None:
    clean = exponential(1000)
    dirty = torch.cat([clean[:-50], torch.full((50,), 100.0, dtype=torch.float64)])
    for rule in ("auto", "mad"):
        assert threshold(rule, dirty, 0.01) == pytest.approx(threshold(rule, clean, 0.01), rel=0.1)
    assert threshold("quantile", dirty, 0.01) == 100.0


def test_conformal_finds_nothing_where_too_few_rows_promise_anything() -> None:
    assert threshold("conformal", exponential(98), 0.01) == math.inf
    assert threshold("conformal", exponential(99), 0.01) == float(exponential(99)[-1])


def test_a_number_is_itself_and_an_unknown_rule_is_refused() -> None:
    assert threshold(3, exponential(5)) == 3.0
    with pytest.raises(ValueError, match="expected threshold to be a number or one of auto"):
        threshold("best", exponential(5))


def test_p_values_are_shares_of_rows_at_least_as_unusual() -> None:
    usual = torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=torch.float64)
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 9.0], dtype=torch.float64)
    assert p_values(scores, usual).tolist() == pytest.approx([1.0, 1.0, 0.8, 0.4, 0.4, 0.2])


# ------------------------------------------------------------------------------------------------ files


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    rows = normal(12)
    rows[:, 3] = 1.0
    save_detector(
        Detector([Ensemble(members=4, hidden=3, steps=3), Prototypes(view=("directions",), members=2, size=4)]).fit(
            rows
        ),
        folder,
        {"threshold": 2.5},
    )
    return folder


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    detector = small(normal(60))
    save_detector(detector, tmp_path, {"threshold": 2.5})
    loaded, about = load_detector(tmp_path)
    assert about == {"threshold": 2.5}
    rows = torch.cat([normal(60), normal(60, seed=1)])
    expected, found = detector(rows, explain=True), loaded(rows, explain=True)
    assert torch.equal(found.score, expected.score)
    assert torch.equal(found.share, expected.share)  # type: ignore[arg-type]
    assert torch.equal(loaded.usual, detector.usual)


def damaged(tmp_path: Path, data: bytes) -> str:
    (tmp_path / DETECTOR).write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        load_detector(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400 + len(str(tmp_path))
    return message


def test_every_flipped_byte_and_every_cut_is_found_out(saved: Path, tmp_path: Path) -> None:
    whole = (saved / DETECTOR).read_bytes()
    for at in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        damaged(tmp_path, bytes(changed))
    for end in range(0, len(whole), 97):
        damaged(tmp_path, whole[:end])


def forged(saved: Path, tmp_path: Path, tensors: dict[str, Any], head: Any = None) -> None:
    """Of a file with right checksums: a detector that judges, or a ModelFileError; nothing else."""
    old_tensors, old_head = load_tensors(saved / DETECTOR)
    merged = {name: t.contiguous() for name, t in {**old_tensors, **tensors}.items() if t is not None}
    save_tensors(tmp_path / DETECTOR, merged, old_head if head is None else head)
    detector = load_detector(tmp_path)[0]
    detector(normal(3, detector.n_columns))


CHANGES = {
    "gone": lambda t: None,
    "empty": lambda t: t[:0],
    "short": lambda t: t[:-1],
    "twice": lambda t: torch.cat([t, t]),
    "flat": lambda t: t.flatten() if t.ndim > 1 else t.unsqueeze(0),
    "half": lambda t: t.half(),
    "whole": lambda t: t.long() if t.dtype != torch.int64 else t.int(),
    "NaN": lambda t: torch.full_like(t, math.nan) if t.is_floating_point() else t.double(),
    "backwards": lambda t: -t.flip(0) if t.dtype in (torch.int64, torch.float64) else t[0],
}
FITS = {
    *(("usual", "short"), ("usual", "backwards"), ("views.usual", "short"), ("views.usual", "twice")),
    *(("parts.0.order", "twice"), ("known", "backwards")),
}
"""a detector as well: of another number of constant columns, of columns in two blocks, of other rows"""
FREE = {"views.low", "views.mean", "views.median", "views.bent_mean", "views.centre", "views.axes", "views.usual"}
"""of any sign"""


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_do_not_fit_are_refused(saved: Path, tmp_path: Path, change: str) -> None:
    tensors = load_tensors(saved / DETECTOR)[0]
    for name, tensor in tensors.items():
        if (name, change) in FITS or (change == "backwards" and name in FREE):
            continue
        with pytest.raises(ModelFileError):
            forged(saved, tmp_path, {name: CHANGES[change](tensor)})
            pytest.fail(f"{name} was taken")


def test_a_tensor_of_no_part_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        forged(saved, tmp_path, {"more": torch.zeros(1)})


JUNK = [None, -1, 10**12, 10**30, 1e300, "x", [], {}, ["range", "range"], ["_state"], ["fit_directions"], [None]]
ANY = {"seed", "batch_size", "steps", "size", "fewfire_version", "threshold"}
"""settings that matter to fit alone, or to nobody"""


def test_settings_that_do_not_fit_are_refused(saved: Path, tmp_path: Path) -> None:
    head = load_tensors(saved / DETECTOR)[1]
    for path in paths(head):
        for junk in JUNK:
            if path and path[-1] in ANY | {"about"}:
                continue
            new = copy.deepcopy(head)
            at: Any = new
            for key in path[:-1]:
                at = at[key]
            if not path or at[path[-1]] == junk:
                continue
            at[path[-1]] = junk
            with pytest.raises(ModelFileError):
                forged(saved, tmp_path, {}, new)
                pytest.fail(f"{path}: {junk!r} was taken")


def paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path] + [deeper for key, value in inside for deeper in paths(value, (*path, key))]


def test_nothing_is_loaded_from_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no detector"):
        load_detector(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        save_detector(small(normal(5)), tmp_path / "file")


def test_a_file_of_a_later_version_says_so(saved: Path, tmp_path: Path) -> None:
    head = {**load_tensors(saved / DETECTOR)[1], "format_version": 99}
    with pytest.raises(ModelFileError, match="format version 99.*upgrade"):
        forged(saved, tmp_path, {}, head)
