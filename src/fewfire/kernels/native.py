"""The compiled kernels, called with torch tensors. ``reference.py`` says in plain torch what they compute.

The work is in ``csrc/``, the build in ``building.py``. Threads are as many as torch has here; results do not depend on
them. ctypes lets go of Python's lock, so other threads of Python run meanwhile.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from ctypes import addressof, byref, c_double, c_float, c_int32, c_int64, c_void_p
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fewfire.kernels import loading
from fewfire.kernels.interface import AdamStep, Codes, Loss, Outcome, Weights

__all__ = ["NativeKernels", "native_missing"]

_OUT_OF_MEMORY, _TOO_FEW = -1, 1


class _Adam(ctypes.Structure):
    _fields_ = (
        ("average", c_void_p * 4),
        ("square", c_void_p * 4),
        ("rate", c_float * 4),
        ("root_correction", c_float * 4),
        ("beta1", c_float),
        ("one_minus_beta1", c_float),
        ("beta2", c_float),
        ("one_minus_beta2", c_float),
        ("eps", c_float),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("n", c_int32),
        ("d_in", c_int32),
        ("d_out", c_int32),
        ("unit_norm", c_int32),
        ("W_enc", c_void_p),
        ("b_enc", c_void_p),
        ("W_dec", c_void_p),
        ("b_dec", c_void_p),
    )


class _Batch(ctypes.Structure):
    _fields_ = (("rows", c_int32), ("x_in", c_void_p), ("x", c_void_p))


class _Loss(ctypes.Structure):
    _fields_ = (
        ("n_prefixes", c_int32),
        ("prefix", c_void_p),
        ("slope", c_void_p),
        ("l1", c_float),
        ("threshold", c_void_p),
        ("width", c_float),
        ("step_slope", c_float),
    )


_P, _I, _L, _F = c_void_p, c_int32, c_int64, c_float
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "new": (_P, ()),
    "free": (None, (_P,)),
    "pack": (_I, (_P, _P, _P, _I, _I, _I, _I)),
    "largest": (_I, (_P, _P, _I, _I, _I)),
    "above": (_I, (_P, _P, _I, _P, _I)),
    "keep": (_I, (_P, _L, _P)),
    "entries": (_L, (_P,)),
    "audit": (_F, (_P,)),
    "copy": (None, (_P, _P, _P, _P, _P)),
    "most": (_L, (_P,)),
    "pad": (None, (_P, _L, _P, _P)),
    "reconstruct": (_I, (_P, _P, _P, _P, _P, _P, _P, _P, _P, _I)),
    "left_over": (_I, (_P, _P, _P, _P, _P, _I)),
    "product": (_I, (_P, _P, _I, _P, _I, _I, _P, _I)),
    "join": (_I, (_P, _P, _P, _I, _P, _P, _P)),
    "revive": (_I, (_P, _P, _P, _P, _P, _I, _I, _F, _I, _P, _P, _I)),
    "norm": (_I, (_P, _P, _P, _P, _P, _I)),
    "update": (_I, (_P, _P, _P, _P, _P, _F, _P, _I)),
}


def native_missing() -> str | None:
    """Why there are no compiled kernels; None: there are."""
    return loading.why_not() if loading.isa() == "none" else None


@lru_cache
def _functions(isa: str) -> dict[str, Any]:
    """The library's functions for one instruction set, by their names without it."""
    library: Any = loading.library()
    functions = {}
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, f"fewfire_{name}_{isa}")
        function.restype, function.argtypes = result, arguments
        functions[name] = function
    return functions


class NativeKernels:
    """``Kernels`` in C++, for the best instruction set that this processor has, or another one of the library's.

    Raises
    ------
    RuntimeError
        At construction: there is no library.
    ValueError
        At construction: this processor, or the library, does not have the instruction set. Later: a tensor is not of
        the shape or kind that was expected; a pointer would be read beyond its end.
    """

    def __init__(self, isa: str | None = None, *, round_to_bytes: bool = True) -> None:
        isa = isa or loading.isa()
        if isa == "none":
            raise RuntimeError(f"there are no compiled kernels: {loading.why_not()}")
        if isa not in loading.choices():
            raise ValueError(f"expected one of {', '.join(loading.choices()[:-1])}; got {isa!r}")
        self.isa = isa
        self.round_to_bytes = round_to_bytes
        self._call = _functions(isa)
        self._at = self._call["new"]()
        if self._at is None:
            raise MemoryError
        weakref.finalize(self, self._call["free"], self._at)
        self._kept: tuple[Any, ...] = ()
        self._packed: tuple[Tensor, Tensor] | None = None
        self._n = self._width = 0
        self._weights: Weights | None = None
        self._average: tuple[Tensor, ...] = ()

    def __copy__(self) -> NativeKernels:
        raise TypeError("the memory of compiled kernels cannot be copied; make others")

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeKernels:
        raise TypeError("the memory of compiled kernels cannot be copied; make others")

    def pack(self, W_enc: Tensor, b_enc: Tensor) -> None:
        n, d = W_enc.shape
        pointers = _pointer(W_enc, (n, d)), _pointer(b_enc, (n,))
        self._packed = (W_enc, b_enc)  # the library reads them again, for exact products
        self._n, self._width = n, d
        self._run("pack", *pointers, n, d, self.round_to_bytes, _threads())

    def largest(self, x: Tensor, k: int) -> None:
        self._rows = x.shape[0]
        self._run("largest", _pointer(x, (self._rows, self._width)), self._rows, k, _threads())

    def above(self, x: Tensor, thresholds: Tensor) -> None:
        self._rows = x.shape[0]
        at, where = _pointer(x, (self._rows, self._width)), _pointer(thresholds, (self._n,))
        self._run("above", at, self._rows, where, _threads())

    def keep(self, n: int) -> float | None:
        lowest = c_float()
        return None if self._run("keep", n, byref(lowest)) == _TOO_FEW else lowest.value

    @property
    def audit(self) -> float:
        """The largest share of a bound of the last product's errors that an error was seen to reach."""
        return float(self._call["audit"](self._at))

    def codes(self) -> Codes:
        entries = self._call["entries"](self._at)
        start, latent = torch.empty(self._rows + 1, dtype=torch.int64), torch.empty(entries, dtype=torch.int32)
        z, finite = torch.empty(entries, dtype=torch.float32), torch.empty(self._rows, dtype=torch.bool)
        self._call["copy"](self._at, start.data_ptr(), latent.data_ptr(), z.data_ptr(), finite.data_ptr())
        return Codes(start, latent, z, finite)

    def padded(self) -> tuple[Tensor, Tensor]:
        """The codes as latents (B, K) int64 and values (B, K), K the most of any row, at least 1; filled up with 0."""
        width = max(1, self._call["most"](self._at))
        latent = torch.empty(self._rows, width, dtype=torch.int64)
        z = torch.empty(self._rows, width, dtype=torch.float32)
        self._call["pad"](self._at, width, latent.data_ptr(), z.data_ptr())
        return latent, z

    def reconstruct(self, weights: Weights, x_in: Tensor, x: Tensor, loss: Loss) -> Outcome:
        if weights is not self._weights:
            self._weights, self._model = weights, _model(weights)
        model = self._model
        n_rows = self._rows
        batch = _Batch(n_rows, _pointer(x_in, (n_rows, model.d_in)), _pointer(x, (n_rows, model.d_out)))
        n_prefixes = len(loss.prefixes)
        if model.n != self._n or model.d_in != self._width or loss.prefixes[-1] != model.n:
            raise ValueError(f"expected weights and prefixes of the {self._n} latents that were packed")
        prefixes, slopes = (c_int32 * n_prefixes)(*loss.prefixes), (c_float * n_prefixes)(*loss.slopes)
        threshold = None if loss.threshold is None else _pointer(loss.threshold, (model.n,))
        beginnings = addressof(prefixes), addressof(slopes)
        objective = _Loss(n_prefixes, *beginnings, loss.l1, threshold, loss.width, loss.step_slope)
        # the calls that follow read all of this again
        self._kept = (weights, x_in, x, loss, prefixes, slopes)
        self._given = (byref(model), byref(batch), byref(objective))
        errors, active, total, self._largest = (c_double * n_prefixes)(), c_int64(), c_double(), c_double()
        fired = torch.empty(model.n, dtype=torch.bool)
        answers = (errors, fired.data_ptr(), byref(active), byref(total), byref(self._largest))
        self._run("reconstruct", *self._given, *answers, _threads())
        return Outcome(list(errors), fired, active.value, total.value, self._largest.value)

    def left_over(self) -> Tensor:
        out = torch.empty(self._rows, self._model.d_out, dtype=torch.float32)
        self._run("left_over", *self._given, out.data_ptr(), _threads())
        return out

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        (m, d), n = a.shape, len(b)
        out = torch.empty(m, n, dtype=torch.float32)
        self._run("product", _pointer(a, (m, d)), m, _pointer(b, (n, d)), n, d, out.data_ptr(), _threads())
        return out

    def join(self, latents: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> None:
        n, model = len(latents), self._model
        shapes = ((W_enc, (n, model.d_in)), (b_enc, (n,)), (W_dec, (n, model.d_out)))
        pointers = [_pointer(tensor, shape) for tensor, shape in shapes]
        self._kept += (W_enc, b_enc, W_dec)
        self._run("join", self._given[0], _pointer(latents, (n,), torch.int32), n, *pointers)

    def revive(self, dead: Tensor, k: int, slope: float) -> tuple[float, float]:
        error = c_double()
        asked = (_pointer(dead, (len(dead),), torch.int32), len(dead), k, slope, self.round_to_bytes)
        self._run("revive", *self._given, *asked, byref(error), byref(self._largest), _threads())
        return error.value, self._largest.value

    def norm(self) -> float:
        norm = c_double()
        self._run("norm", *self._given, byref(norm), _threads())
        return norm.value

    def update(self, adam: AdamStep, factor: float, threshold_gradient: Tensor | None) -> None:
        if adam.average is not self._average:
            self._average, self._adam = adam.average, _adam(adam)
        settings = self._adam
        for i, t in enumerate(adam.steps):
            settings.rate[i] = adam.lr / (1 - adam.beta1**t)
            settings.root_correction[i] = 1 / math.sqrt(1 - adam.beta2**t)
        to = None if threshold_gradient is None else _pointer(threshold_gradient, (self._n,))
        self._run("update", *self._given, byref(settings), factor, to, _threads())

    def _run(self, name: str, *arguments: Any) -> int:
        code: int = self._call[name](self._at, *arguments)
        if code == _OUT_OF_MEMORY:
            raise MemoryError(f"the compiled kernels ran out of memory ({name})")
        return code


def _pointer(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
    """Where a tensor's numbers lie.

    Raises
    ------
    ValueError
        They are others than the library will read.
    """
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        kind = f"{tensor.dtype} on {tensor.device}" + ("" if tensor.is_contiguous() else ", not contiguous")
        raise ValueError(
            f"expected {dtype} of shape {shape}, contiguous, on the CPU; got {tuple(tensor.shape)}, {kind}"
        )
    return tensor.data_ptr()


def _model(weights: Weights) -> _Model:
    (n, d_in), d_out = weights.W_enc.shape, weights.W_dec.shape[1]
    shapes = ((n, d_in), (n,), (n, d_out), (d_out,))
    pointers = (_pointer(tensor, shape) for tensor, shape in zip(weights[:4], shapes, strict=True))
    return _Model(n, d_in, d_out, weights.unit_norm, *pointers)


def _adam(adam: AdamStep) -> _Adam:
    """All but the numbers of the step."""
    return _Adam(
        (c_void_p * 4)(*(tensor.data_ptr() for tensor in adam.average)),
        (c_void_p * 4)(*(tensor.data_ptr() for tensor in adam.square)),
        beta1=adam.beta1,
        one_minus_beta1=1 - adam.beta1,
        beta2=adam.beta2,
        one_minus_beta2=1 - adam.beta2,
        eps=adam.eps,
    )


def _threads() -> int:
    return torch.get_num_threads()
