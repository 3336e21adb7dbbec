"""A result as bars: tokens per second of every test, a colour for each side."""

from __future__ import annotations

from pathlib import Path

from apr.atomic import atomic_file
from apr.bench.record import Comparison, Record

_COLOURS = ("#1f4e8c", "#c2410c")


def draw(result: Record | Comparison, target: Path, *, force: bool = False) -> None:
    """Write a PNG: one panel for prompts, one for decoding, a bar each test with its spread.

    Raises:
        StorageError: the file exists, or cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    sides = [result.first, result.second] if isinstance(result, Comparison) else [result]
    panels = [
        (title, [row.test for row in sides[0].rows if row.is_decode == decode])
        for title, decode in (("prefill", False), ("decode", True))
    ]
    panels = [(title, tests) for title, tests in panels if tests]
    wide = sum(max(2, len(tests)) * len(sides) for _, tests in panels)
    figure = Figure(figsize=(max(6.0, 1.0 * wide + 2), 4.5), dpi=110, layout="constrained")
    for number, (title, tests) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        width = 0.8 / len(sides)
        for place, side in enumerate(sides):
            rows = [row for row in side.rows if row.test in tests]
            xs = [i + (place - (len(sides) - 1) / 2) * width for i in range(len(rows))]
            bars = axes.bar(
                xs,
                [row.tokens_per_second for row in rows],
                width * 0.92,
                yerr=[row.sd for row in rows],
                capsize=3,
                color=_COLOURS[place],
                label=Path(side.model).name,
            )
            axes.bar_label(bars, [f"{row.tokens_per_second:,.0f}" for row in rows], fontsize=8)
        axes.set_xticks(range(len(tests)), tests)
        axes.set(title=title, ylabel="tokens per second, median ± sd")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.15)
        axes.legend(fontsize=8, loc="lower right", framealpha=0.9)
    first = sides[0]
    figure.suptitle(
        f"{Path(first.model).name} ({first.storage}), {first.plan['threads']} threads of "
        f"{first.plan['hardware']}\n{first.receipt['timestamp']}, "
        f"commit {first.receipt['commit'] or 'unknown'}",
        fontsize=9,
    )
    with atomic_file(target, force=force) as temporary:
        figure.savefig(temporary, format="png")
