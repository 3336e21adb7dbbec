"""`apr bench FILE`: measure prefill and decode, with the receipt."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from apr.cli import generation_options as options
from apr.errors import AprError, UsageError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def bench(
    file: Path = typer.Argument(..., help="An .apr file, a .gguf file or a Hugging Face folder."),
    prompt: list[int] = typer.Option(
        [], "-p", "--prompt", help="Prompt tokens of a prefill test (512); 0: none; repeatable."
    ),
    decode: list[int] = typer.Option(
        [], "-n", "--decode", help="Steps of a decode test (128); 0: none; repeatable."
    ),
    repetitions: int = typer.Option(5, "-r", "--repetitions", help="Samples of each test."),
    against: Path | None = typer.Option(
        None, "--against", help="A second file, measured in turns; the paired ratio is printed."
    ),
    floor: float | None = typer.Option(
        None, "--floor", help="Decode tokens per second; below it the exit code is 5."
    ),
    output: str = typer.Option("table", "-o", help="table, md, json or csv."),
    as_json: bool = typer.Option(False, "--json", help="The same as -o json."),
    record: Path | None = typer.Option(None, "--output", help="Also write the JSON record here."),
    force: bool = typer.Option(False, "--force", help="Overwrite the file of --output."),
    device: str | None = typer.Option(None, "--device", help="cpu, cuda or cuda:N."),
    dtype: str | None = typer.Option(
        None, "--dtype", help="float32, bfloat16 or float16; default: as the file stores."
    ),
    threads: options.Threads = None,
    kernels: options.Kernels = None,
    cache: options.Cache = None,
) -> None:
    """Measure prefill and decode apart: median, spread, raw samples, receipt."""
    style = "json" if as_json else output
    try:
        _bench(file, tuple(prompt), tuple(decode), repetitions, against, floor, style, record,
               force, device, dtype, threads, kernels, cache)  # fmt: skip
    except AprError as error:
        if style == "json" and "--json" not in sys.argv:  # main prints it for --json
            print(json.dumps(error.as_json()))
        raise


def _bench(
    file: Path,
    prompt: tuple[int, ...],
    decode: tuple[int, ...],
    repetitions: int,
    against: Path | None,
    floor: float | None,
    style: str,
    record: Path | None,
    force: bool,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    kernels: str | None,
    cache: str | None,
) -> None:
    from functools import partial

    from rich.console import Console

    from apr.atomic import refuse_existing, write_text
    from apr.bench import FORMATS, compare, render, run
    from apr.bench.verb import Sizes

    if style not in FORMATS:
        raise UsageError("-o", f"{style!r} is no format", f"write {', '.join(FORMATS)}")
    if record is not None:
        refuse_existing(record, force)
    errors = Console(stderr=True)
    sizes = Sizes(prompt or None, decode or None, repetitions)
    measure = partial(run, file) if against is None else partial(compare, file, against)
    with errors.status("loading") as status:
        result = measure(
            sizes,
            device=device,
            dtype=dtype,
            threads=threads,
            kernels=kernels,
            cache=cache,
            floor=floor,
            progress=status.update,
        )
    if record is not None:
        write_text(record, render.as_json(result) + "\n", force=force)
    if style == "table":
        out = Console()
        (out if out.is_terminal else Console(width=200)).print(render.as_table(result))
    else:
        text = {"json": render.as_json, "md": render.as_markdown, "csv": render.as_csv}[style]
        print(text(result))
        for one in render.records(result):
            for note in one.notes:
                print(f"note: {note}", file=sys.stderr)
    missed = render.records(result)[0].floor
    if missed is not None and not missed.held:
        print(
            f"error: {file}: decode at {missed.measured:.2f} tok/s is below the floor of "
            f"{missed.asked:g}",
            file=sys.stderr,
        )
        raise typer.Exit(5)
