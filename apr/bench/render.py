"""A record as a table, Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

from apr.bench.record import Comparison, Record, Row

if TYPE_CHECKING:
    from rich.console import RenderableType

Result = Record | Comparison
_COLUMNS = (
    "model", "size", "params", "stored", "computed", "device", "threads", "test", "t/s", "spread",
    "MBU", "TTFT",
)  # fmt: skip


def records(result: Result) -> list[Record]:
    """The one or two records of a result."""
    return [result.first, result.second] if isinstance(result, Comparison) else [result]


def as_json(result: Result) -> str:
    """One JSON document."""
    return json.dumps(result.to_json(), allow_nan=False)


def as_markdown(result: Result) -> str:
    """llama-bench's table, with spread, MBU and notes."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
    lines += ["| " + " | ".join(cells) + " |" for cells in _rows(result)]
    lines += [f"\n{line}" for line in _footer(result)]
    return "\n".join(lines)


def as_csv(result: Result) -> str:
    """A line each test, figures unrounded, with commit and hash."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["model", "model_sha256", "size_bytes", "parameters", "stored", "computed", "device",
         "threads", "test", "tokens_per_second", "sd_tokens_per_second", "relative_sd", "noisy",
         "mbu", "time_to_first_token_ms", "peak_rss_bytes", "apr_version", "commit", "timestamp"]
    )  # fmt: skip
    for record in records(result):
        for row in record.rows:
            first = row.time_to_first_token
            writer.writerow(
                [record.model, record.sha256, record.size_bytes, record.parameters, record.storage,
                 record.plan["activations"], record.plan["device"], record.plan["threads"],
                 row.test, row.tokens_per_second, row.sd, row.relative_sd, row.noisy, row.mbu,
                 1000 * first.median if first else None, record.peak_rss,
                 record.receipt["apr_version"], record.receipt["commit"],
                 record.receipt["timestamp"]]
            )  # fmt: skip
    return out.getvalue().rstrip("\n")


def as_table(result: Result) -> RenderableType:
    """A rich table with the receipt below."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        left = name in ("model", "stored", "computed", "device", "test")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "model")
    for cells in _rows(result):
        table.add_row(*(Text(cell) for cell in cells))
    return Group(table, *(Text(line, style="dim") for line in _footer(result)))


def _rows(result: Result) -> list[list[str]]:
    return [_cells(record, row) for record in records(result) for row in record.rows]


def _cells(record: Record, row: Row) -> list[str]:
    first = row.time_to_first_token
    return [
        record.model,
        size(record.size_bytes),
        f"{record.parameters / 1e6:,.2f} M",
        record.storage,
        record.plan["activations"],
        record.plan["device"],
        str(record.plan["threads"]),
        row.test,
        f"{row.tokens_per_second:,.2f} ± {row.sd:,.2f}",
        f"{row.relative_sd:.1%}" + (" noisy" if row.noisy else ""),
        f"{row.mbu:.0%}" if row.mbu is not None else "",
        f"{1000 * first.median:,.1f} ms" if first else "",
    ]


def _footer(result: Result) -> list[str]:
    lines = []
    if isinstance(result, Comparison):
        for ratio in result.ratios:
            flag = " noisy" if ratio.noisy else ""
            lines.append(
                f"{ratio.test}: {result.first.model} runs at {ratio.median:.3f} times the speed of "
                f"{result.second.model} (pairs {min(ratio.pairs):.3f} to "
                f"{max(ratio.pairs):.3f}){flag}"
            )
    for record in records(result):
        plan = record.plan
        memory = f"peak memory {size(record.peak_rss)}" if record.peak_rss else ""
        if record.peak_cuda:
            memory += f", on the GPU {size(record.peak_cuda)}"
        lines.append(
            f"{plan['engine']} ({plan['kernels']}) on {plan['hardware']}; {memory}; "
            f"sha256 {record.sha256[:16]}"
        )
        bandwidth = next((r.bandwidth for r in reversed(record.rows) if r.bandwidth), None)
        if bandwidth is not None:
            text = f"memory reads at {bandwidth.bytes_per_second / 1e9:.1f} GB/s"
            if bandwidth.before and bandwidth.after:
                text += (
                    f" ({bandwidth.reader}: {bandwidth.before / 1e9:.1f} before and "
                    f"{bandwidth.after / 1e9:.1f} after the rounds)"
                )
            else:
                text += f" ({bandwidth.source})"
            lines.append(text)
        if plan["reason"]:
            lines.append(str(plan["reason"]))
        if record.floor is not None:
            verb = "held" if record.floor.held else "missed"
            lines.append(
                f"floor {record.floor.asked:g} tok/s {verb}: {record.floor.measured:,.2f} measured"
            )
        lines += [f"note: {note}" for note in record.notes]
    receipt = records(result)[0].receipt
    lines.append(
        f"{receipt['command']} | apr {receipt['apr_version']} {receipt['commit'] or ''} | "
        f"{receipt['timestamp']}"
    )
    return lines


def size(count: int | None) -> str:
    """Bytes, readable."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
