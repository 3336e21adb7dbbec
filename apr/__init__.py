"""`apr`: from a corpus to llama.cpp and transformers, around one self-contained checkpoint file.

The Python API is the functions that the command line calls; they are imported on first use, so
`import apr` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr.formats import OpenedModel as OpenedModel
    from apr.formats import open_model as open_model

_LAZY = {
    "open_model": "apr.formats",
    "OpenedModel": "apr.formats",
}

__all__ = ["OpenedModel", "open_model"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'apr' has no attribute {name!r}")
