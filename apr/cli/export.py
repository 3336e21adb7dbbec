"""`apr export`: GGUF or a Hugging Face folder, with the proof."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def export(
    file: Path = typer.Argument(..., help="An .apr file, a .gguf file or a Hugging Face folder."),
    format: str = typer.Option(..., "--format", help="gguf or safetensors (a folder)."),
    output: Path = typer.Option(..., "-o", "--output", help="The file or folder to make."),
    quantize: str | None = typer.Option(
        None, "--quantize", help="f32, f16, bf16 or q8_0 (gguf only). Default: as in the source."
    ),
    name: str | None = typer.Option(None, "--name", help="The model's name in the output."),
    force: bool = typer.Option(False, "--force", help="Replace an existing output."),
    no_peers: bool = typer.Option(
        False, "--no-peers", help="Prove without llama.cpp and transformers; the proof says so."
    ),
    shard_size: str = typer.Option("5GB", "--shard-size", help="Largest safetensors file."),
    threads: int | None = typer.Option(None, "--threads", help="CPU threads of the proof."),
    allow_inexact: bool = typer.Option(
        False,
        "--allow-inexact",
        help="Write a GGUF although llama.cpp lacks a property of the model; recorded in it.",
    ),
    as_json: bool = typer.Option(False, "--json", help="The proof as JSON on stdout."),
) -> None:
    """Write GGUF or a Hugging Face folder, open it again, and prove that it is the same model."""
    from apr.cli.export_view import Watch, bytes_of, show
    from apr.export import export as write

    with Watch(quiet=as_json) as watch:
        report = write(
            file,
            output,
            format=format,
            quantize=quantize,
            name=name,
            force=force,
            peers=not no_peers,
            shard_bytes=bytes_of(shard_size),
            threads=threads,
            allow_inexact=allow_inexact,
            on_write=watch.wrote,
            on_check=watch.checked,
        )
    show(report, as_json=as_json)
