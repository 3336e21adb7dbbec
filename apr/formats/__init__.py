"""Opening and writing models: `.apr`, GGUF and Hugging Face folders, all as one `OpenedModel`."""

from __future__ import annotations

from apr.formats.opened import OpenedModel, tensor_problems

__all__ = ["OpenedModel", "tensor_problems"]
