"""The report as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr.qa.report import Figure, Report

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLOURS = {"pass": "green", "fail": "bold red", "skip": "yellow"}


def table(report: Report) -> RenderableType:
    """The gates as a rich table, a line each, the summary below."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    out = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("gate", "verdict", "value", "threshold", "time", "what was found"):
        right = name in ("value", "threshold", "time")
        out.add_column(name, justify="right" if right else "left", no_wrap=name != "what was found")
    for gate in report.gates:
        out.add_row(
            gate.name,
            Text(gate.verdict, style=_COLOURS[gate.verdict]),
            figure(gate.value),
            figure(gate.threshold),
            f"{gate.duration_ms:,.0f} ms",
            Text(printable(gate.message)),
        )
    title = Text(f"{printable(report.model)} [{report.format}]", style="bold")
    if report.against:
        title.append(f" against {printable(report.against)}")
    verdict = Text(
        ("PASS: " if report.passed else "FAIL: ") + report.summary,
        style="green" if report.passed else "bold red",
    )
    parts: list[RenderableType] = [title, out, verdict]
    if report.plan:
        plan, stored = report.plan, " + ".join(report.plan["stored"])
        parts.append(
            Text(
                f"ran on {plan['device']} [{plan['hardware']}], {plan['engine']} "
                f"({plan['kernels']}), weights {plan['weights']} (stored {stored}), activations "
                f"{plan['activations']}, cache {plan['cache']}, {plan['threads']} threads",
                style="dim",
            )
        )
    return Group(*parts)


def figure(value: Figure) -> str:
    """A figure in few characters; empty for none."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def printable(text: str) -> str:
    """Control characters escaped: names in a file may hold terminal commands."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
