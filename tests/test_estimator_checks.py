"""scikit-learn's own checks, all of them, with no failure expected: for every estimator, in several settings.

An estimator joins by one line in CHECKED.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

import fewfire as ff

CHECKED = [
    ff.SparseAutoencoder(),  # as people use it; the others train for less, because the checks fit a hundred times
    ff.SparseAutoencoder(activation="sigmoid", max_epochs=20),
    ff.SparseAutoencoder(activation="relu", max_epochs=60),
    ff.SparseAutoencoder(activation="batchtopk", max_epochs=20),
    ff.SparseAutoencoder(activation="jumprelu", target_l0=0.5, max_epochs=60),  # some checks ask for one latent
    ff.SparseAutoencoder(activation="gated", max_epochs=60),
    ff.SparseAutoencoder(hidden=(16,), max_epochs=20),
    ff.SparseAutoencoder(loss="bce", max_epochs=20),
    ff.SparseAutoencoder(sparse_output=True, max_epochs=20),
    ff.DenoisingAutoencoder(max_epochs=20),
    ff.DenoisingAutoencoder(noise="masking", activation="relu", hidden=(16,), max_epochs=60),
    ff.ContractiveAutoencoder(max_epochs=20),
    ff.ContractiveAutoencoder(activation="sigmoid", tied=True, max_epochs=20),
    ff.VariationalAutoencoder(max_epochs=60),
    ff.VariationalAutoencoder(penalty="l1", max_epochs=60),
    ff.ConvolutionalAutoencoder(max_epochs=20),
    ff.ConvolutionalAutoencoder(activation="relu", max_epochs=60),
    ff.AnomalyDetector(),
    ff.AnomalyDetector(contamination=0.1),
]

BEYOND = [  # what check_estimator leaves out (scikit-learn 1.9)
    "check_dataframe_column_names_consistency",
    "check_get_feature_names_out_error",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_set_output_transform_polars",
    "check_global_output_transform_pandas",
    "check_global_set_output_transform_polars",
    "check_inplace_ensure_writeable",
    "check_param_validation",
]

# These checks themselves fit with names and transform without, or the other way round; PCA warns as well.
# Of their twenty rows of noise, most latents may well never fire.
pytestmark = [
    pytest.mark.filterwarnings("ignore:X (does not have valid|has) feature names:UserWarning"),
    pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning"),
]


@pytest.fixture(autouse=True)
def draws_of_the_checks_themselves(global_generators_untouched):
    """check_methods_sample_order_invariance permutes rows with numpy's global generator."""
    state = np.random.get_state()  # noqa: NPY002
    yield
    np.random.set_state(state)  # noqa: NPY002


@parametrize_with_checks(CHECKED)
def test_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", BEYOND)
@pytest.mark.parametrize("estimator", CHECKED, ids=str)
def test_beyond_check_estimator(estimator, name):
    if not hasattr(estimator_checks, name):
        pytest.skip(f"scikit-learn {sklearn.__version__} has no {name}")
    if ("transform" in name or "feature_names_out" in name) and not hasattr(estimator, "transform"):
        pytest.skip("it has no transform")
    getattr(estimator_checks, name)(type(estimator).__name__, clone(estimator))


def test_the_check_that_needs_a_switch_of_scipys():
    """check_array_api_input, which is skipped above unless SCIPY_ARRAY_API is set before scipy is imported."""
    code = (
        "import warnings\n"
        "from sklearn.utils.estimator_checks import check_array_api_input\n"
        "import fewfire as ff\n"
        "warnings.simplefilter('ignore', ff.SparsityWarning)\n"
        "for name in ff._HOME['fewfire.estimators']:\n"
        "    kind = getattr(ff, name)\n"
        "    estimator = kind(max_epochs=2) if hasattr(kind(), 'max_epochs') else kind()\n"
        "    check_array_api_input(name, estimator, array_namespace='numpy')\n"
    )
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_estimator_is_checked():
    public = {getattr(ff, name) for name in ff._HOME["fewfire.estimators"]}
    assert public <= {type(estimator) for estimator in CHECKED}
