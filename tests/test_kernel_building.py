"""The compiled kernels: built, or a sentence why not; loaded, or a sentence why not."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fewfire import doctor
from fewfire.kernels import building, loading

ROOT = Path(__file__).parent.parent
REAL = ROOT / "src" / "fewfire" / "kernels" / "csrc"
KERNELS = """
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#ifdef __AVX512F__
#define BITS 512
#elif defined(__AVX2__)
#define BITS 256
#else
#define BITS 128
#endif
__attribute__((noinline)) inline int shared() { return BITS; }
extern "C" __attribute__((visibility("default"))) int JOIN(fewfire_bits_, FEWFIRE_ISA)() { return BITS; }
extern "C" __attribute__((visibility("default"))) int JOIN(fewfire_shared_, FEWFIRE_ISA)() { return shared(); }
"""

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="nothing is compiled there"),
    pytest.mark.skipif(building.find_compiler() is None, reason="there is no C++ compiler"),
]
on_x86 = pytest.mark.skipif(len(building.isas()) == 1, reason="one instruction set here")


def sources(folder, kernels=KERNELS, abi=None):
    """The checkout's dispatch over small kernels."""
    folder.mkdir()
    shutil.copy(REAL / "dispatch.cpp", folder)
    header = (REAL / "abi.h").read_text()
    (folder / "abi.h").write_text(header if abi is None else re.sub(r"FEWFIRE_ABI \d+", f"FEWFIRE_ABI {abi}", header))
    (folder / "kernels.cpp").write_text(kernels)
    return folder


def exported(library):
    """name -> the instruction sets it is there for"""
    found = {}
    for name, isa in re.findall(rb"\0fewfire_(\w+?)_(avx512vnni|avx512|avx2|portable)(?=\0)", library.read_bytes()):
        found.setdefault(name.decode(), set()).add(isa.decode())
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A library of small kernels: (library, sources)."""
    folder = tmp_path_factory.mktemp("small")
    csrc, library = sources(folder / "csrc"), folder / "_native.so"
    assert building.build(csrc, library) is None
    return library, csrc


@pytest.fixture
def beside(monkeypatch, small):
    """As if fewfire came with the small library."""
    monkeypatch.delenv("FEWFIRE_ISA", raising=False)
    monkeypatch.setattr(loading, "LIBRARY", small[0])
    monkeypatch.setattr(loading, "CSRC", small[1])


def compiler(path, script):
    """A compiler that does as the script says; $REAL is a real one."""
    path.write_text(f"#!/bin/sh\nREAL={shlex.quote(shutil.which(building.find_compiler()[0]))}\n{script}\n")
    path.chmod(0o755)
    return shlex.quote(str(path))


# ---------------------------------------------------------------------------------------------------- building


def test_every_instruction_set_is_in_the_library(small):
    assert exported(small[0]) == {"bits": set(building.isas()), "shared": set(building.isas())}


@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("nm"), reason="asks nm of Linux")
def test_nothing_else_is_to_be_seen_from_outside(tmp_path):
    """Templates of the standard library are visible by default: others in the process would take the place of ours."""
    kernels = "#include <vector>\nstd::vector<float> *some() { return new std::vector<float>(9); }\n"
    kernels = KERNELS + kernels.replace("some()", "JOIN(some_, FEWFIRE_ISA)(int n)").replace("(9)", "(n)")
    library = tmp_path / "_native.so"
    assert building.build(sources(tmp_path / "csrc", kernels), library) is None
    listed = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    assert {line.split()[-1] for line in listed.splitlines() if " fewfire_" not in line} == set()


@pytest.mark.slow
def test_the_kernels_of_the_checkout_have_every_instruction_set(tmp_path):
    assert building.build(REAL, tmp_path / "_native.so") is None
    found = exported(tmp_path / "_native.so")
    assert found
    assert all(isas == set(building.isas()) for isas in found.values()), found


def test_nothing_is_left_but_the_library(tmp_path):
    csrc = sources(tmp_path / "csrc")
    (tmp_path / "target").mkdir()
    assert building.build(csrc, tmp_path / "target" / "_native.so") is None
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["_native.so"]


def test_the_library_says_which_sources_it_is_of(small, tmp_path):
    library, csrc = small
    assert building.built_from(library) == building.digest(csrc)
    changed = sources(tmp_path / "csrc")
    assert building.digest(changed) == building.digest(csrc)
    (changed / ".#kernels.cpp").write_text("an editor's")
    assert building.digest(changed) == building.digest(csrc)
    (changed / "more.h").write_text("int more;")
    assert building.digest(changed) != building.digest(csrc)


def test_no_compiler_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    says = building.build(sources(tmp_path / "csrc"), tmp_path / "_native.so")
    assert says == "there is no C++ compiler (looked for $CXX, c++, g++ and clang++)"


def test_a_compiler_that_was_asked_for_and_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    says = building.build(sources(tmp_path / "csrc"), tmp_path / "_native.so")
    assert says == "CXX is 'no-such-compiler -O3', and there is no such compiler"


def test_a_broken_compiler_is_quoted(tmp_path, monkeypatch):
    script = "echo 'In file included from here' >&2; echo \"x.h:1: error: no luck in $LC_ALL\" >&2; exit 1"
    monkeypatch.setenv("CXX", compiler(tmp_path / "cxx", script))
    library = tmp_path / "_native.so"
    library.write_text("the one before")
    says = building.build(sources(tmp_path / "csrc"), library)
    assert says.endswith("cxx could not compile dispatch.cpp (dispatch): x.h:1: error: no luck in C")
    assert library.read_text() == "the one before"


def test_a_compiler_that_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", compiler(tmp_path / "cxx", "exit 3"))
    assert building.build(sources(tmp_path / "csrc"), tmp_path / "_native.so").endswith("status 3 and said nothing")


def test_a_compiler_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", compiler(tmp_path / "cxx", "exec sleep 60"))
    monkeypatch.setattr(building, "_PATIENCE", 0.2)
    assert "did not end within 0.2 seconds" in building.build(sources(tmp_path / "csrc"), tmp_path / "_native.so")


def test_an_error_in_the_sources_is_quoted(tmp_path):
    says = building.build(sources(tmp_path / "csrc", kernels="int f() { return nothing; }"), tmp_path / "_native.so")
    assert "could not compile kernels.cpp (portable): kernels.cpp:1:" in says
    assert len(says.splitlines()) == 1


def test_a_function_that_is_declared_and_nowhere_is_found_when_building(tmp_path):
    kernels = KERNELS + "int nowhere(); int somewhere() { return nowhere(); }"
    kernels = kernels.replace("somewhere", "JOIN(somewhere_, FEWFIRE_ISA)")
    says = building.build(sources(tmp_path / "csrc", kernels), tmp_path / "_native.so")
    assert "could not link the library" in says


def test_a_folder_that_is_not_there(tmp_path):
    says = building.build(sources(tmp_path / "csrc"), tmp_path / "nowhere" / "_native.so")
    assert says.startswith("_native.so could not be written")


@on_x86
def test_flags_that_the_compiler_does_not_know_are_left_out(tmp_path, monkeypatch):
    script = 'for a; do case $a in -mavx512f) echo "error: what is $a?" >&2; exit 1;; esac; done; exec "$REAL" "$@"'
    monkeypatch.setenv("CXX", compiler(tmp_path / "cxx", script))
    csrc, library = sources(tmp_path / "csrc"), tmp_path / "_native.so"
    assert building.build(csrc, library) is None
    assert exported(library)["bits"] == {"avx2", "portable"}
    found, _ = loading._load(library, csrc)
    assert [found.fewfire_supports(isa) for isa in (b"avx512vnni", b"avx512", b"portable", b"sse9")] == [0, 0, 1, 0]


def test_a_linker_that_cannot_link_statically(tmp_path, monkeypatch):
    script = 'for a; do case $a in -static*) echo "error: no" >&2; exit 1;; esac; done; exec "$REAL" "$@"'
    monkeypatch.setenv("CXX", compiler(tmp_path / "cxx", script))
    csrc, library = sources(tmp_path / "csrc"), tmp_path / "_native.so"
    assert building.build(csrc, library) is None
    assert loading._load(library, csrc)[1] == ""


def test_what_all_have_in_common_is_the_portable_one(beside):
    """An inline function that several objects have is linked once: it must run on every processor."""
    library = loading.library()
    for isa in loading.choices()[:-1]:
        bits = {"avx512vnni": 512, "avx512": 512, "avx2": 256, "portable": 128}[isa]
        assert getattr(library, f"fewfire_bits_{isa}")() == bits
        assert getattr(library, f"fewfire_shared_{isa}")() == 128


def test_as_a_program(tmp_path):
    """What `make build` and `make test` run: without fewfire, and with --if-changed only when sources changed."""
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    shutil.copy(building.__file__, kernels / "building.py")
    csrc, library = sources(kernels / "csrc"), kernels / "_native.so"
    command = [sys.executable, "-I", str(kernels / "building.py")]
    subprocess.run(command, check=True)
    first = library.stat().st_ino, library.stat().st_mtime_ns
    subprocess.run([*command, "--if-changed"], check=True)
    assert (library.stat().st_ino, library.stat().st_mtime_ns) == first
    (csrc / "kernels.cpp").write_text("int f() { return nothing; }")
    done = subprocess.run([*command, "--if-changed"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "could not compile kernels.cpp" in done.stderr


# ----------------------------------------------------------------------------------------------------- loading


def test_the_number_of_the_interface_is_the_same_on_both_sides():
    assert f"#define FEWFIRE_ABI {loading.ABI}\n" in (REAL / "abi.h").read_text()


def test_a_library_of_another_interface_is_refused(tmp_path):
    csrc, library = sources(tmp_path / "csrc", abi=loading.ABI + 1), tmp_path / "_native.so"
    assert building.build(csrc, library) is None
    found, says = loading._load(library, csrc)
    assert found is None
    assert says == f"_native.so has interface {loading.ABI + 1}, expected {loading.ABI}; run `make build`"


def test_a_library_of_other_sources_is_refused(small, tmp_path):
    library = Path(shutil.copy(small[0], tmp_path))
    changed = sources(tmp_path / "csrc", KERNELS + "// changed\n")
    assert loading._load(library, changed) == (None, "_native.so was built from other sources; run `make build`")
    assert loading._load(library, tmp_path / "none")[1] == ""  # a wheel has no sources to compare with


def test_a_library_that_is_missing_or_broken(tmp_path):
    library, csrc = tmp_path / "_native.so", sources(tmp_path / "csrc")
    missing = loading._load(library, csrc)
    assert missing == (None, "the kernels were not compiled; install a C++ compiler and run `make build`")
    library.write_text("not a library")
    assert loading._load(library, tmp_path)[0] is None
    found, says = loading._load(library, tmp_path / "none")
    assert found is None
    assert says.startswith("_native.so cannot be used (") and "reinstall fewfire" in says


def test_a_library_of_something_else(tmp_path):
    kernels = tmp_path / "x.cpp"
    kernels.write_text("int f() { return 1; }")
    command = [*building.find_compiler(), "-shared", "-fPIC", str(kernels), "-o", str(tmp_path / "_native.so")]
    subprocess.run(command, check=True)
    assert "fewfire_abi" in loading._load(tmp_path / "_native.so", tmp_path / "none")[1]


def test_the_best_is_chosen(beside):
    order = list(building.ISAS)
    *known, last = loading.choices()
    assert (last, known[-1]) == ("none", "portable")
    assert known == sorted(known, key=order.index)
    assert loading.isa() == known[0]
    assert loading.why_not() == ""


def test_another_is_asked_for(beside, monkeypatch):
    for isa in loading.choices():
        for spelled in (isa, f" {isa.upper()} "):
            monkeypatch.setenv("FEWFIRE_ISA", spelled)
            assert loading.isa() == isa
        assert (loading.library() is None) == (isa == "none")
    assert loading.why_not() == "FEWFIRE_ISA is none"


def test_what_there_is_not_is_refused(beside, monkeypatch, tmp_path):
    monkeypatch.setenv("FEWFIRE_ISA", "sse9")
    with pytest.raises(ValueError, match=r"^FEWFIRE_ISA is 'sse9'; choose here from: .*portable, none$"):
        loading.isa()
    monkeypatch.setenv("FEWFIRE_ISA", "portable")
    monkeypatch.setattr(loading, "LIBRARY", tmp_path / "_native.so")
    with pytest.raises(ValueError, match="choose here from: none .the kernels were not compiled"):
        loading.isa()
    monkeypatch.delenv("FEWFIRE_ISA")
    assert loading.isa() == "none"


def test_importing_fewfire_loads_nothing():
    code = "import fewfire, sys; from fewfire.kernels import loading; sys.exit(loading._load.cache_info().currsize)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------- doctor and wheel


def test_the_doctor_says_which(beside, monkeypatch, tmp_path):
    def kernels():
        (found,) = doctor._kernels()  # alone: the engines want more of a library than the small one has
        return found.state, found.says

    assert kernels() == ("ok", f"{loading.isa()}; FEWFIRE_ISA chooses from: {', '.join(loading.choices())}")
    monkeypatch.setenv("FEWFIRE_ISA", "none")
    assert kernels()[1].endswith("as long: FEWFIRE_ISA is none")
    monkeypatch.delenv("FEWFIRE_ISA")
    monkeypatch.setattr(loading, "LIBRARY", tmp_path / "_native.so")
    state, says = kernels()
    assert state == "note"
    assert "install a C++ compiler" in says


def test_the_doctor_goes_on_when_what_is_asked_for_is_not_there(monkeypatch):
    monkeypatch.setenv("FEWFIRE_ISA", "sse9")
    problems = {found.what: found.says for found in doctor.diagnose() if found.state == "problem"}
    assert problems["kernels"].startswith("FEWFIRE_ISA is 'sse9'; choose here from: ")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed")
@pytest.mark.parametrize("without", [False, True])
def test_the_wheel(tmp_path, without):
    tree, out = tmp_path / "tree", tmp_path / "out"
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "_native.so", ".*"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree)
    library = tree / "src" / "fewfire" / "kernels" / "_native.so"
    library.write_text("left over")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    environment = {**os.environ, "FEWFIRE_NO_NATIVE": "1" if without else "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*command, "-w", str(out), str(tree)], check=True, env=environment)
    (wheel,) = out.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    assert wheel.name.endswith("-py3-none-any.whl") == without
    assert ("fewfire/kernels/_native.so" in names) != without
    assert not [name for name in names if "csrc" in name]
    page = {f"fewfire/explorer/page/{name}" for name in ("index.html", "page.js", "page.css", "spark.svg")}
    assert page <= names  # the front end, built and committed
    assert not [name for name in names if "frontend" in name or "node_modules" in name]
    if not without:
        assert re.search(r"-py3-none-(linux|macosx)_\w+\.whl$", wheel.name)
        installed = tmp_path / "installed" / "fewfire" / "kernels"
        assert loading._load(installed / "_native.so", installed / "csrc")[1] == ""
