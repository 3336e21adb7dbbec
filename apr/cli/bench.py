"""`apr bench FILE`: measure prefill and decode, with the receipt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from apr.bench.sizes import Sizes

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
    depth: str = typer.Option(
        "0", "--depth", help="Tokens that go before each test, not timed; for example 0,512."
    ),
    batch: str = typer.Option(
        "1", "--batch", help="Sequences that are decoded together; for example 1,4."
    ),
    against: str | None = typer.Option(
        None,
        "--against",
        help="A second file, or the word llama.cpp for that program on the same GGUF file: "
        "measured in turns; the paired ratio is printed.",
    ),
    speculate: int | None = typer.Option(
        None,
        "--speculate",
        help="Also continue --text, plainly and guessing up to N tokens from it.",
    ),
    text: Path | None = typer.Option(None, "--text", help="What --speculate continues."),
    plot: Path | None = typer.Option(None, "--plot", help="Also draw bars, into this PNG."),
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
    from apr.bench.sizes import Sizes

    asked: dict[str, Any] = {"device": device, "dtype": dtype, "threads": threads,
                             "kernels": kernels, "cache": cache, "floor": floor}  # fmt: skip
    if speculate is not None or text is not None:
        asked |= _continued(speculate, text, against)
    style = "json" if as_json else output
    try:
        _bench(
            file, Sizes(tuple(prompt) or None, tuple(decode) or None, repetitions,
                        _numbers("--depth", depth), _numbers("--batch", batch)),
            against, style, record, plot, force, asked,
        )  # fmt: skip
    except AprError as error:
        if style == "json" and "--json" not in sys.argv:  # main prints it for --json
            print(json.dumps(error.as_json()))
        raise


def _continued(speculate: int | None, text: Path | None, against: str | None) -> dict[str, Any]:
    from apr.chat import read_prompt

    if speculate is None or text is None:
        raise UsageError(
            "--speculate", "continues a real text, for random tokens repeat nothing",
            "write --speculate N --text FILE",
        )  # fmt: skip
    if against is not None:
        raise UsageError("--speculate", "is measured alone", "leave --against out")
    return {"speculate": speculate, "text": read_prompt(None, text)}


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(flag, f"{text!r} is no list of numbers", f"write {flag} 1,4") from None


def _bench(
    file: Path,
    sizes: Sizes,
    against: str | None,
    style: str,
    record: Path | None,
    plot: Path | None,
    force: bool,
    settings: dict[str, Any],
) -> None:
    from rich.console import Console

    from apr.atomic import refuse_existing, write_text
    from apr.bench import FORMATS, Comparison, Record, against_peer, compare, render, run
    from apr.bench.peer import NAME
    from apr.bench.plot import draw

    if style not in FORMATS:
        raise UsageError("-o", f"{style!r} is no format", f"write {', '.join(FORMATS)}")
    for target in (record, plot):
        if target is not None:
            refuse_existing(target, force)
    result: Record | Comparison
    with Console(stderr=True).status("loading") as status:
        settings["progress"] = status.update
        if against is None:
            result = run(file, sizes, **settings)
        elif against == NAME:
            result = against_peer(file, sizes, **settings)
        else:
            result = compare(file, Path(against), sizes, **settings)
    if plot is not None:
        draw(result, plot, force=force)
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
