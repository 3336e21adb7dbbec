"""The CUDA kernels: Triton, on the weights as they are stored, a decode step in one CUDA graph.

Purpose: everything of the GPU engine that is no engine: packing, kernels, the walk through a
program, the cache's pages, graphs. Promise: Triton is imported only when a model is loaded on these
kernels; on CPU tensors the same code runs through Triton's interpreter (TRITON_INTERPRET=1), which
is how it is tested without a GPU. What is built, and what no GPU has proven yet: docs/spec/cuda.md.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

__all__ = ["interpreted", "unavailable"]


def interpreted() -> bool:
    """Whether kernels run through Triton's interpreter in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable() -> str:
    """Why Triton's kernels cannot run in this process; "" if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (it comes with CUDA builds of torch: `pip install triton`)"
    named = [os.environ["CC"]] if "CC" in os.environ else ["cc", "gcc", "clang"]
    if not interpreted() and not any(shutil.which(name) for name in named):
        return f"triton needs a C compiler, there is no {' or '.join(named)}"
    return ""
