"""Peers' files, both ways: one module a peer, with ``read(path) -> Autoencoder`` and ``write(model, path)``.

::

    saelens               cfg.json, sae_weights.safetensors
    dictionary_learning   config.json, ae.pt
    sparsify              cfg.json, sae.safetensors

Reading keeps strict accounts: a key or tensor that is not understood is an error, and so is one that is missing. What
a peer's own ``encode`` gives, the model read gives. Writing folds the preprocess into the weights, so that the peer's
model takes rows of data; the latents stay in the units of ours. Every folder written holds a self-test, rows with
their latents and reconstructions, which is checked before the folder gets its name and whenever it is read here.

To add a peer: a module with CONFIG, WEIGHTS, ``open_folder``, ``read`` and ``write``, and its name in PEERS.
"""

from types import ModuleType

from fewfire.formats import dictionary_learning, saelens, sparsify
from fewfire.formats.foreign import Foreign

__all__ = ["PEERS", "Foreign"]

PEERS: dict[str, ModuleType] = {
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
}
