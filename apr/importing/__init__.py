"""Bringing a model in: a Hugging Face folder or a GGUF becomes one self-contained `.apr` file."""

from __future__ import annotations

from apr.importing.problems import open_source
from apr.importing.verb import TYPES, import_model

__all__ = ["TYPES", "import_model", "open_source"]
