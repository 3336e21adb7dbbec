"""`apr diff A B`: compare two models of any format."""

from __future__ import annotations

import os
from pathlib import Path

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def diff(
    a: Path = typer.Argument(..., help="An .apr file, a .gguf file or a Hugging Face folder."),
    b: Path = typer.Argument(..., help="The model to compare it with, of any format."),
    tensors: bool = typer.Option(False, "--tensors", help="List every tensor, equal ones too."),
    tolerance: float = typer.Option(
        0.0, "--tolerance", help="Largest difference of two weights that counts as none."
    ),
    as_json: bool = typer.Option(False, "--json", help="The comparison as JSON on stdout."),
) -> None:
    """Compare two models: exit 0 if nothing differs, 5 if something does."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here multiplies matrices
    from apr.cli.diff_view import show
    from apr.diff import diff as compare

    found = compare(a, b, tolerance=tolerance)
    show(found, tensors=tensors, as_json=as_json)
    if found.differs:
        raise typer.Exit(5)
