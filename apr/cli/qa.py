"""`apr qa FILE`: judge a checkpoint by gates."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from apr.cli import generation_options as options

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def qa(
    file: Path = typer.Argument(..., help="An .apr file, a .gguf file or a Hugging Face folder."),
    against: Path | None = typer.Option(
        None, "--against", help="A second file that must give the same logits and token ids."
    ),
    gate: list[str] = typer.Option([], "--gate", help="Run this gate only; may be repeated."),
    skip: list[str] = typer.Option([], "--skip", help="Leave this gate out; may be repeated."),
    min_executed: int | None = typer.Option(
        None,
        "--min-executed",
        min=0,
        help="Gates that must run, or the verdict is a failure. Default: 8, or all chosen.",
    ),
    device: str | None = typer.Option(None, "--device", help="cpu, cuda or cuda:N."),
    dtype: str | None = typer.Option(
        None, "--dtype", help="What the gates compute in (float32); auto follows the file."
    ),
    threads: options.Threads = None,
    kernels: options.Kernels = None,
    cache: options.Cache = None,
    as_json: bool = typer.Option(False, "--json", help="The report as JSON on stdout."),
) -> None:
    """Judge a checkpoint by gates: exit 0 if every executed gate passed, 5 if one failed."""
    from rich.console import Console

    from apr import qa as judge
    from apr.qa.render import table

    errors = Console(stderr=True)
    with errors.status("opening") as status:
        report = judge.run(
            file,
            against=against,
            device=device,
            dtype=dtype,
            threads=threads,
            kernels=kernels,
            cache=cache,
            only=gate,
            skip=skip,
            min_executed=min_executed,
            progress=status.update,
        )
    if as_json:
        print(json.dumps(report.to_json(), allow_nan=False))
    else:
        out = Console()
        wide = out if out.is_terminal else Console(width=200)
        wide.print(table(report))
    if not report.passed:
        errors.print(f"error: {file}: {report.summary}", style="", markup=False, soft_wrap=True)
        raise typer.Exit(5)
