"""Opening and writing models: `.apr`, GGUF and Hugging Face folders, all as one `OpenedModel`.

The writers are imported when they are first used: `apr inspect` needs none of what they need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from apr.families import tensor_problems
from apr.formats.gguf_reader import GgufFile
from apr.formats.opened import OpenedModel
from apr.formats.opening import detect_format, open_model

if TYPE_CHECKING:
    from apr.formats.gguf_writer import write_gguf
    from apr.formats.hf_writer import write_hf

_WRITERS = {"write_gguf": "apr.formats.gguf_writer", "write_hf": "apr.formats.hf_writer"}

__all__ = [
    "GgufFile",
    "OpenedModel",
    "detect_format",
    "open_model",
    "tensor_problems",
    "write_gguf",
    "write_hf",
]


def __getattr__(name: str) -> Any:
    if name in _WRITERS:
        return getattr(import_module(_WRITERS[name]), name)
    raise AttributeError(f"module 'apr.formats' has no attribute {name!r}")
