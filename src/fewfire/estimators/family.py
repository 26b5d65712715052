"""What every autoencoder estimator is: parameters, ``fit``, ``transform`` and back, as scikit-learn has them."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from fewfire.activations import Activation
from fewfire.autoencoder import CHUNK, Autoencoder
from fewfire.contracts import Layout, Source, did_you_mean
from fewfire.corruptions import Corruption
from fewfire.estimators import building, saving
from fewfire.estimators.constraints import SHARED, check_parameters
from fewfire.estimators.inputs import (
    checked_codes,
    checked_rows,
    names_data,
    open_data,
    output_dtype,
    source_over,
)
from fewfire.estimators.training import MAX_RECORDS, FitTrainer, Stream, StreamTrainer, thinned
from fewfire.evaluation import evaluate
from fewfire.rows import check_finite
from fewfire.terms import Term
from fewfire.trainer import TrainConfig, Trainer

__all__ = ["AutoencoderEstimator"]

VALUES_AT_ONCE = 1 << 22
"""rows of a block times their columns or latents: 16 to 32 MiB"""


class AutoencoderEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What the autoencoder estimators share. The parameters are those of :class:`SparseAutoencoder`.

    A subclass overrides what it builds differently: one of the ``_make`` methods. Parameters of its own it takes
    before ``**shared``, hands the others on, and adds its own to ``_parameter_constraints``.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = SHARED
    _stream: Stream | None = None

    def __init_subclass__(cls, **settings: Any) -> None:
        """Spell out what ``**shared`` stands for: scikit-learn, ``help`` and editors read it off the signature."""
        own = inspect.signature(cls.__init__)
        if any(p.kind is p.VAR_KEYWORD for p in own.parameters.values()):
            inherited = inspect.signature(super(cls, cls).__init__).parameters
            merged = {**inherited, **{n: p for n, p in own.parameters.items() if p.kind is not p.VAR_KEYWORD}}
            in_order = sorted(merged.values(), key=lambda p: (p.kind, p.name not in inherited))
            cls.__init__.__signature__ = own.replace(parameters=in_order)  # type: ignore[attr-defined]
        # of the class itself: else help and editors would show the signature of __new__
        merged_or_own = list(inspect.signature(cls.__init__).parameters.values())
        cls.__signature__ = inspect.Signature(merged_or_own[1:])
        super().__init_subclass__(**settings)

    def __new__(cls, *args: Any, **parameters: Any) -> Self:
        """Refuse a parameter that there is not; Python would name the class that all inherit from, and none near it."""
        known = inspect.signature(cls.__init__).parameters
        unknown = next((name for name in parameters if name not in known), None)
        if unknown is not None:
            raise TypeError(f"{cls.__name__} has no parameter {unknown!r}{did_you_mean(unknown, known)}")
        return cast(Self, super().__new__(cls))

    def __init__(
        self,
        n_components: int | None = None,
        *,
        activation: Any = "topk",
        k: int | None = None,
        loss: str = "mse",
        penalty: str | None = "auto",
        penalty_weight: float | None = None,
        rho: float | None = None,
        target_l0: float | None = None,
        weight_decay: float | None = None,
        hidden: Sequence[int] | None = None,
        tied: bool = False,
        preprocess: Any = "standardize",
        batch_size: int | None = None,
        max_epochs: int | None = None,
        learning_rate: float | None = None,
        optimizer: str = "adam",
        validation_fraction: float = 0.0,
        dtype: str = "float32",
        device: str = "auto",
        random_state: Any = None,
        sparse_output: bool = False,
        verbose: bool = False,
    ) -> None:
        self.n_components = n_components
        self.activation = activation
        self.k = k
        self.loss = loss
        self.penalty = penalty
        self.penalty_weight = penalty_weight
        self.rho = rho
        self.target_l0 = target_l0
        self.weight_decay = weight_decay
        self.hidden = hidden
        self.tied = tied
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.validation_fraction = validation_fraction
        self.dtype = dtype
        self.device = device
        self.random_state = random_state
        self.sparse_output = sparse_output
        self.verbose = verbose

    # ------------------------------------------------------------------------------ what a subclass may change

    def _make_model(self, source: Source, seed: int) -> Autoencoder:
        activation = building.make_activation(self)
        return Autoencoder(
            source.row_shape,
            self._n_latents(source.row_shape),
            activation,
            network=self._make_network(activation, source),
            preprocess=self._make_preprocess(source),
            preprocess_out=self._make_preprocess(source) if building.has_pairs(source) else None,
            layout=self._layout_of(source),
            seed=seed,
        )

    def _layout_of(self, source: Source) -> Layout:
        """How a person, and a convolution, sees a row of this source."""
        return source.layout

    def _n_latents(self, row_shape: tuple[int, ...]) -> int:
        return building.n_latents(self, row_shape)

    def _make_network(self, activation: Activation, source: Source) -> dict[str, Any]:
        return building.make_network(self, activation, self.hidden)

    def _make_preprocess(self, source: Source) -> Any:
        return building.make_preprocess(self)

    def _make_terms(self, model: Autoencoder) -> list[Term]:
        return building.make_terms(self, model)

    def _usual_terms(self, activation: Activation) -> list[Term]:
        """What ``penalty="auto"`` stands for."""
        return activation.default_terms()

    def _make_corruption(self, source: Source) -> Corruption | None:
        return None

    def _fit_config(self, source: Source, model: Autoencoder, seed: int) -> TrainConfig:
        return building.fit_config(self, source.n_rows or 1, model, seed)

    def _flat(self, X: Any, *, reset: bool) -> Any:
        """``X`` as rows of columns, if it may come in another shape."""
        return X

    def _layout(self, width: int) -> Layout:
        """How a person, and a convolution, sees a row of so many columns."""
        return Layout(columns=tuple(map(str, getattr(self, "feature_names_in_", ()))))

    # ------------------------------------------------------------------------------ training

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn features of the rows of ``X``.

        Parameters
        ----------
        X
            (n, columns): an array, list, DataFrame, tensor or scipy sparse matrix, or whatever ``open_source`` takes,
            such as the path of a file larger than memory. It is never written to.
        y
            Ignored; here for pipelines.

        Raises
        ------
        TypeError, ValueError
            The rows are not finite real numbers; or a parameter is not what it may be, or was set and cannot apply. The
            estimator is then as it was before.
        TrainingError
            A step was not finite.
        """
        return self._fit(X)

    def _fit(self, X: Any, target: Any = None) -> Self:
        with self._restored_on_failure():
            check_parameters(self)
            source = self._source(X, target, reset=True, min_rows=2)
            seed = building.draw_seed(self.random_state)
            source, held_out = building.hold_out(self, source, seed)
            model = self._new_model(source, seed)
            config = self._fit_config(source, model, seed)
            trainer = self._trainer(FitTrainer, model, source, config, held_out)
            history = trainer.fit()
            self.n_iter_ = math.ceil(trainer.state.step / (trainer.steps_per_epoch or 1))
            self.history_ = [record for record in history if "loss" in record or "val_loss" in record]
            self._stream = None
            self._adopt(trainer)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """One pass over ``X``, from where the last call ended, at a constant learning rate.

        The first call decides what stays: the columns, the model and what the preprocessing learns. So its rows should
        be like those to come, some hundreds of them; at least 2. The order of rows is drawn within a call. After
        ``fit``, the fitted model is trained further, with the optimiser started afresh. ``max_epochs`` is not used.

        The estimator, pickled between two calls, goes on with the same bits.

        Raises
        ------
        TypeError, ValueError, TrainingError
            As ``fit``; or ``optimizer`` or ``validation_fraction`` cannot apply.
        """
        return self._partial_fit(X)

    def _partial_fit(self, X: Any, target: Any = None) -> Self:
        fresh = not hasattr(self, "module_")
        with self._restored_on_failure():
            check_parameters(self)
            source = self._source(X, target, reset=fresh, min_rows=2 if fresh else 1)
            stream = self._stream or Stream(building.draw_seed(self.random_state))
            # a copy, so that a call that fails half-way leaves no trace
            model = self._new_model(source, stream.seed) if fresh else copy.deepcopy(self.module_)
            config = building.stream_config(self, model, stream.next_seed())
            trainer = self._trainer(StreamTrainer, model, source, config)
            stream.enter(trainer)
            history = trainer.fit()
            stream.leave(trainer)
            self._stream = stream
            self.n_iter_ = getattr(self, "n_iter_", 0) + 1
            last = next(record for record in reversed(history) if "loss" in record)
            records = [*getattr(self, "history_", []), {**last, "step": stream.steps}]
            self.history_ = thinned(records, MAX_RECORDS)
            self._adopt(trainer)
        return self

    def _new_model(self, source: Source, seed: int) -> Autoencoder:
        model = self._make_model(source, seed)
        building.start(model, source, self._make_terms(model), seed, self.target_l0)
        return model

    def _trainer(
        self,
        kind: type[Trainer],
        model: Autoencoder,
        source: Source,
        config: TrainConfig,
        held_out: Source | None = None,
    ) -> Trainer:
        return kind(
            model,
            source,
            self._make_terms(model),
            config,
            validation=held_out,
            corruption=self._make_corruption(source),
            progress=None if self.verbose else False,
        )

    def _adopt(self, trainer: Trainer) -> None:
        for parameter in trainer.model.parameters():
            parameter.grad = None
        self.module_ = trainer.model

    @contextmanager
    def _restored_on_failure(self) -> Iterator[None]:
        """What is not finished leaves the estimator as it was."""
        before = self.__dict__.copy()
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    # ------------------------------------------------------------------------------ there and back

    def transform(self, X: Any) -> Any:
        """Latents of each row.

        Parameters
        ----------
        X
            As in ``fit``.

        Returns
        -------
        array or scipy.sparse.csr_array of shape (n, n_components)
            float32 for float32 rows, else float64, computed in that precision; rows of a file as it is read
            (docs/data.md). A row alone has the bits it has in any batch.
        """
        n_rows, rows = self._read(X)
        codes = (model.encode(x).flatten(1) for model, x in rows)
        return _as_csr(codes, n_rows, self._n_features_out) if self.sparse_output else _as_array(codes, n_rows)

    def inverse_transform(self, Z: Any) -> npt.NDArray[Any]:
        """Rows from latents: (n, n_components), dense or sparse, -> (n, columns) in the units of the data.

        A preprocessing that takes something from each row, such as "row_mean" its mean, cannot give it back here;
        ``reconstruct`` does.
        """
        check_is_fitted(self)
        Z = checked_codes(self, Z, self._n_features_out)
        model = self._model(output_dtype(Z))

        def blocks() -> Iterator[Tensor]:
            step = self._rows_at_once()
            for first in range(0, Z.shape[0], step):
                block = Z[first : first + step]
                dense = block if isinstance(block, np.ndarray) else block.toarray()
                yield model.decode(np.ascontiguousarray(dense).reshape(-1, *model.latent_shape)).flatten(1)

        return _as_array(blocks(), Z.shape[0])

    def reconstruct(self, X: Any) -> npt.NDArray[Any]:
        """What the model makes of each row: (n, columns), dense, in the units of the data."""
        n_rows, rows = self._read(X)
        return _as_array((model.reconstruct(x).flatten(1) for model, x in rows), n_rows)

    def score(self, X: Any, y: Any = None) -> float:
        """Explained variance of the reconstructions, as ``fewfire.evaluate`` measures it: 1 is perfect, 0 the mean.

        It weighs columns by their variance; ``evaluate(...)["fvu_columns"]`` gives all the same say.
        """
        source, dtype = self._checked(X)
        return evaluate(self._model(dtype), source)["explained_variance"]

    # ------------------------------------------------------------------------------ what was learned

    @property
    def components_(self) -> npt.NDArray[np.float64]:
        """(n_components, columns): what each latent adds to a reconstruction, in the units of the data.

        The reconstruction for latent j at 1 and the others at 0, less that for all at 0. With a linear decoder, and so
        by default, ``Z @ components_ + reconstruction of zeros`` is ``inverse_transform(Z)``; behind hidden layers, or
        with ``loss="bce"``, it is the response to one latent alone.
        """
        check_is_fitted(self)
        model = self._model(torch.float64)
        with torch.no_grad():
            written = _dictionary(model) if "linear_decoder" in model.gives else _responses(model, self._rows_at_once())
        return cast(npt.NDArray[np.float64], written.flatten(1).cpu().numpy())

    @property
    def _n_features_out(self) -> int:
        return math.prod(self.module_.latent_shape)

    # ------------------------------------------------------------------------------ on disk

    def save(self, path: str | Path) -> None:
        """Write a model folder: weights, preprocessing, parameters and what was learned, in one verified file.

        ``load`` gives an estimator whose ``transform`` has the same bits; ``fewfire.load`` gives ``module_`` alone. A
        RandomState is saved as None, ``history_`` as at most 200 records, and what ``partial_fit`` keeps of the
        optimiser not at all: pickle keeps everything.

        Raises
        ------
        ValueError
            A parameter or the names of the columns cannot be saved.
        OSError
            The disk refused; a model that was there is untouched.
        """
        check_is_fitted(self)
        saving.write(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The estimator that ``save`` wrote; also one around a model that the command line trained.

        Raises
        ------
        FileNotFoundError
            There is no model at ``path``.
        ModelFileError
            It is damaged, too new, or another estimator's.
        """
        return cast(Self, saving.read(cls, path))

    @classmethod
    def _parameters_of(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Parameters with which ``fit`` would build such a model (``Autoencoder.config``); None: there are none."""
        network = config["network"]
        if network["name"] not in ("linear", "mlp"):
            return None
        return {
            "n_components": config["n_latents"],
            "activation": config["activation"],
            "loss": "bce" if network["output"] == "sigmoid" else "mse",
            "hidden": tuple(network["hidden"]) if "hidden" in network else None,
            "tied": network["tied"],
            "preprocess": config["preprocess"],
        }

    def __getstate__(self) -> dict[str, Any]:
        """On the CPU, so that a machine without a GPU can read it. ``module_.to("cuda")`` brings the model back."""
        state: dict[str, Any] = dict(super().__getstate__())  # which may be the estimator's own __dict__
        if "module_" in state and state["module_"].device.type != "cpu":
            state["module_"] = copy.deepcopy(state["module_"]).cpu()
        if state.get("_stream") is not None:
            state["_stream"] = state["_stream"].on_cpu()
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    # ------------------------------------------------------------------------------ private

    def _source(self, X: Any, target: Any = None, *, reset: bool, min_rows: int = 1) -> Source:
        """Rows to train on, and what to make of them if that is not themselves, as a Source."""
        if names_data(X):
            return open_data(self, X, reset=reset)
        X = checked_rows(self, self._flat(X, reset=reset), reset=reset, min_rows=min_rows)
        if not reset:
            return source_over(X, self.module_.input_shape, self.module_.layout, target)
        layout = self._layout(X.shape[1])
        return source_over(X, layout.shape or X.shape[1:], layout, target)

    def _checked(self, X: Any) -> tuple[Source, torch.dtype]:
        """Rows to apply the model to, as a Source, and the precision to compute in."""
        check_is_fitted(self)
        if names_data(X):
            source = open_data(self, X, reset=False)
            return source, next(iter(source.batches(1, shuffle=False))).x_in.dtype
        X = checked_rows(self, self._flat(X, reset=False), reset=False)
        return source_over(X, self.module_.input_shape, self.module_.layout), output_dtype(X)

    def _read(self, X: Any) -> tuple[int, Iterator[tuple[Autoencoder, Tensor]]]:
        """Number of rows, and the model with one block of them after the other, in the precision to compute in."""
        source, dtype = self._checked(X)
        model = self._model(dtype)

        def blocks() -> Iterator[tuple[Autoencoder, Tensor]]:
            for batch in source.batches(self._rows_at_once(), shuffle=False):
                check_finite(batch.x_in, "X", batch.rows, source.layout.columns)
                yield model, batch.x_in.to(dtype).reshape(-1, *model.input_shape)

        return cast(int, source.n_rows), blocks()

    def _model(self, dtype: torch.dtype) -> Autoencoder:
        """The model in this precision; a copy where it was trained in another."""
        model: Autoencoder = self.module_
        return model if model.dtype == dtype else copy.deepcopy(model).to(dtype)

    def _rows_at_once(self) -> int:
        widest = max(self.n_features_in_, self._n_features_out)
        return int(max(CHUNK, VALUES_AT_ONCE // widest // CHUNK * CHUNK))


def _dictionary(model: Autoencoder) -> Tensor:
    """(L, *target shape): the decoder's rows, in the units of the data."""
    rows = cast(Tensor, model.decoder.W_dec).view(-1, *model.target_shape)
    return model.target_to_data_space(rows) - model.target_to_data_space(torch.zeros_like(rows[:1]))


def _responses(model: Autoencoder, step: int) -> Tensor:
    """(L, *target shape): by how much the reconstruction moves when one latent goes from 0 to 1."""
    n = math.prod(model.latent_shape)
    silent = model.decode(torch.zeros(1, *model.latent_shape, dtype=model.dtype))
    parts = []
    for first in range(0, n, step):
        one_each = torch.eye(min(step, n - first), n, dtype=model.dtype).roll(first, 1)
        parts.append(model.decode(one_each.view(-1, *model.latent_shape)) - silent)
    return torch.cat(parts)


def _as_array(blocks: Iterator[Tensor], n_rows: int) -> npt.NDArray[Any]:
    """(n_rows, width) from blocks of rows, which are never held twice."""
    array, filled = np.empty((0, 0)), 0
    for block in blocks:
        rows = block.cpu().numpy()
        if not filled:
            array = np.empty((n_rows, rows.shape[1]), rows.dtype)
        array[filled : filled + len(rows)] = rows
        filled += len(rows)
    return array


def _as_csr(blocks: Iterator[Tensor], n_rows: int, width: int) -> sparse.csr_array:
    """(n_rows, width) from blocks of rows, of which one at a time is dense."""
    return sparse.vstack([sparse.csr_array(block.cpu().numpy()) for block in blocks], format="csr")
