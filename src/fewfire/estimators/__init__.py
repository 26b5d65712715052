"""The scikit-learn face: an Autoencoder, its Terms and a Trainer behind ``fit`` and ``transform``.

One class an estimator, one file each. To add one, subclass :class:`AutoencoderEstimator` (``family.py``) and say what
it builds differently::

    class MyAutoencoder(AutoencoderEstimator):
        def _make_corruption(self):
            return Masking(0.5)

With parameters of its own it lists all of them in ``__init__``, as scikit-learn asks, and in
``_parameter_constraints``. Then one line in ``tests/test_estimators.py`` puts it through scikit-learn's checks.
"""

from fewfire.estimators.family import AutoencoderEstimator
from fewfire.estimators.sparse_autoencoder import SparseAutoencoder

__all__ = ["AutoencoderEstimator", "SparseAutoencoder"]
