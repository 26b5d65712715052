"""What every reader of a peer's folder gives back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fewfire.autoencoder import Autoencoder
from fewfire.disk import ModelFileError, short
from fewfire.formats import selftest
from fewfire.formats.folding import Dictionary

__all__ = ["Foreign"]


class Foreign(NamedTuple):
    """A peer's model, and everything that its folder said of it."""

    model: Autoencoder
    origin: dict[str, Any]
    """peer, architecture, units of the latents, and its whole configuration: nothing of it is lost in converting"""

    @classmethod
    def finish(
        cls, folder: Path, dictionary: Dictionary, *, peer: str, architecture: str, config: dict[str, Any], units: str
    ) -> Foreign:
        """Build the model, and check it against the folder's self-test.

        Parameters
        ----------
        units
            Of the latents, where the folder does not state them as fewfire's exports do.

        Raises
        ------
        ModelFileError
            It overflows, or does not compute what the self-test says.
        """
        model = dictionary.to_model()
        for name, tensor in model.state_dict().items():
            if not tensor.isfinite().all():
                raise ModelFileError(f"{folder} gives NaN or infinity in {short(name)}; its numbers are out of range")
        selftest.check(folder, model)
        stated = (config.get("metadata") or config).get("fewfire")
        if isinstance(stated, dict) and isinstance(stated.get("latent_units"), str):
            units = stated["latent_units"]
        return cls(model, {"format": peer, "architecture": architecture, "latent_units": units, "config": config})
