"""The public surface: listed, sorted, complete, light."""

import subprocess
import sys

import fewfire as ff


def test_listed_and_there():
    assert len(ff.__all__) == len(set(ff.__all__))  # ruff keeps them sorted
    assert set(ff.__all__) == {*ff._WHERE, *ff._MODULES, "__version__"}
    for name in ff.__all__:
        assert getattr(ff, name) is not None
    assert set(ff.__all__) <= set(dir(ff))


def test_a_public_name_is_never_hidden_by_a_module_of_the_same_name():
    """Importing ``fewfire.x`` binds the module to ``fewfire.x``, and the function of that name is gone."""
    modules = {m.removeprefix("fewfire.") for m in ff._HOME}
    assert not modules & set(ff._WHERE)


def test_unknown_name():
    try:
        ff.Autoencodr  # noqa: B018
    except AttributeError as error:
        assert "Autoencodr" in str(error)
    else:
        raise AssertionError("expected an AttributeError")


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_help_does_not_import_torch():
    code = (
        "import sys\nsys.argv = ['fewfire', '--help']\nfrom fewfire.cli import main\n"
        "try: main()\nexcept SystemExit: pass"
    )
    assert not modules_after(code) & {"torch", "numpy", "pydantic", "matplotlib", "sklearn"}


def test_core_is_light():
    """Training needs neither pictures nor scikit-learn; both load in a tenth of a second or more."""
    names = "Autoencoder, Trainer, TrainConfig, TopK, MSE, ArraySource, evaluate, load, save"
    assert not modules_after(f"from fewfire import {names}") & {
        "matplotlib",
        "sklearn",
        "pyarrow",
        "jinja2",
        "rich",
    }
