"""The work of a training step on sparse codes, compiled and in plain torch; how the compiled one is built and found."""

from fewfire.kernels.interface import AdamStep, Codes, Kernels, Loss, Outcome, Weights
from fewfire.kernels.native import NativeKernels, native_missing
from fewfire.kernels.reference import ReferenceKernels

__all__ = [
    "AdamStep",
    "Codes",
    "Kernels",
    "Loss",
    "NativeKernels",
    "Outcome",
    "ReferenceKernels",
    "Weights",
    "native_missing",
]
