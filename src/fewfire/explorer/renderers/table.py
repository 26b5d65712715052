"""Rows of a table: values by column, and the columns that made a feature fire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire import plot
from fewfire.explorer.choosing import Examples
from fewfire.explorer.packing import packed
from fewfire.explorer.renderers.family import Marks, Numbers, Renderer, contributions, written

__all__ = ["Table"]

MOST_COLUMNS = 64
"""of a row; of a wider one, those are shown in which it is most unusual"""
N_MARKED = 6
"""columns named of an example"""
N_WRITTEN = 12
"""columns named of a feature"""
N_NAMED = 3
"""columns in a label"""
FAINT = 0.35
"""of the strongest column's weight: below this, a column is not in the label"""


class Table(Renderer, name="table"):
    """Columns by name. All values are also given in model space: after ``standardize``, in standard deviations."""

    def about(self) -> dict[str, Any]:
        n_in, n_out = (int(np.prod(shape)) for shape in (self.model.input_shape, self.model.target_shape))
        names = [plot.column_name(self.layout, i) for i in range(n_in)]
        return {"columns": names, "n_columns": n_in, "n_targets": n_out}

    def rows(self, x: Tensor, target: Tensor, recon: Tensor, numbers: Numbers) -> list[dict[str, Any]]:
        flat, out = x.flatten(1), recon.flatten(1)
        unusual = self.model.to_model_space(x.to(self.model.device)).flatten(1).float().cpu()
        same = target.shape[1:] == x.shape[1:]
        n = min(MOST_COLUMNS, flat.shape[1])
        columns = unusual.abs().topk(n, dim=1).indices if n < flat.shape[1] else torch.arange(n).expand(len(flat), -1)
        shown = {"columns": columns.to(torch.int32), "x": flat.gather(1, columns), "z": unusual.gather(1, columns)}
        if same:
            shown["recon"] = out.gather(1, columns)
            if target is not x:
                shown["target"] = target.flatten(1).gather(1, columns)
        arrays = {name: _array(values) for name, values in shown.items()}
        return [{name: packed(values[i]) for name, values in arrays.items()} for i in range(len(flat))]

    def marks(self, x: Tensor, features: Tensor, numbers: Numbers) -> Marks:
        added = contributions(self.model, x, features)
        return {**strongest(added), "by": _share_of_strongest(added)}

    def drawings(self) -> Sequence[dict[str, Any]]:
        vectors, _ = written(self.model)
        if vectors.shape[1] != int(np.prod(self.model.input_shape)):
            return [{}] * len(vectors)
        top = vectors.abs().topk(min(N_WRITTEN, vectors.shape[1]), dim=1).indices
        columns, weights = top.to(torch.int32).numpy(), vectors.gather(1, top).numpy()
        return [{"columns": packed(c), "weights": packed(w)} for c, w in zip(columns, weights, strict=True)]

    def labels(self, examples: Examples) -> list[str]:
        vectors, _ = written(self.model)
        if vectors.shape[1] != int(np.prod(self.model.input_shape)) or not self.layout.columns:
            return [""] * len(vectors)
        top = vectors.abs().topk(min(N_NAMED, vectors.shape[1]), dim=1)
        told = top.values > FAINT * top.values[:, :1]
        rising = vectors.gather(1, top.indices) > 0
        names = [plot.column_name(self.layout, i) for i in range(vectors.shape[1])]
        lines = zip(top.indices.tolist(), rising.tolist(), told.tolist(), strict=True)
        return [
            " ".join(f"{'+' if up else '−'}{names[i]}" for i, up, tell in zip(*line, strict=True) if tell)
            for line in lines
        ]


def strongest(added: Tensor) -> Marks:
    """(n, D) -> "columns" (n, N_MARKED): where most was added, whatever the sign."""
    top = added.abs().topk(min(N_MARKED, added.shape[1]), dim=1).indices
    return {"columns": top.to(torch.int32).numpy()}


def _share_of_strongest(added: Tensor) -> npt.NDArray[np.int8]:
    """(n, N_MARKED) what these columns added, in 127ths of the largest."""
    top = added.abs().topk(min(N_MARKED, added.shape[1]), dim=1)
    scale = top.values[:, :1].clamp_min(torch.finfo(torch.float32).tiny)
    return (added.gather(1, top.indices) / scale * 127).round().to(torch.int8).numpy()


def _array(values: Tensor) -> npt.NDArray[Any]:
    return (values.float() if values.is_floating_point() else values).cpu().numpy()
