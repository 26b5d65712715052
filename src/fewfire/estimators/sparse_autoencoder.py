"""The sparse autoencoder as a scikit-learn transformer."""

from __future__ import annotations

from fewfire.estimators.family import AutoencoderEstimator

__all__ = ["SparseAutoencoder"]


class SparseAutoencoder(AutoencoderEstimator):
    """A dictionary of features, few of which fire on any row.

    ::

        sae = SparseAutoencoder(n_components=512, k=16, random_state=0).fit(X)
        Z = sae.transform(X)            # (n, 512), at most 16 of each row not 0
        X_hat = sae.inverse_transform(Z)

    With ``activation="topk"`` every row keeps its ``k`` largest latents (Gao et al. 2024), with ``"batchtopk"`` k on
    average; ``"jumprelu"`` and ``"gated"`` learn which latents shall fire, ``target_l0`` of them; ``"sigmoid"`` is the
    textbook's KL-sparse autoencoder (Ng 2011, CS294A), ``"relu"`` the L1-sparse one.

    Parameters
    ----------
    n_components
        Number of latents; None: four times the columns, at most 16,384, and of wide rows as many as make 2**22
        weights (1,365 for 3,072 columns).
    activation
        "topk", "batchtopk", "jumprelu", "gated", "sigmoid", "relu" or another of ``Activation.registry``;
        ``{"name": "topk", "k": 4}``; or an instance.
    k
        Latents that fire per row, with "topk", "batchtopk" or "matching_pursuit". None: a sixteenth of them, at least
        1.
    loss
        "mse", or "bce": cross-entropy, for values that are shares or probabilities.
    penalty
        What makes latents sparse: "kl" (sigmoid units only), "l1", or "auto": "kl" for sigmoid units, "l1" for
        rectified and gated ones, their number for "jumprelu", none where k fire. None: nothing but the loss, nor what
        keeps top-k latents alive.
    penalty_weight
        None: the penalty's own default (kl 3, l1 1), a tenth of it with ``loss="bce"``. With ``target_l0`` it is where
        the weight starts from.
    rho
        Mean activation that "kl" aims at. None: 0.05.
    target_l0
        Latents that shall fire per row on average; of sigmoid units, the sum of their mean activations. Thresholds and
        the penalty are steered there while training. Where a k says it, set that. ``partial_fit`` gets there in about
        1,500 steps.
    weight_decay
        Weight of half the sum of squared weights. None: 0.003 beside "kl", which needs it, a tenth of that with
        ``loss="bce"``, else 0.
    hidden
        Widths of layers between columns and latents, such as ``(128,)``; the decoder mirrors them. None: none.
    tied
        The decoder uses the encoder's weights. "matching_pursuit" does in any case, without hidden layers.
    preprocess
        Applied to the rows first, and undone in reconstructions: "standardize", "minmax", "whiten", None, or another
        spelling that ``fewfire.preprocess`` knows. With ``loss="bce"`` the default is "minmax": targets lie in [0, 1].
    batch_size
        Rows a step. None: 256; with "lbfgs" all rows.
    max_epochs
        Passes over the rows. None: for as many steps as there are rows, at least 300 and at most 1,500, or one pass if
        that is longer; with "lbfgs" 400 iterations.
    learning_rate
        None: 0.004 for adam, falling with the square root of the latents beyond 256; 1 for lbfgs.
    optimizer
        "adam", or "lbfgs": full batches of data in memory.
    validation_fraction
        Share of the rows held out. If above 0, training ends when their loss gets no better, with the best weights.
    dtype
        Of the weights, "float32" or "float64"; "bfloat16": float32 weights, multiplied in bfloat16 while training.
        Whatever it is, float64 rows are transformed in float64.
    device
        "auto": the GPU if there is one; "cpu", "cuda", "cuda:1".
    random_state
        Of first weights and the order of rows: an int, a RandomState, or None for another result each time.
    sparse_output
        ``transform`` gives a ``scipy.sparse.csr_array``.
    verbose
        Show a progress bar.

    Attributes
    ----------
    components_
        (n_components, columns) what each latent adds to a reconstruction, in the units of the data.
    n_features_in_, feature_names_in_
        Number and names of the columns; names only where ``fit`` saw some.
    n_iter_
        Passes over the rows that training made.
    history_
        Records of training: step, loss, its terms, l0; ``val_loss`` of held-out rows. ``fewfire.plot.history`` draws
        them.
    module_
        The :class:`fewfire.Autoencoder` inside.

    Warns
    -----
    SparsityWarning
        The penalty did not do its work, or most latents never fire.
    """
