"""Sparse matrices: the rows of their dense twin, dense a batch at a time."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import fewfire as ff
from fewfire.contracts import Layout, Source
from fewfire.rows import MAX_COLUMNS, as_csr, as_rows
from fewfire.sources import ArraySource, open_source

DENSE = np.random.default_rng(0).normal(size=(41, 9)) * (np.random.default_rng(1).random((41, 9)) < 0.3)
FORMATS = ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"]


def batches_of(source: Source, **kwargs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(batch.x, batch.rows) for batch in source.batches(7, **kwargs)]


def same(one: Source, other: Source, **kwargs) -> bool:
    pairs = zip(batches_of(one, **kwargs), batches_of(other, **kwargs), strict=True)
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.int8, np.bool_])
def test_every_format_gives_the_batches_of_its_dense_twin(form, kind, dtype):
    dense = (DENSE * 10).astype(dtype)
    source = open_source(getattr(sp, f"{form}_{kind}")(dense))
    twin = ArraySource(dense)
    assert isinstance(source, Source)
    assert (source.n_rows, source.row_shape, source.layout) == (41, (9,), Layout("table"))
    assert same(source, twin, seed=3, epoch=2)
    assert same(source, twin, shuffle=False)
    assert same(source, twin, seed=3, epoch=2, start=3)
    for part, other in zip(source.split(0.3, seed=5), twin.split(0.3, seed=5), strict=True):
        assert same(part, other, seed=1)
        assert same(part.split(0.5)[1], other.split(0.5)[1], shuffle=False)


def test_stored_zeros_duplicates_and_unsorted_indices_are_what_they_mean():
    data, row, column = [1.0, 2.0, 0.0, 4.0], [0, 0, 1, 1], [2, 2, 0, 1]
    coo = sp.coo_array((data, (row, column)), shape=(3, 3))
    unsorted = sp.csr_array((np.array([3.0, 1.0]), np.array([2, 0]), np.array([0, 2, 2, 2])), shape=(3, 3))
    before = [array.copy() for array in (coo.data, coo.row, coo.col, unsorted.data, unsorted.indices)]
    assert ArraySource(coo)._x.toarray().tolist() == [[0, 0, 3], [0, 4, 0], [0, 0, 0]]
    assert ArraySource(unsorted)._x.toarray()[0].tolist() == [1, 0, 3]
    after = (coo.data, coo.row, coo.col, unsorted.data, unsorted.indices)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)), "the caller's arrays were written to"


def test_64_bit_indices_are_read():
    csr = sp.csr_array(DENSE)
    wide = sp.csr_array((csr.data, csr.indices.astype(np.int64), csr.indptr.astype(np.int64)), shape=csr.shape)
    assert same(ArraySource(wide), ArraySource(DENSE))
    assert ArraySource(wide).fingerprint == ArraySource(csr).fingerprint


def test_floats_are_borrowed_not_copied():
    csr = sp.csr_array(DENSE)
    assert ArraySource(csr)._x.data.ctypes.data == csr.data.ctypes.data


def test_nan_is_let_through_and_longdouble_is_not_made_infinite():
    csr = sp.csr_array(np.array([[np.nan, 0]]))
    assert next(ArraySource(csr).batches(1)).x[0, 0].isnan()
    with pytest.raises(ValueError, match="stored values of x.*beyond what float64"):
        ArraySource(sp.csr_array(np.array([[np.longdouble("1e4000"), 0]])))


def test_fingerprint_follows_the_content():
    def changed(value: float, where: tuple[int, int] = (3, 3)) -> sp.csr_array:
        dense = DENSE.copy()
        dense[where] = value
        return sp.csr_array(dense)

    sources = [
        ArraySource(changed(1)),
        ArraySource(changed(2)),
        ArraySource(changed(1, (3, 4))),
        ArraySource(changed(1, (4, 3))),
        ArraySource(sp.csr_array((DENSE.shape[0], 10))),
        ArraySource(sp.csr_array((DENSE.shape[0], 11))),
        *ArraySource(changed(1)).split(0.5),
    ]
    assert len({source.fingerprint for source in sources}) == len(sources)
    assert ArraySource(changed(1).tocsc()).fingerprint == sources[0].fingerprint


def test_only_a_batch_becomes_dense():
    wide = sp.random_array((2000, 50_000), density=1e-4, format="csr", rng=np.random.default_rng(0), dtype=np.float32)
    dense_bytes = 2000 * 50_000 * 4
    source = ArraySource(wide)
    tracemalloc.start()
    for batch in source.batches(16):
        assert batch.x.shape[1] == 50_000
    _ = source.fingerprint
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < dense_bytes / 20


def test_a_sparse_target_and_a_sparse_input():
    source = ArraySource(sp.csr_array(DENSE), sp.csc_array(DENSE[:, :4]))
    assert source.target_shape == (4,)
    for batch in source.batches(5):
        assert torch.equal(batch.x, torch.from_numpy(DENSE[batch.rows.numpy(), :4]))
        assert torch.equal(batch.x_in, torch.from_numpy(DENSE[batch.rows.numpy()]))


def test_training_on_it_gives_the_model_of_its_dense_twin():
    def trained(x: object) -> ff.Autoencoder:
        model = ff.Autoencoder(9, 12, ff.TopK(k=3), preprocess="standardize")
        ff.Trainer(model, ArraySource(x), config=ff.TrainConfig(steps=20, batch_size=8), progress=False).fit()
        return model

    sparse, dense = trained(sp.csr_array(DENSE)), trained(DENSE)
    for a, b in zip(sparse.state_dict().values(), dense.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert ff.evaluate(sparse, sp.coo_matrix(DENSE)) == ff.evaluate(dense, DENSE)


def damaged(where: str) -> sp.csr_array:
    csr = sp.csr_array(DENSE)
    if where == "column":
        csr.indices[4] = 10_000_000
    elif where == "negative":
        csr.indices[4] = -1
    else:
        csr.indptr[5] = csr.indptr[-1] + 5
    return csr


@pytest.mark.parametrize("where", ["column", "negative", "indptr"])
@pytest.mark.parametrize("form", ["csr", "csc"])
def test_indices_that_point_outside_are_refused_before_anything_follows_them(where, form):
    bad = damaged(where)
    if form == "csc":
        bad = sp.csc_array((DENSE.shape[1], DENSE.shape[0])).T.tocsc()
        csr = damaged(where)
        bad.indices, bad.indptr, bad.data, bad._shape = csr.indices, csr.indptr, csr.data, csr.shape[::-1]
    with pytest.raises(ValueError, match="x is damaged"):
        ArraySource(bad)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (sp.csr_array(np.array([[1j]])), TypeError, "complex"),
        (sp.csr_array((0, 3)), ValueError, "at least one row"),
        (sp.coo_array(np.ones(3)), ValueError, r"\(n, columns\), got a sparse array of shape \(3,\)"),
        (sp.csr_array((1, MAX_COLUMNS + 1)), ValueError, "at most 16,777,216 can be made dense"),
    ],
)
def test_what_cannot_become_dense_rows_is_refused(x, error, message):
    with pytest.raises(error, match=message):
        ArraySource(x)


def test_as_rows_does_not_make_a_matrix_dense_unasked():
    with pytest.raises(TypeError, match=r"x is sparse \(csr_array\).*x\.toarray\(\)"):
        as_rows(sp.csr_array(DENSE))


def test_as_csr_is_canonical():
    unsorted = sp.csr_array((np.array([3.0, 1.0, 1.0]), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3))
    assert as_csr(unsorted, "x").has_canonical_format
    assert ArraySource(unsorted).fingerprint == ArraySource(sp.csr_array(np.array([[1.0, 0, 4]]))).fingerprint
