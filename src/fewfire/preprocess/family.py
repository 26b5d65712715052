"""What every preprocess is: fitted once, applied and undone, saved with the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self, TypeAlias

import torch
from torch import Tensor, nn

from fewfire.contracts import Named
from fewfire.rows import compute_dtype

__all__ = ["Preprocess", "Stream"]

Stream: TypeAlias = Callable[[], Iterable[Tensor]]
"""Each call gives a fresh pass over the data, in blocks of (B, *row shape)."""


class Preprocess(Named, nn.Module):
    """A map from data space to model space, and its inverse.

    The values learned by :meth:`fit` are float64 buffers, None until then. ``load_state_dict`` creates them
    with the saved shapes: a fresh instance with the same settings can be filled from a file. ``.to()`` and
    its kin move them between devices but never round them.
    """

    fitted_names: ClassVar[tuple[str, ...]] = ()
    """buffers made by ``_fit``. The first has the row shape, or no dimension where one value serves all"""

    def __init__(self) -> None:
        super().__init__()
        for name in self.fitted_names:
            self.register_buffer(name, None)

    # ------------------------------------------------------------------------------------------ for callers

    @property
    def fitted(self) -> bool:
        """Whether :meth:`forward` can be called. Always true for a member that learns nothing."""
        return all(getattr(self, name) is not None for name in self.fitted_names)

    @torch.no_grad()
    def fit(self, stream: Stream) -> Self:
        """Learn from a pass over ``stream()``, in constant memory and float64; a failed fit changes nothing.

        Parameters
        ----------
        stream
            Called for a fresh pass over (B, *row shape) floating-point tensors; blocks may differ in B.

        Raises
        ------
        TypeError
            A block is not a floating-point tensor.
        ValueError
            There are no rows, they differ in shape, or a value is NaN, infinite, or too large to square.
        """
        if not self.fitted_names:
            return self
        values = self._fit(_checked(stream(), self.name))
        for name, value in values.items():
            if not value.isfinite().all():
                raise ValueError(f"{self.name} overflowed: its {name} is not finite; scale the data down first")
        for name, value in values.items():
            setattr(self, name, value)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, *row shape) data space -> the same shape and dtype in model space.

        float64 is computed in float64, everything else in float32.

        Raises
        ------
        TypeError
            ``x`` is not a floating-point tensor.
        ValueError
            Not fitted yet, or the rows of ``x`` are not of the shape seen by :meth:`fit`.
        """
        self._check(x, "x")
        return self._forward(x.to(compute_dtype(x))).to(x.dtype)

    def inverse(self, y: Tensor, like: Tensor | None = None) -> Tensor:
        """(B, *row shape) model space -> the same shape and dtype in data space.

        Parameters
        ----------
        y
            Rows in model space, usually reconstructions.
        like
            The same rows in data space, shaped as ``y``. They restore what :meth:`forward` took from each row
            by itself, such as its mean. Without them that part stays zero.

        Raises
        ------
        TypeError, ValueError
            As :meth:`forward`; ValueError also when ``like`` and ``y`` differ in shape.
        """
        self._check(y, "y")
        if like is not None and like.shape != y.shape:
            raise ValueError(
                f"like must hold y's rows in data space; y is {tuple(y.shape)}, like is {tuple(like.shape)}"
            )
        dtype = compute_dtype(y)
        return self._inverse(y.to(dtype), None if like is None else like.to(y.device, dtype)).to(y.dtype)

    # ------------------------------------------------------------------------------------------ for members

    def _fit(self, blocks: Iterator[Tensor]) -> Mapping[str, Tensor]:
        """Consume checked blocks; give a finite float64 value for each of ``fitted_names``."""
        raise NotImplementedError

    def _forward(self, x: Tensor) -> Tensor:
        """``x`` is float32 or float64, of the right shape."""
        raise NotImplementedError

    def _inverse(self, y: Tensor, like: Tensor | None) -> Tensor:
        """``y`` is float32 or float64, of the right shape; ``like`` has its shape, dtype and device."""
        raise NotImplementedError

    def _value(self, name: str, x: Tensor) -> Tensor:
        """A fitted value, where ``x`` lives and as precise as ``x``."""
        value: Tensor = getattr(self, name)
        return value.to(x)

    # ------------------------------------------------------------------------------------------ plumbing

    def _check(self, x: Tensor, what: str) -> None:
        if not self.fitted:
            raise ValueError(f"{self.name} is not fitted; call fit(stream) or load_state_dict(...) first")
        if not isinstance(x, Tensor) or not x.is_floating_point():
            came = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{what} must be a floating-point tensor, not {came}; convert it, e.g. with .float()")
        if x.ndim < 2:
            raise ValueError(f"{what} must be (B, *row shape), got shape {tuple(x.shape)}; one row is x[None]")
        shape = tuple(getattr(self, self.fitted_names[0]).shape) if self.fitted_names else ()
        # Unchecked, a mean of (5,) would quietly broadcast rows of (1,) to (5,).
        if shape and tuple(x.shape[1:]) != shape:
            raise ValueError(
                f"{self.name} was fitted on rows of shape {shape}; {what} has rows of {tuple(x.shape[1:])}"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let ``.to()`` change the device only: a mean of 10,000 in bfloat16 is off by 32."""

        def keep_dtype(value: Tensor) -> Tensor:
            moved = fn(value)
            return moved if moved.dtype == value.dtype else value.to(moved.device)

        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        saved = [name for name in self.fitted_names if prefix + name in state_dict]
        for name in saved:
            setattr(self, name, torch.empty_like(state_dict[prefix + name], dtype=torch.float64))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if saved:  # torch does not miss a buffer that is None; half a fit is no fit
            absent = [name for name in self.fitted_names if getattr(self, name) is None]
            missing_keys.extend(prefix + name for name in absent)


def _checked(blocks: Iterable[Tensor], name: str) -> Iterator[Tensor]:
    """The blocks that have rows, all of one shape and finite; at least one."""
    seen, shape = 0, None
    for block in blocks:
        if not isinstance(block, Tensor) or not block.is_floating_point():
            came = block.dtype if isinstance(block, Tensor) else type(block).__name__
            raise TypeError(f"{name} is fitted on floating-point tensors (B, *row shape); the stream gave {came}")
        if block.ndim < 2 or (shape is not None and block.shape[1:] != shape):
            expected = "(B, *row shape)" if shape is None else f"rows of shape {tuple(shape)}"
            raise ValueError(f"{name} is fitted on {expected}; the stream gave a block of {tuple(block.shape)}")
        shape = block.shape[1:]
        bad = ~block.flatten(1).isfinite().all(1)
        if bad.any():
            row = seen + int(bad.nonzero()[0])
            raise ValueError(f"{name} cannot be fitted: row {row} of the stream holds NaN or infinity; drop or fill it")
        seen += len(block)
        if len(block):
            yield block
    if seen == 0:
        raise ValueError(f"{name} cannot be fitted: the stream gave no rows")
