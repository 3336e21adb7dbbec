"""Find and load libapr_native through ctypes; read what it was built of and what may run here.

Purpose: the one place that knows where the library lies and that it fits this Python code.
Promise: `load` returns a library of the right interface or raises FeatureUnavailable with the
reason; nothing is loaded at import. The C side is native/src/build_info.cpp.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from apr.errors import FeatureUnavailable

# The interface that the Python code calls: APR_NATIVE_ABI of native/src/apr_native.h.
ABI = 4

_HERE = Path(__file__).resolve().parent
_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")


@dataclass(frozen=True)
class Build:
    """What the library was built of."""

    version: str
    abi: int
    compiler: str
    flags: str
    architecture: str
    sets: tuple[str, ...]
    sources: str  # sha256 over native/src, as `source_hash` computes it


@dataclass(frozen=True)
class KernelSet:
    """One set of kernels: `amx`, `avx512`, `avx2` or `portable`."""

    name: str
    built: bool
    usable: bool
    why_not: str  # empty if usable

    def __str__(self) -> str:
        return f"{self.name}: {'usable' if self.usable else self.why_not}"


def library_path() -> Path:
    """Where the library is, or would be."""
    return _HERE / f"libapr_native{_SUFFIX}"


def _checkout() -> Path | None:
    """The root of the checkout that this code runs from; None for an installed package."""
    root = _HERE.parent.parent
    return root if (root / "native" / "CMakeLists.txt").is_file() else None


def _how_to_build() -> str:
    if _checkout() is not None:
        return "build them with `python scripts/dev.py native` (needs g++ or clang++)"
    # pip keeps the wheel that it built without a compiler, and would install that one again.
    again = "pip install --force-reinstall --no-deps --no-cache-dir apr"
    return f"install g++ or clang++, then apr again: `{again}`"


def load() -> ctypes.CDLL:
    """The library; opened once, the same object at every call.

    Raises:
        FeatureUnavailable: it was not built, cannot be loaded, or has another interface.
    """
    return _open(library_path())


@cache
def _open(path: Path) -> ctypes.CDLL:
    if not path.is_file():
        try:
            why = (path.parent / "not_built.txt").read_text(encoding="utf-8").strip()
        except OSError:
            why = ""
        raise FeatureUnavailable(
            "CPU kernels",
            f"not built: {why}" if why else f"not built: there is no {path}",
            _how_to_build(),
        )
    try:
        library = ctypes.CDLL(str(path))
        abi = int(library.apr_native_abi())
        for name in ("build", "cpu", "sets"):
            getattr(library, f"apr_native_{name}").restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise FeatureUnavailable(
            path, f"the CPU kernels cannot be loaded ({error})", _how_to_build()
        ) from error
    if abi != ABI:
        raise FeatureUnavailable(
            path,
            f"the CPU kernels have interface {abi}, this apr calls interface {ABI}",
            _how_to_build(),
        )
    return library


def unavailable() -> str:
    """Why the kernels cannot be used, on one line; empty if they can."""
    try:
        load()
    except FeatureUnavailable as error:
        return error.line()
    return ""


def _json(name: str) -> Any:
    return json.loads(getattr(load(), f"apr_native_{name}")().decode("utf-8"))


def build_info() -> Build:
    """What the library was built of.

    Raises:
        FeatureUnavailable: as `load`.
    """
    data = _json("build")
    return Build(**{**data, "sets": tuple(data["sets"])})


def cpu_features() -> dict[str, bool]:
    """Instruction sets by name: True if the processor has it and the system keeps its registers.

    Raises:
        FeatureUnavailable: as `load`.
    """
    features = _json("cpu")["features"]
    return {str(name): bool(present) for name, present in features.items()}


def kernel_sets() -> tuple[KernelSet, ...]:
    """Every set of this architecture, the fastest first; the last, `portable`, always runs.

    The first call asks Linux for the permission to use AMX tiles, where the processor has them.

    Raises:
        FeatureUnavailable: as `load`.
    """
    return tuple(KernelSet(**entry) for entry in _json("sets"))


def best_set(name: str | None = None) -> KernelSet:
    """The set that runs: the one asked for by name, otherwise the fastest usable.

    Raises:
        FeatureUnavailable: as `load`; or the named set is unknown, not built, or not for this
            processor. No other set takes its place.
    """
    sets = kernel_sets()
    if name is None:
        return next(entry for entry in sets if entry.usable)
    for entry in sets:
        if entry.name == name:
            if entry.usable:
                return entry
            raise FeatureUnavailable(f"kernel set {name}", entry.why_not, _usable_hint(sets))
    known = ", ".join(entry.name for entry in sets)
    raise FeatureUnavailable(f"kernel set {name}", f"unknown; there are {known}")


def _usable_hint(sets: tuple[KernelSet, ...]) -> str:
    return f"usable here: {', '.join(entry.name for entry in sets if entry.usable)}"


def source_hash() -> str | None:
    """Sha256 over native/src of the checkout, as native/src/CMakeLists.txt computes it.

    It equals `build_info().sources` exactly if the library was built of these sources. None for an
    installed package, which has no sources beside it.
    """
    root = _checkout()
    if root is None:
        return None
    files = [p for p in (root / "native" / "src").iterdir() if p.suffix in (".cpp", ".h")]
    lines = "".join(
        f"{p.name} {hashlib.sha256(p.read_bytes()).hexdigest()}\n"
        for p in sorted(files, key=lambda p: p.name)
    )
    return hashlib.sha256(lines.encode()).hexdigest()
