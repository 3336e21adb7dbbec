"""Tokenizers: trained, read and written in every form that a model file has.

The promise: whatever form it takes (`.apr` metadata, a Hugging Face folder, GGUF keys), the same
text gives the same ids, or the form is refused.
"""

from __future__ import annotations

from apr.tokenizer.tokenizer import Tokenizer
from apr.tokenizer.training import train

__all__ = ["Tokenizer", "train"]
