"""The scikit-learn face: an Autoencoder, its Terms and a Trainer behind ``fit`` and ``transform``.

One class an estimator, one file each. To add one, subclass :class:`AutoencoderEstimator` (``family.py``) and say what
it builds differently::

    class MyAutoencoder(AutoencoderEstimator):
        def _make_corruption(self, source):
            return Masking(0.5)

Parameters of its own it takes in ``__init__`` before ``**shared``, and says in ``_parameter_constraints`` what they may
be. Then a line in ``tests/test_estimator_checks.py`` puts it through scikit-learn's checks.
"""

from fewfire.estimators.anomaly_detector import AnomalyDetector
from fewfire.estimators.contractive_autoencoder import ContractiveAutoencoder
from fewfire.estimators.convolutional_autoencoder import ConvolutionalAutoencoder
from fewfire.estimators.denoising_autoencoder import DenoisingAutoencoder
from fewfire.estimators.family import AutoencoderEstimator
from fewfire.estimators.sparse_autoencoder import SparseAutoencoder
from fewfire.estimators.variational_autoencoder import VariationalAutoencoder

__all__ = [
    "AnomalyDetector",
    "AutoencoderEstimator",
    "ContractiveAutoencoder",
    "ConvolutionalAutoencoder",
    "DenoisingAutoencoder",
    "SparseAutoencoder",
    "VariationalAutoencoder",
]
