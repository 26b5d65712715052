"""What every renderer answers. The page has a renderer of the same name in ``frontend/src/renderers``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire import plot
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Named, Source
from fewfire.explorer.choosing import Examples
from fewfire.explorer.packing import rounded
from fewfire.explorer.scan import Codes
from fewfire.scoring import column_names

__all__ = ["Marks", "Renderer", "contributions", "renderer_for"]

Numbers = npt.NDArray[np.int64]
"""of rows, counted from the first that was read"""
Marks = dict[str, npt.NDArray[Any]]
"""what made a feature fire, of n examples: name -> (n, ...)"""

N_REASONS = 5
"""columns that are named as reasons for an error"""
PAIRS_AT_ONCE = 1 << 22
"""values of the rows whose contributions are computed together"""


class Renderer(Named):
    """How the rows of one kind of data come to the page, as JSON; found by the kind of the model's ``Layout``.

    Everything here is asked while a bundle is built. What it returns must be plain values, or arrays ``packed``.
    """

    names_well: ClassVar[bool] = False
    """whether its labels say more than the class on whose rows a feature fires"""
    noun: str = "row"
    """what a row is"""
    registry: ClassVar[dict[str, type[Any]]]

    def __init__(self, model: Autoencoder, source: Source, codes: Codes) -> None:
        self.model, self.source, self.codes, self.layout = model, source, codes, model.layout

    @classmethod
    def fits(cls, model: Autoencoder, source: Source) -> bool:
        """Whether these rows are its kind; by default, where the layout's kind is its name."""
        return model.layout.kind == cls.name

    def about(self) -> dict[str, Any]:
        """What the page must know once: shapes and names."""
        return {}

    def rows(self, x: Tensor, target: Tensor, recon: Tensor, numbers: Numbers) -> list[dict[str, Any]]:
        """(B, ...) rows in data space, their targets and reconstructions -> one JSON object each.

        ``numbers``: theirs.
        """
        raise NotImplementedError

    def reasons(self, share: Tensor) -> list[dict[str, Any]]:
        """(B, D) each value's share of its row's reconstruction error -> where the error is: one JSON object each."""
        n = min(N_REASONS, share.shape[1])
        top = share.topk(n, dim=1)
        names = column_names(self.layout, share.shape[1])
        lines = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return [{"columns": [[names[i], rounded(v, 3)] for i, v in zip(*line, strict=True)]} for line in lines]

    def marks(self, x: Tensor, features: Tensor, numbers: Numbers) -> Marks:
        """What of each row (n, *input shape), of these numbers, made the feature (n,) beside it fire."""
        return {}

    def drawings(self) -> Sequence[dict[str, Any]]:
        """One JSON object per feature: what it writes, and looks for."""
        return [{}] * self.model.latent_shape[0]

    def labels(self, examples: Examples) -> list[str]:
        """A few words per feature; "" where there is nothing to say."""
        return [""] * len(examples.rows)

    def words(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """(L, n) rows, -1 for none -> the words of each feature's that a search shall find."""
        return [""] * len(rows)

    def documents(self) -> Iterable[tuple[int, str]]:
        """What several rows are parts of, such as texts: number and JSON. Asked when all rows were."""
        return ()


def renderer_for(model: Autoencoder, source: Source, codes: Codes) -> Renderer:
    """The renderer of a source's rows: of those that fit, the last that was defined."""
    fitting = [kind for kind in Renderer.registry.values() if kind.fits(model, source)]
    renderer: Renderer = fitting[-1](model, source, codes)
    return renderer


def contributions(model: Autoencoder, x: Tensor, features: Tensor) -> Tensor:
    """Rows (n, *input shape) and a feature for each (n,) -> (n, D): what each column adds to its pre-activation.

    Of a linear encoder the product of weight and value, both in model space; else gradient times value (Shrikumar et
    al. 2016, "Not just a black box"). A feature map is represented by its highest place.
    """
    step = max(1, PAIRS_AT_ONCE // max(1, x[0].numel())) if len(x) else 1
    one = _products if _reads_linearly(model) else _gradients
    parts = [one(model, *pair) for pair in zip(torch.split(x, step), torch.split(features, step), strict=True)]
    return torch.cat(parts) if parts else x.new_zeros(0, x[0:1].numel())


def _reads_linearly(model: Autoencoder) -> bool:
    return "linear_encoder" in model.gives and isinstance(getattr(model.encoder, "W_enc", None), Tensor)


@torch.no_grad()
def _products(model: Autoencoder, x: Tensor, features: Tensor) -> Tensor:
    weights = model.encoder.W_enc[features.to(model.device)]  # type: ignore[index]
    rows = model.to_model_space(x.to(model.device)).flatten(1)
    return (weights * rows).float().cpu()


def _gradients(model: Autoencoder, x: Tensor, features: Tensor) -> Tensor:
    parts = []
    for rows, wanted in zip(torch.split(x, 256), torch.split(features, 256), strict=True):
        with torch.enable_grad():
            inside = model.to_model_space(rows.to(model.device, model.dtype)).detach().requires_grad_(True)
            pre_acts = model.encoder(inside)
            high = pre_acts.flatten(2).amax(2) if pre_acts.ndim > 2 else pre_acts
            chosen = high.gather(1, wanted.to(model.device)[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, inside)
        parts.append((gradient * inside).detach().flatten(1).float().cpu())
    return torch.cat(parts)


def written(model: Autoencoder) -> tuple[Tensor, Any]:
    """(L, W) what each feature writes, and the layout to draw it in."""
    drawn = plot.drawn(model)
    return drawn.vectors, drawn.layout
