"""What differs between two models, whatever their formats: architecture, metadata, tokenizer,
tensors.

Nothing is called equal that was not compared: what only one side says, or what a format has no
place for, stands in the answer as not compared, with the reason.
"""

from __future__ import annotations

from apr.diff.difference import Difference, FieldDifference, NotCompared, Section, TensorDifference
from apr.diff.verb import diff

__all__ = [
    "Difference",
    "FieldDifference",
    "NotCompared",
    "Section",
    "TensorDifference",
    "diff",
]
