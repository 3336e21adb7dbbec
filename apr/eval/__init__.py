"""How good a model is: perplexity and bits per byte of text, and code that it writes.

Perplexity is cut and counted as llama-perplexity does it, so that figures compare; generated code
runs confined, and what confined it stands in the record. docs/spec/eval.md states the rules.
"""

from __future__ import annotations

from apr.eval.code import TASKS, Sampling, evaluate
from apr.eval.code_record import CodeRecord
from apr.eval.confined import Limits
from apr.eval.perplexity import Record, perplexity

__all__ = [
    "TASKS", "CodeRecord", "Limits", "Record", "Sampling", "evaluate", "perplexity",
]  # fmt: skip
