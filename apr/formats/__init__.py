"""Opening and writing models: `.apr`, GGUF and Hugging Face folders, all as one `OpenedModel`."""

from __future__ import annotations

from apr.families import tensor_problems
from apr.formats.gguf_reader import GgufFile
from apr.formats.gguf_writer import write_gguf
from apr.formats.hf_writer import write_hf
from apr.formats.opened import OpenedModel
from apr.formats.opening import detect_format, open_model

__all__ = [
    "GgufFile",
    "OpenedModel",
    "detect_format",
    "open_model",
    "tensor_problems",
    "write_gguf",
    "write_hf",
]
