"""`apr import`: a Hugging Face folder or a GGUF as one `.apr` file, with the proof."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def import_(
    source: Path = typer.Argument(..., help="A Hugging Face folder or a .gguf file."),
    output: Path = typer.Option(..., "-o", "--output", help="The .apr file to make."),
    quantize: str = typer.Option(
        "keep", "--quantize", help="keep (every tensor as it is stored), f32, f16 or bf16."
    ),
    name: str | None = typer.Option(None, "--name", help="The model's name in the file."),
    force: bool = typer.Option(False, "--force", help="Replace an existing output."),
    no_peers: bool = typer.Option(
        False, "--no-peers", help="Prove without llama.cpp and transformers; the proof says so."
    ),
    threads: int | None = typer.Option(None, "--threads", help="CPU threads of the proof."),
    as_json: bool = typer.Option(False, "--json", help="The proof as JSON on stdout."),
) -> None:
    """Write one self-contained .apr file, open it again, and prove that it is the same model."""
    from apr.cli.export_view import Watch, show
    from apr.importing import import_model

    with Watch(quiet=as_json) as watch:
        report = import_model(
            source,
            output,
            quantize=quantize,
            name=name,
            force=force,
            peers=not no_peers,
            threads=threads,
            on_write=watch.wrote,
            on_check=watch.checked,
        )
    show(report, as_json=as_json)
