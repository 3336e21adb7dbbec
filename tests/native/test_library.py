"""The library fits and says what it is made of; where it is missing, one line says why."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apr import native
from apr.errors import FeatureUnavailable
from apr.native import library as module

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another folder takes the package's place; returns where its library would lie."""
    path = tmp_path / native.library_path().name
    monkeypatch.setattr(module, "library_path", lambda: path)
    return path


def refusal():
    with pytest.raises(FeatureUnavailable) as caught:
        native.load()
    assert caught.value.exit_code == 9
    assert "\n" not in caught.value.line()
    assert native.unavailable() == caught.value.line()
    return caught.value.line()


def test_the_library_is_built_of_the_sources_beside_it(library):
    build = native.build_info()
    assert build.abi == native.ABI == library.apr_native_abi()
    assert native.unavailable() == ""
    if native.source_hash() is None:
        pytest.skip("an installed package has no sources beside it")
    assert build.sources == native.source_hash(), "stale: python scripts/dev.py native"


def test_every_set_is_usable_or_says_why_not(library):
    sets = native.kernel_sets()
    print(native.build_info().compiler, *sets, sep="\n")
    assert sets[-1].name == "portable"
    assert sets[-1].usable
    for entry in sets:
        assert entry.usable == (entry.why_not == "")
        assert entry.built or not entry.usable
    assert tuple(s.name for s in sets if s.built) == native.build_info().sets
    assert native.best_set() == next(s for s in sets if s.usable)


def test_a_set_asked_for_by_name_is_not_replaced(library, monkeypatch):
    assert native.best_set("portable").name == "portable"
    with pytest.raises(FeatureUnavailable, match="kernel set sse9: unknown; there are .*portable"):
        native.best_set("sse9")
    lacking = native.KernelSet("amx", True, False, "this processor lacks amx_tile")
    monkeypatch.setattr(module, "kernel_sets", lambda: (lacking, native.kernel_sets()[-1]))
    with pytest.raises(FeatureUnavailable, match=r"amx: this processor .*; usable here: portable"):
        native.best_set("amx")


def test_the_features_are_those_that_linux_reports(library):
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        pytest.skip("compares with /proc/cpuinfo of an x86-64 Linux")
    text = Path("/proc/cpuinfo").read_text()
    flags = set(next(line for line in text.splitlines() if line.startswith("flags")).split())
    names = {f.replace("avx512_", "avx512") for f in flags}  # avx512_vnni there, avx512vnni here
    features = native.cpu_features()
    assert features == {name: name in names for name in features}


def test_a_missing_library_repeats_what_the_build_said(elsewhere):
    (elsewhere.parent / "not_built.txt").write_text("no working C++ compiler was found\n")
    assert "not built: no working C++ compiler was found; " in refusal()


def test_a_library_that_was_never_built_names_the_command(elsewhere):
    assert str(elsewhere) in refusal()
    if native.source_hash() is not None:
        assert "scripts/dev.py native" in refusal()


def test_an_installed_package_is_told_to_install_again(elsewhere, monkeypatch):
    monkeypatch.setattr(module, "_HERE", elsewhere.parent)
    assert "pip install --force-reinstall --no-deps --no-cache-dir apr" in refusal()


def test_a_damaged_library_is_one_line(elsewhere):
    elsewhere.write_bytes(b"\x7fELF" + bytes(60))
    assert refusal().startswith(f"{elsewhere}: the CPU kernels cannot be loaded (")


def test_another_interface_is_refused(library, elsewhere, monkeypatch):
    shutil.copy(library._name, elsewhere)
    monkeypatch.setattr(module, "ABI", native.ABI + 1)
    assert f"interface {native.ABI}, this apr calls interface {native.ABI + 1}" in refusal()


def test_importing_the_room_loads_nothing():
    code = (
        "import sys, apr.native; from apr.native import library; "
        "assert library._open.cache_info().currsize == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("flags", "variables", "why"),
    [
        ([], {}, "no working C++ compiler was found"),
        ([], {"CXX": "/nowhere/g++"}, "no working C++ compiler was found (CXX is /nowhere/g++)"),
        (["-DCMAKE_CXX_COMPILER=/nowhere/g++"], {}, "(CMAKE_CXX_COMPILER is /nowhere/g++)"),
        (["-DAPR_NATIVE=OFF"], {}, "turned off (APR_NATIVE=OFF)"),
    ],
)
def test_without_a_compiler_the_installation_succeeds_and_says_why(tmp_path, flags, variables, why):
    cmake, make = shutil.which("cmake"), shutil.which("ninja") or shutil.which("make")
    if not (ROOT / "native").is_dir() or cmake is None or make is None:
        pytest.skip("needs a checkout, cmake, and ninja or make")
    (tmp_path / "empty").mkdir()
    bare = {**os.environ, "PATH": str(tmp_path / "empty"), **variables}
    if "CXX" not in variables:
        bare.pop("CXX", None)
    generator = "Ninja" if "ninja" in Path(make).name else "Unix Makefiles"
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    start = ["-S", ROOT / "native", "-B", build, "-G", generator, f"-DCMAKE_MAKE_PROGRAM={make}"]
    for command in (
        [*start, *flags],
        ["--build", build],
        ["--install", build, "--prefix", prefix],
    ):
        done = subprocess.run([cmake, *command], env=bare, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert why in (prefix / "apr/native/not_built.txt").read_text()
    assert not list(prefix.rglob("libapr_native*"))
    assert (prefix / "apr/_contracts/exit-codes.yaml").exists()
