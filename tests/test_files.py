"""The model folder: what was saved is what is loaded, or a sentence says why not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fewfire import files
from fewfire.activations import Activation
from fewfire.autoencoder import Autoencoder
from fewfire.disk import ModelFileError, load_tensors, save_tensors
from fewfire.files import find_model, load, read_config, save

KINDS: dict[str, Callable[[], Autoencoder]] = {
    "topk": lambda: Autoencoder(6, 12, {"name": "topk", "k": 3}),
    "tied": lambda: Autoencoder(6, 12, network={"name": "linear", "tied": True}),
    "transcoder": lambda: Autoencoder(6, 12, "topk", d_out=4),
    "image": lambda: Autoencoder((1, 2, 3), 12, "topk"),
    "float64": lambda: Autoencoder(6, 12, dtype=torch.float64),
    "bfloat16": lambda: Autoencoder(6, 12, dtype=torch.bfloat16),
    "standardize": lambda: fitted("standardize"),
    "chain": lambda: fitted(["row_mean", "standardize"]),
    "whiten": lambda: fitted("whiten"),
    "unfitted": lambda: Autoencoder(6, 12, preprocess="standardize"),
}


def rows(seed: int = 0) -> torch.Tensor:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(seed))


def fitted(preprocess: Any) -> Autoencoder:
    model = Autoencoder(6, 12, "topk", preprocess=preprocess)
    assert model.preprocess is not None
    model.preprocess.fit(lambda: [rows() * 3 + 1])
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(fitted("standardize"), tmp_path / "model", provenance={"seed": 3})
    return tmp_path / "model"


def forge(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Change tensors or metadata of a model and give it right checksums."""
    file = folder / "model.safetensors"
    tensors, metadata = load_tensors(file)
    change(tensors, metadata)
    save_tensors(file, tensors, metadata)


def refused(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        load(path)
    message = str(caught.value)
    assert "model.safetensors" in message
    assert "\n" not in message
    assert len(message) < 500 + len(str(path))
    return message


# ------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    model = KINDS[kind]()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):  # other numbers than a fresh model has
            parameter.add_(0.01 * (i + 1))
    save(model, tmp_path)
    again = load(tmp_path)
    before, after = model.state_dict(), again.state_dict()
    assert list(before) == list(after)
    for name in before:
        assert before[name].dtype == after[name].dtype
        assert torch.equal(before[name], after[name]), name
    assert again.config() == model.config()
    if kind not in ("unfitted", "image"):
        x = rows(1) if model.dtype != torch.float64 else rows(1).double()
        assert torch.equal(again.encode(x), model.encode(x))
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_loading_draws_nothing_from_the_global_generator(folder: Path) -> None:
    state = torch.random.get_rng_state()
    load(folder)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(KINDS["topk"](), tmp_path / name, provenance={"x": 1})
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_every_way_to_name_a_model(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    for path in (folder, tmp_path, file, str(folder)):
        assert find_model(path) == file
        assert load(path).n_latents == 12
    alone = tmp_path / "renamed.safetensors"
    shutil.copy(file, alone)
    assert load(alone).n_latents == 12


def test_the_configuration_can_be_read_alone(folder: Path) -> None:
    config = read_config(folder)
    assert config["architecture"] == fitted("standardize").config()
    assert config["provenance"] == {"seed": 3}
    assert config["estimator"] is None
    assert json.loads((folder / "config.json").read_text()) == config
    assert "\n  " in (folder / "config.json").read_text()


def test_the_estimator_travels_along(tmp_path: Path) -> None:
    save(KINDS["topk"](), tmp_path, estimator={"class": "AnomalyDetector", "threshold": 0.25})
    assert read_config(tmp_path)["estimator"] == {"class": "AnomalyDetector", "threshold": 0.25}


# ------------------------------------------------------------------------------------------- not a model


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*missing; expected a model folder"):
        load(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="found nothing"):
        load(tmp_path)
    for i in range(7):
        (tmp_path / f"file{i}").touch()
    with pytest.raises(FileNotFoundError, match=r"found file0, .*file4 and 2 more"):
        load(tmp_path)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelFileError, match=r"expected a model folder"):
        load(tmp_path / "model.pt")


def test_save_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "model").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        save(KINDS["topk"](), tmp_path / "model")


# ------------------------------------------------------------------------------------------- wrong contents


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, m: m.update(format="other"), "expected format 'fewfire-model', got 'other'"),
        (lambda t, m: m.pop("format"), "got None"),
        (lambda t, m: m.update(format_version=2, news=1), "upgrade fewfire"),
        (lambda t, m: m.update(format_version=0), "format_version"),
        (lambda t, m: m.update(format_version=True), "format_version"),
        (lambda t, m: m.update(format_version="1"), "format_version"),
        (lambda t, m: m.update(extra=1), "entries: 'extra'"),
        (lambda t, m: m.pop("provenance"), "entries: 'provenance'"),
        (lambda t, m: m.update(architecture=[]), "entries: 'architecture'"),
        (lambda t, m: m.update(estimator=3), "entries: 'estimator'"),
        (lambda t, m: m["architecture"].update(extra=1), "extra"),
        (lambda t, m: m["architecture"].pop("d_in"), "d_in"),
        (lambda t, m: m["architecture"].update(activation={"name": "nosuch"}), "nosuch"),
        (lambda t, m: m["architecture"].update(activation=None), "cannot be built"),
        (lambda t, m: m["architecture"].update(layout=7), "not a kind, a shape and names of columns: 7"),
        (lambda t, m: m["architecture"].update(d_in="wide"), "cannot be built"),
        (lambda t, m: m["architecture"].update(dtype="float8"), "float8"),
        (lambda t, m: m["architecture"].update(n_latents=13), r"of shape (13"),
        (lambda t, m: m["architecture"].update(dtype="float64"), "torch.float64"),
        (lambda t, m: m["architecture"].update(preprocess=None), "unknown tensor 'preprocess."),
        (lambda t, m: t.pop("decoder.b_dec"), "lacks the tensor 'decoder.b_dec'"),
        (lambda t, m: t.pop("preprocess.std"), "lacks the tensor 'preprocess.std'"),
        (lambda t, m: t.update(extra=torch.ones(1)), "unknown tensor 'extra'"),
        (
            lambda t, m: t.update({"encoder.b_enc": torch.ones(5)}),
            "torch.float32 of shape (12,)",
        ),
        (lambda t, m: t.update({"encoder.b_enc": torch.ones(12).half()}), "got torch.float16"),
        (lambda t, m: t.update({"preprocess.mean": torch.ones(6)}), "'preprocess.mean' to be torch.float64"),
        (lambda t, m: t.update({"preprocess.mean": torch.ones(5).double()}), "does not fit its rows"),
        (lambda t, m: t.update({"preprocess.std": torch.ones(5).double()}), "does not fit its rows"),
        (
            lambda t, m: t.update({"preprocess.std": torch.zeros(6).double()}),
            "does not map rows of numbers to such rows",
        ),
        (lambda t, m: t.update({"preprocess.std": torch.ones(2, 1).double()}), "does not fit its rows"),
        (lambda t, m: t["preprocess.mean"].fill_(torch.nan), "holds NaN or infinity in 'preprocess.mean'"),
        (lambda t, m: t["decoder.W_dec"][3].fill_(torch.inf), "holds NaN or infinity in 'decoder.W_dec'"),
        (lambda t, m: m["architecture"]["layout"].update(columns=list("abc")), "a table of 3 columns, the rows have 6"),
        (lambda t, m: m["architecture"]["layout"].update(columns=[1] * 6), "not a kind, a shape and names of columns"),
        (lambda t, m: m["architecture"]["layout"].update(extra=1), "a setting that its architecture does not take"),
        (lambda t, m: m["architecture"]["network"].update(tied="no"), "expected tied to be bool | None; got 'no'"),
        (
            lambda t, m: m["architecture"].update(preprocess={"name": "chain", "steps": ["row_mean"] * 2000}),
            "2013 settings",
        ),
    ],
)
def test_contents_that_do_not_belong_together(folder: Path, change: Callable[..., object], words: str) -> None:
    forge(folder, change)
    assert words in refused(folder)


@pytest.mark.parametrize("size", [1 << 20, 1 << 31, 1 << 62])
def test_a_hostile_architecture_takes_no_memory(folder: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The sizes are compared before anything is allocated: 2**20 latents of 2**20 columns are 8 TB."""
    built: list[str] = []
    real = Autoencoder.from_config
    monkeypatch.setattr(
        files.Autoencoder,
        "from_config",
        lambda config: (built.append(str(torch.empty(0).device)), real(config))[1],
    )
    forge(folder, lambda t, m: m["architecture"].update(d_in=size, d_out=size, n_latents=size))
    refused(folder)
    assert built == ["meta"]


class Fussy(Activation):
    """A user's activation that needs real numbers to be built."""

    def build(self, n_latents: int) -> None:
        self.slope = float(torch.ones(3).sum().item())

    def forward(self, pre_acts: torch.Tensor, state: Any = None) -> torch.Tensor:
        return pre_acts.relu() * self.slope

    def config(self) -> dict[str, Any]:
        return {"name": "fussy"}


def test_an_activation_that_cannot_be_sketched_is_still_loaded_and_checked(tmp_path: Path) -> None:
    try:
        save(Autoencoder(6, 12, Fussy()), tmp_path)
        assert load(tmp_path).encode(rows()).shape == (40, 12)
        forge(tmp_path, lambda t, m: m["architecture"].update(n_latents=13))
        assert "of shape (13" in refused(tmp_path)
        forge(tmp_path, lambda t, m: m["architecture"].update(n_latents=1 << 20, d_in=1 << 20))
        assert "meta tensors" in refused(tmp_path), "far larger than the file: not tried with real numbers"
    finally:
        del Activation.registry["fussy"]


def test_a_map_that_cannot_be_undone_is_refused(tmp_path: Path) -> None:
    """`encode` does not use it; `reconstruct` would have failed, long after the load."""
    save(fitted("whiten"), tmp_path)
    forge(tmp_path, lambda t, m: t.update({"preprocess.coloring": torch.ones(6, 5).double()}))
    assert "does not fit its rows" in refused(tmp_path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_that_could_not_be_loaded_is_not_saved(folder: Path, value: float) -> None:
    model = fitted("standardize")
    with torch.no_grad():
        model.encoder.W_enc[2, 3] = value
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"NaN or infinity in 'encoder\.W_enc' cannot be saved; train it again"):
        save(model, folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_damaged_model_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "checksum" in refused(folder)


# ------------------------------------------------------------------------------------- the readable copy


def other_model(folder: Path) -> bytes:
    save(KINDS["topk"](), folder / "other")
    return (folder / "other" / "config.json").read_bytes()


@pytest.mark.parametrize(
    "torn",
    [
        lambda good, folder: b"",
        lambda good, folder: good[: len(good) // 2],
        lambda good, folder: b"\0" * len(good),
        lambda good, folder: b"\xff" + good,
        lambda good, folder: b"[" * 100_000,
        lambda good, folder: good + b" " * 10 * len(good),
        lambda good, folder: b"{}",
        lambda good, folder: good.replace(b'"seed": 3', b'"seed": 4'),
        lambda good, folder: other_model(folder),
    ],
    ids=["empty", "half", "zeros", "not utf-8", "bomb", "endless", "other", "edited", "stale"],
)
def test_a_torn_copy_is_rewritten_from_the_truth(folder: Path, torn: Callable[..., bytes]) -> None:
    copy = folder / "config.json"
    good = copy.read_bytes()
    copy.write_bytes(torn(good, folder))
    with pytest.warns(UserWarning, match=r"config\.json did not agree .* was rewritten") as caught:
        model = load(folder)
    assert caught[0].filename == __file__
    assert model.n_latents == 12
    assert copy.read_bytes() == good
    load(folder)  # silent again: warnings are errors here


def test_another_layout_of_the_copy_is_left_alone(folder: Path) -> None:
    copy = folder / "config.json"
    copy.write_text(json.dumps(json.loads(copy.read_text()), indent=7))
    text = copy.read_text()
    load(folder)
    assert copy.read_text() == text


def test_an_absent_copy_stays_absent(folder: Path) -> None:
    (folder / "config.json").unlink()
    load(folder)
    assert not (folder / "config.json").exists()


def test_somebody_elses_config_is_left_alone(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    (folder / "config.json").write_text('{"theirs": 1}')
    load(folder / "mine.safetensors")
    assert (folder / "config.json").read_text() == '{"theirs": 1}'


def test_a_read_only_folder_does_not_fail_the_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.json").write_text("{")

    def replace(*args: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.warns(UserWarning, match="could not be rewritten"):
        assert load(folder).n_latents == 12
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_reading_the_configuration_changes_nothing(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_config(folder)
    assert (folder / "config.json").read_text() == "{"


# ------------------------------------------------------------------------------------------- failing disks


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_save_that_fails_leaves_a_whole_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str, count: int
) -> None:
    """Whichever step fails, the folder loads: as the old model or as the new one, never as a mixture."""
    old, new = fitted("standardize"), KINDS["topk"]()
    calls, real = 0, getattr(os, step)

    def fail(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        failed = False
        try:
            save(new, folder)
        except OSError as error:
            failed = True
            assert error.errno == errno.ENOSPC
    assert failed == (calls >= count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the copy may be stale: that is what is being repaired
        model = load(folder)
    assert model.config() in (old.config(), new.config())
    assert json.loads((folder / "config.json").read_text()) == read_config(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
