"""The answer of `apr diff`: what was compared, what differs, and what could not be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from apr.quant import ErrorFigures

# How two tensors of one name stand to each other. `identical`: the same bytes of the same type.
# `same_values`: every element is equal, the bytes or the types are not. `not_compared`: no element.
Relation = Literal[
    "identical", "same_values", "values", "shape", "only_in_a", "only_in_b", "not_compared"
]


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """A named value that both sides state and that is not the same."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class NotCompared:
    """A named value that could not be compared, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Section:
    """Architecture, metadata or tokenizer: names of what is equal, what differs, what is open."""

    equal: tuple[str, ...] = ()
    different: tuple[FieldDifference, ...] = ()
    not_compared: tuple[NotCompared, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Names and values, long texts as they are."""
        return {
            "equal": list(self.equal),
            "different": [
                {"name": d.name, "a": _plain(d.a), "b": _plain(d.b)} for d in self.different
            ],
            "not_compared": [{"name": n.name, "reason": n.reason} for n in self.not_compared],
        }


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor by its canonical name; types and shapes are None on a side that lacks it.

    `of_bound` is the largest error as a fraction of what the coarser of the two storage types
    promises; None where the types are the same or neither promises anything.
    """

    name: str
    relation: Relation
    dtype_a: str | None = None
    dtype_b: str | None = None
    shape_a: tuple[int, ...] | None = None
    shape_b: tuple[int, ...] | None = None
    figures: ErrorFigures | None = None
    of_bound: float | None = None

    @property
    def dtype_differs(self) -> bool:
        """Both sides have it, stored in other types."""
        return None not in (self.dtype_a, self.dtype_b) and self.dtype_a != self.dtype_b

    def beyond(self, tolerance: float) -> bool:
        """Whether it differs by more: missing, another shape, or a value further away.

        NaN against a number is beyond every tolerance.
        """
        if self.relation in ("shape", "only_in_a", "only_in_b"):
            return True
        if self.relation != "values" or self.figures is None:
            return False
        # Equal figures under other bytes of a type that they cannot resolve: see weights.py.
        return not self.figures.max_abs <= tolerance or tolerance == 0

    def to_json(self, tolerance: float) -> dict[str, Any]:
        """Everything; a figure that is not finite is null, and `finite` then false."""
        out: dict[str, Any] = {
            "name": self.name,
            "relation": self.relation,
            "beyond_tolerance": self.beyond(tolerance),
            "dtype_a": self.dtype_a,
            "dtype_b": self.dtype_b,
            "shape_a": None if self.shape_a is None else list(self.shape_a),
            "shape_b": None if self.shape_b is None else list(self.shape_b),
        }
        if self.figures is not None:
            f = self.figures
            out |= {
                "elements": f.elements,
                "differing": f.differing,
                "max_abs": _finite(f.max_abs),
                "rms": _finite(f.rms),
                "relative_rms": _finite(f.relative_rms),
                "cosine": _finite(f.cosine),
                "finite": isfinite(f.max_abs),
                "of_bound": None if self.of_bound is None else _finite(self.of_bound),
            }
        return out


@dataclass(frozen=True)
class Difference:
    """Two models compared; `tensors` has every name of either side, in A's order, then B's."""

    a: Path
    b: Path
    format_a: str
    format_b: str
    tolerance: float
    architecture: Section
    metadata: Section
    tokenizer: Section
    tensors: tuple[TensorDifference, ...]

    @property
    def differing_tensors(self) -> tuple[TensorDifference, ...]:
        """Those beyond the tolerance."""
        return tuple(t for t in self.tensors if t.beyond(self.tolerance))

    @property
    def differs(self) -> bool:
        """Something that both could say is not the same, or a tensor is beyond the tolerance."""
        sections = (self.architecture, self.metadata, self.tokenizer)
        return any(s.different for s in sections) or bool(self.differing_tensors)

    @property
    def counts(self) -> dict[str, int]:
        """Tensors by relation, those that occur."""
        out: dict[str, int] = {}
        for tensor in self.tensors:
            out[tensor.relation] = out.get(tensor.relation, 0) + 1
        return out

    @property
    def most_different(self) -> tuple[TensorDifference, ...]:
        """Tensors that are not equal: missing and misshapen first, then by relative rms."""
        unequal = [t for t in self.tensors if t.relation not in ("identical", "same_values")]
        return tuple(sorted(unequal, key=_rank))

    def to_json(self, *, tensors: bool = True) -> dict[str, Any]:
        """One JSON object; `tensors` False lists only the tensors that are not equal."""
        listed = self.tensors if tensors else self.most_different
        return {
            "a": {"file": str(self.a), "format": self.format_a},
            "b": {"file": str(self.b), "format": self.format_b},
            "differs": self.differs,
            "tolerance": self.tolerance,
            "architecture": self.architecture.to_json(),
            "metadata": self.metadata.to_json(),
            "tokenizer": self.tokenizer.to_json(),
            "tensor_counts": self.counts,
            "tensors_beyond_tolerance": len(self.differing_tensors),
            "tensors_of_other_type": sum(t.dtype_differs for t in self.tensors),
            "tensors": [t.to_json(self.tolerance) for t in listed],
        }


def _rank(tensor: TensorDifference) -> tuple[int, float, str]:
    if tensor.figures is None:
        return (2 if tensor.relation == "not_compared" else 0, 0.0, tensor.name)
    size = tensor.figures.relative_rms
    return (1, -size if size == size else float("-inf"), tensor.name)


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _plain(value: Any) -> Any:
    """A value as JSON can say it: tuples as lists, numbers that are not finite as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
