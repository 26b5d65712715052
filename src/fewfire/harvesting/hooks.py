"""Listening to layers: plain forward hooks, and nothing computed behind the last one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Listener", "layer_tree"]

Take = Callable[[str, Tensor], None]
"""(layer, what it put out): called while the forward pass stands still, so that it may copy what it needs"""


class _Enough(BaseException):
    """Every layer has been heard. Not an Exception, which a model may catch."""


class Listener:
    """Hears what some layers of a model put out, in one forward pass, which ends behind the last of them.

    A layer that is called several times in a pass is heard the first time. While it listens, the model is in
    evaluation mode; afterwards every module is in the mode it was in.

    Parameters
    ----------
    model
        Any torch module.
    layers
        Names as in ``model.named_modules()``, such as "encoder.layer.3".

    Raises
    ------
    ValueError
        A name is not a module's; the message lists those like it. Or a name comes twice, or there is none.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        self.model, self.layers = model, list(layers)
        modules = dict(model.named_modules())
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"expected one or more different layers, got {', '.join(self.layers) or 'none'}")
        for name in self.layers:
            if name not in modules or not name:
                raise ValueError(f"the model has no layer {name!r:.80}; {_near(name, modules)}")
        self._modules = {name: modules[name] for name in self.layers}

    @contextmanager
    def listening(self) -> Iterator[Callable[[Any, Take], None]]:
        """What runs the model on one input, ``run(inputs, take)``.

        A mapping is given to the model as keywords, a tuple as arguments, anything else as its one argument.

        Raises
        ------
        ValueError
            From ``run``: a layer took no part in the pass, or put out something else than a tensor.
        """
        heard: set[str] = set()
        taking: list[Take] = []

        def hook(name: str) -> Callable[..., None]:
            def listen(module: nn.Module, args: Any, output: Any) -> None:
                if name not in heard and taking:
                    heard.add(name)
                    taking[0](name, _tensor_of(output, name))
                    if len(heard) == len(self.layers):
                        raise _Enough

            return listen

        def run(inputs: Any, take: Take) -> None:
            heard.clear()
            taking[:] = [take]
            try:
                _call(self.model, inputs)
            except _Enough:
                return
            finally:
                taking.clear()
            silent = next(name for name in self.layers if name not in heard)
            raise ValueError(f"the layer {silent!r:.80} takes no part in the model's forward pass; choose another")

        modes = [(module, module.training) for module in self.model.modules()]
        hooks = [module.register_forward_hook(hook(name)) for name, module in self._modules.items()]
        self.model.eval()
        try:
            with torch.inference_mode():
                yield run
        finally:
            for handle in hooks:
                handle.remove()
            for module, mode in modes:
                module.training = mode


def layer_tree(model: nn.Module) -> list[str]:
    """A line for each layer: its name and its class, runs of like ones folded into the first."""
    return [f"{name:<44} {type(module).__name__}" for name, module in model.named_modules() if name]


def _call(model: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        model(**inputs)
    elif isinstance(inputs, tuple | list):
        model(*inputs)
    else:
        model(inputs)


def _tensor_of(output: Any, name: str) -> Tensor:
    """The hidden states: the output itself, or the first of several, as transformers give them."""
    first = output
    if isinstance(output, Mapping):
        first = next(iter(output.values()), None)
    elif isinstance(output, tuple | list) and output:
        first = output[0]
    if not isinstance(first, Tensor) or not first.is_floating_point():
        what = f"a tensor of {first.dtype}" if isinstance(first, Tensor) else f"a {type(first).__name__}"
        raise ValueError(f"the layer {name!r:.80} puts out {what}, expected a tensor of real numbers; choose another")
    return first


def _near(name: str, modules: Mapping[str, Any]) -> str:
    """The end of a refusal: layers with such a name."""
    names = [known for known in modules if known]
    near = [known for known in names if name and known.endswith(f".{name}")][:3]
    near += [known for known in difflib.get_close_matches(name, names, 5) if known not in near]
    said = f"near it: {', '.join(near[:5])}" if near else f"it begins with {', '.join(names[:3])}"
    return f"{said:.220}; --layer list shows all {len(names):,}"
