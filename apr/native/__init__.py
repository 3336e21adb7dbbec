"""The CPU kernels: a C++ library with a plain C interface, built when apr is installed.

Purpose: find it, load it, and say what this processor can run of it. Promise: where it is missing
or does not fit, whoever asks for it gets one line with the reason, never a slower path in its
place. How it is built, and what happens without a compiler: docs/spec/native.md.
"""

from __future__ import annotations

from apr.native.library import (
    ABI,
    Build,
    KernelSet,
    best_set,
    build_info,
    cpu_features,
    kernel_sets,
    library_path,
    load,
    source_hash,
    unavailable,
)

__all__ = [
    "ABI",
    "Build",
    "KernelSet",
    "best_set",
    "build_info",
    "cpu_features",
    "kernel_sets",
    "library_path",
    "load",
    "source_hash",
    "unavailable",
]
