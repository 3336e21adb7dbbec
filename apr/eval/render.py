"""A record as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apr.eval.code_record import CodeRecord
from apr.eval.perplexity import Record

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_FAILURES = 10


def as_table(record: Record | CodeRecord) -> RenderableType:
    """Tables with notes and the receipt below."""
    from rich.console import Group
    from rich.text import Text

    tables = _code(record) if isinstance(record, CodeRecord) else _perplexity(record)
    return Group(*tables, *(Text(line, style="dim") for line in _footer(record)))


def _perplexity(record: Record) -> list[Table]:
    tables = []
    for row in record.rows:
        figures = [
            ("text", row.dataset, ""),
            ("chunks", f"{row.chunks:,} of {row.context:,} tokens, the second half scored", ""),
            ("scored", f"{len(row.scores.nats):,} tokens, {row.scores.bytes.sum():,} bytes", ""),
            ("perplexity", row.scores.perplexity, row.against and row.against.perplexity),
            ("nats per token", row.scores.loss, row.against and row.against.loss),
            ("bits per byte", row.scores.bits_per_byte, row.against and row.against.bits_per_byte),
        ]
        if row.bits_per_byte_difference is not None:
            figures.append(("bits per byte, difference", row.bits_per_byte_difference, ""))
        if row.paired is not None:
            figures += [(n.replace("_", " "), f, "") for n, f in row.paired.figures().items()]
        other = record.against
        heads = ["", str(record.model["model"]), str(other["model"]) if other else ""]
        tables.append(_table(heads if other else heads[:2], figures))
    return tables


def _code(record: CodeRecord) -> list[Table]:
    each = int(record.settings["samples"])
    name = "valid Python" if record.task == "python-validity" and each == 1 else "pass@{}"
    figures: list[tuple[str, Any, str]] = [
        ("problems", f"{record.problems:,} of {record.dataset}, {each} samples each", "")
    ]
    for k, figure in record.pass_at.items():
        figures.append((name.format(k), figure, ""))
    for verdict, count in record.verdicts.items():
        figures.append((verdict, f"{count:,} of {len(record.samples):,}", ""))
    tables = [_table(["", str(record.model["model"])], figures)]
    failures = [one for one in record.samples if not one.passed]
    if failures:
        shown = [(one.task_id, f"{one.verdict}: {one.detail}", "") for one in failures[:_FAILURES]]
        tables.append(_table(["not passed", f"first {len(shown)} of {len(failures):,}"], shown))
    return tables


def _table(heads: list[str], rows: list[tuple[str, Any, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(Text(head), overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell or "")) for cell in row[: len(heads)]))
    return table


def _footer(record: Record | CodeRecord) -> list[str]:
    lines = []
    if isinstance(record, CodeRecord):
        held = "; ".join(f"{name}: {value}" for name, value in record.confinement.items())
        lines.append(f"confined by {held}")
        lines.append(", ".join(f"{name} {value}" for name, value in _plain(record.settings)))
        if record.floor is not None:
            verb = "missed" if record.missed else "held"
            lines.append(f"floor {record.floor:g} {verb}: {record.share:.4f} measured")
    for model in (record.model, getattr(record, "against", None)):
        if model is not None:
            plan = model["engine"]
            lines.append(
                f"{plan['engine']} ({plan['kernels']}), {plan['device']} [{plan['hardware']}], "
                f"{plan['weights']}, {plan['threads']} threads; sha256 {model['model_sha256'][:16]}"
            )
    lines += [f"note: {note}" for note in record.notes]
    receipt = record.receipt
    lines.append(
        f"{receipt['command']} | apr {receipt['apr_version']} {receipt['commit'] or ''} | "
        f"{receipt['timestamp']}"
    )
    return lines


def _plain(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(n.replace("_", " "), v) for n, v in settings.items() if not isinstance(v, list)]
