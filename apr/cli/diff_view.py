"""What `apr diff` shows: the summary, what differs in words, then the tensors that differ most."""

from __future__ import annotations

import json

from apr.cli.inspect_view import escaped
from apr.diff import Difference, Section, TensorDifference

_SHOWN = 10  # tensors without --tensors
_INDENT = "    "
_WORDS = {
    "identical": "equal to the bit",
    "same_values": "equal in value, not in bytes",
    "values": "of other values",
    "shape": "of another shape",
    "only_in_a": "only in A",
    "only_in_b": "only in B",
    "not_compared": "without elements, not compared",
}


def show(found: Difference, *, tensors: bool, as_json: bool) -> None:
    """Print the comparison on stdout."""
    if as_json:
        print(json.dumps(found.to_json(tensors=tensors), allow_nan=False))
        return
    print(f"  A  {escaped(found.a)} ({found.format_a})")
    print(f"  B  {escaped(found.b)} ({found.format_b})")
    print()
    _summary(found)
    for title, section in _sections(found):
        _section(title, section)
    listed = found.tensors if tensors else found.most_different[:_SHOWN]
    if listed:
        _tensors(listed, "Tensors" if tensors else "Tensors that differ most")
    left = len(found.most_different) - _SHOWN
    if not tensors and left > 0:
        print(f"{_INDENT}and {left} more; --tensors lists all")


def _sections(found: Difference) -> list[tuple[str, Section]]:
    return [
        ("Architecture", found.architecture),
        ("Metadata", found.metadata),
        ("Tokenizer", found.tokenizer),
    ]


def _summary(found: Difference) -> None:
    print(f"  {'DIFFERENT' if found.differs else 'No difference'}")
    for title, section in _sections(found):
        parts = [
            f"{len(items)} {word}"
            for items, word in (
                (section.different, "different"),
                (section.equal, "equal"),
                (section.not_compared, "not compared"),
            )
            if items
        ]
        print(f"{_INDENT}{title:<12}  {', '.join(parts)}")
    counts = ", ".join(f"{n} {_WORDS[relation]}" for relation, n in found.counts.items())
    print(f"{_INDENT}{'Tensors':<12}  {counts}")
    print(
        f"{_INDENT}{'':<12}  {len(found.differing_tensors)} beyond the tolerance of "
        f"{found.tolerance:g}, {sum(t.dtype_differs for t in found.tensors)} of another type"
    )
    ratios = [t.of_bound for t in found.tensors if t.of_bound is not None]
    if ratios:
        beyond = sum(not ratio <= 1 for ratio in ratios)
        print(
            f"{_INDENT}{'':<12}  {len(ratios) - beyond} of {len(ratios)} retyped ones within what "
            f"their type promises (worst {max(ratios):.2f} of it)"
        )
    print()


def _section(title: str, section: Section) -> None:
    if not section.different and not section.not_compared:
        return
    print(f"  {title}")
    for d in section.different:
        print(f"{_INDENT}{escaped(d.name)}: {_short(d.a)} in A, {_short(d.b)} in B")
    for n in section.not_compared:
        print(f"{_INDENT}{escaped(n.name)}: not compared, {_cut(n.reason)}")
    print()


def _short(value: object) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    text = escaped(text)
    return text if len(text) <= 80 else text[:77] + "..."


def _tensors(listed: tuple[TensorDifference, ...], title: str) -> None:
    print(f"  {title}")
    width = max(len(escaped(t.name)) for t in listed)
    for tensor in listed:
        text = f"{_kind(tensor):<12}  {_figures(tensor)}"
        print(f"{_INDENT}{escaped(tensor.name):<{width}}  {text}")


def _kind(tensor: TensorDifference) -> str:
    kinds = [kind for kind in (tensor.dtype_a, tensor.dtype_b) if kind is not None]
    return " / ".join(dict.fromkeys(kinds))


def _figures(tensor: TensorDifference) -> str:
    if tensor.relation == "shape":
        shapes = (" x ".join(map(str, s or ())) for s in (tensor.shape_a, tensor.shape_b))
        return "shape {} in A, {} in B".format(*shapes)
    if tensor.relation != "values" or tensor.figures is None:
        return _WORDS[tensor.relation]
    f = tensor.figures
    text = f"max {f.max_abs:.2e}  rms {f.rms:.2e} (relative {f.relative_rms:.2e})"
    text += f"  cosine {f.cosine:.6f}"
    if tensor.of_bound is not None:
        text += f"  {tensor.of_bound:.2f} of the bound"
    return text + f"  {f.differing:,} of {f.elements:,}"
