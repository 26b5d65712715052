"""The activations of a model, as data: plain forward hooks, any torch module, an activation store at the end.

``harvest`` is the one entry. What the model is given comes from a **Feed**: texts through a tokenizer (``text.py``),
or batches as the caller has them (``batches.py``). ``hooks.py`` listens to the layers, ``fewfire.store`` keeps rows.
"""

from fewfire.harvesting.documents import Document, read_documents
from fewfire.harvesting.harvest import harvest
from fewfire.harvesting.hooks import Listener, layer_tree
from fewfire.harvesting.pretrained import Pretrained, find_model, load_model

__all__ = [
    "Document",
    "Listener",
    "Pretrained",
    "find_model",
    "harvest",
    "layer_tree",
    "load_model",
    "read_documents",
]
