"""The denoising autoencoder as a scikit-learn transformer."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from fewfire import metrics
from fewfire.contracts import Source
from fewfire.corruptions import Corruption
from fewfire.estimators import building
from fewfire.estimators.constraints import SHARED, not_negative
from fewfire.estimators.family import AutoencoderEstimator
from fewfire.estimators.inputs import checked_clean, names_data
from fewfire.rows import as_rows

__all__ = ["DenoisingAutoencoder"]


class DenoisingAutoencoder(AutoencoderEstimator):
    """Rebuilds clean rows from noisy ones; its features are those that survive noise.

    ::

        dae = DenoisingAutoencoder(noise="masking", noise_level=0.25, random_state=0).fit(X)
        X_clean = dae.reconstruct(X_noisy)

        dae.fit(X_noisy, clean=X_clean)         # pairs that were measured, in place of noise that is made up

    In every step each row gets fresh noise, and the loss compares the reconstruction with the row as it was. Vincent
    et al. 2010, "Stacked denoising autoencoders". The latents are the only way through: unlike a network with skip
    connections, it can pass on no more than its features say.

    Parameters
    ----------
    noise
        "gaussian": added to every value; "masking": values set to 0, the mean of a standardised column;
        "salt_and_pepper": values set to the lowest or the highest; or a ``Corruption``, with its level. Applied after
        ``preprocess``.
    noise_level
        Standard deviation of "gaussian", in standard deviations of a column when these are standardised; share of
        the values with the others. None: 0.3 for "gaussian", else 0.25, or the level of the ``Corruption``, in whose
        place any other stands.

    Notes
    -----
    All other parameters, and the attributes, are those of :class:`SparseAutoencoder`. Few columns, or hardly related
    ones, leave little to tell noise from signal by.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **SHARED,
        "noise": [str, dict, Corruption],
        "noise_level": [not_negative, None],
    }

    def __init__(
        self,
        n_components: int | None = None,
        *,
        noise: Any = "gaussian",
        noise_level: float | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(n_components, **shared)
        self.noise = noise
        self.noise_level = noise_level

    def fit(self, X: Any, y: Any = None, *, clean: Any = None) -> Self:
        """Learn to rebuild the rows of ``X`` from noisy copies; or the rows of ``clean`` from those of ``X``.

        Parameters
        ----------
        X
            (n, columns): as for :class:`SparseAutoencoder`. With ``clean``, the noisy rows, in memory. A Source of
            pairs (``ArraySource(noisy, clean)``) carries both.
        y
            Ignored; here for pipelines.
        clean
            (n, columns): row i is what row i of ``X`` would be without noise. No other noise is added.

        Raises
        ------
        TypeError, ValueError, TrainingError
            As :class:`SparseAutoencoder`; or ``clean`` does not fit ``X``, or pairs came with a ``noise_level``.
        """
        return self._fit(X, clean)

    def partial_fit(self, X: Any, y: Any = None, *, clean: Any = None) -> Self:
        """One pass over ``X``, or over the pairs of ``X`` and ``clean``; see :class:`SparseAutoencoder`."""
        return self._partial_fit(X, clean)

    def score(self, X: Any, y: Any = None, *, clean: Any = None) -> float:
        """Explained variance of what is rebuilt from ``X``: of ``clean`` if given, else of ``X`` itself."""
        if clean is None:
            return super().score(X)
        recon = self.reconstruct(X)
        clean = checked_clean(self, clean, recon.shape)
        return metrics.explained_variance(as_rows(clean), as_rows(recon))

    def _source(self, X: Any, target: Any = None, *, reset: bool, min_rows: int = 1) -> Source:
        if target is None:
            return super()._source(X, None, reset=reset, min_rows=min_rows)
        if names_data(X):
            raise ValueError(
                "clean goes with rows in memory, X says where they are; give a Source of pairs, such as "
                "fewfire.ArraySource(noisy, clean), or memory-mapped arrays"
            )
        source = super()._source(X, None, reset=reset, min_rows=min_rows)
        target = checked_clean(self, target, (source.n_rows or 0, self.n_features_in_))
        return super()._source(X, target, reset=reset, min_rows=min_rows)

    def _make_corruption(self, source: Source) -> Corruption | None:
        if building.has_pairs(source):
            if self.noise_level is not None:
                raise ValueError(
                    f"noise_level={self.noise_level:g} is of noise that is made up, and these rows come in pairs, "
                    "noisy and clean; leave it out"
                )
            return None
        made = Corruption.from_config(self.noise)
        if self.noise_level is None:
            return made
        return Corruption.from_config({**made.config(), "level": float(self.noise_level)})
