"""What a model is, in canonical names, checked against the contracts.

Every verb gets an `Architecture` from the opened model and nothing else.
"""

from apr.architecture.description import FULL, SLIDING, Architecture
from apr.architecture.reading import check_counts, from_metadata, missing_keys, resolve_aliases
from apr.architecture.rules import Violation, check, violations

__all__ = [
    "FULL",
    "SLIDING",
    "Architecture",
    "Violation",
    "check",
    "check_counts",
    "from_metadata",
    "missing_keys",
    "resolve_aliases",
    "violations",
]
