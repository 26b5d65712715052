"""From pre-activations to sparse latents. One class a mechanism.

To add one, write one class in a file here and import it below; it owns whatever thresholds or magnitudes it needs
beyond the encoder's bias::

    class AbsTopK(Activation):
        def __init__(self, k=8):
            super().__init__()
            self.k = k

        def forward(self, pre_acts, state=None):
            i = pre_acts.abs().topk(self.k, dim=1).indices
            return torch.zeros_like(pre_acts).scatter(1, i, pre_acts.gather(1, i))

Then ``activation={"name": "abstopk", "k": 4}``, the command line, the model folder, checkpoints and the parametrised
tests know it. What is learned is a Parameter; what is measured (a running threshold) is a buffer, so that saving
the model saves it.
"""

from fewfire.activations.classical import KL_WEIGHT_DECAY, Gaussian, Plain, ReLU, Sigmoid, WinnerTakeAll
from fewfire.activations.family import Activation, threshold_for
from fewfire.activations.gated import Gated
from fewfire.activations.jumprelu import JumpReLU
from fewfire.activations.pursuit import MatchingPursuit
from fewfire.activations.topk import BatchTopK, TopK

__all__ = [
    "KL_WEIGHT_DECAY",
    "Activation",
    "BatchTopK",
    "Gated",
    "Gaussian",
    "JumpReLU",
    "MatchingPursuit",
    "Plain",
    "ReLU",
    "Sigmoid",
    "TopK",
    "WinnerTakeAll",
    "threshold_for",
]
