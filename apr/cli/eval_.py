"""`apr eval MODEL --dataset FILE`: perplexity of text, or code that the model writes."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from apr.errors import UsageError

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_OF_TEXT = ("against", "context", "chunks", "text_key")
_OF_TASKS = (
    "samples", "k", "problems", "max_tokens", "temperature", "top_p", "seed", "time_limit",
    "memory_limit", "weak", "floor",
)  # fmt: skip


@app.command()
def eval_(
    context_: typer.Context,
    model: Path = typer.Argument(..., help="An .apr file, a .gguf file or a Hugging Face folder."),
    dataset: list[str] = typer.Option(
        [], "--dataset", help="Text: files, folders, globs; repeatable. A task: its JSONL file."
    ),
    task: str = typer.Option(
        "perplexity", "--task", help="perplexity, humaneval or python-validity."
    ),
    against: Path | None = typer.Option(
        None, "--against", help="Perplexity: a second model, on the same chunks."
    ),
    context: int | None = typer.Option(
        None, "--context", "-c", help="Perplexity: tokens of a chunk (512)."
    ),
    chunks: int | None = typer.Option(
        None, "--chunks", help="Perplexity: the first so many chunks of each text (all)."
    ),
    text_key: str = typer.Option("text", "--text-key", help="The field of JSON records."),
    samples: int = typer.Option(1, "--samples", "-n", help="A task: completions of each problem."),
    k: list[int] = typer.Option(
        [], "-k", help="A task: the k of pass@k; repeatable (1, 10, 100 as far as samples go)."
    ),
    problems: int | None = typer.Option(
        None, "--problems", help="A task: the first so many problems (all)."
    ),
    max_tokens: int = typer.Option(512, "--max-tokens", help="A task: of a completion, at most."),
    temperature: float = typer.Option(0.0, "--temperature", help="A task: 0 is greedy."),
    top_p: float = typer.Option(1.0, "--top-p", help="A task: nucleus sampling."),
    seed: int = typer.Option(0, "--seed", help="A task: of the samples."),
    time_limit: float = typer.Option(
        5.0, "--time-limit", help="A task: seconds that a program may run."
    ),
    memory_limit: int = typer.Option(
        512, "--memory-limit", help="A task: MiB that a program may take."
    ),
    weak: bool = typer.Option(
        False,
        "--weak-confinement",
        help="A task: run programs also where the kernel cannot confine them.",
    ),
    floor: float | None = typer.Option(
        None, "--floor", help="A task: the share that must pass; below it the exit code is 5."
    ),
    output: Path | None = typer.Option(None, "--output", help="Also write the JSON record here."),
    force: bool = typer.Option(False, "--force", help="Overwrite the file of --output."),
    device: str | None = typer.Option(None, "--device", help="cpu, cuda or cuda:N."),
    dtype: str | None = typer.Option(
        None, "--dtype", help="float32, bfloat16 or float16; default: as the file stores."
    ),
    threads: int | None = typer.Option(None, "-t", "--threads", help="CPU threads."),
    as_json: bool = typer.Option(False, "--json", help="The record as JSON on stdout."),
) -> None:
    """Perplexity and bits per byte as llama-perplexity counts them; or pass@k of generated code."""
    from rich.console import Console

    from apr import eval as judge
    from apr.atomic import refuse_existing, write_text
    from apr.eval.render import as_table

    if output is not None:
        refuse_existing(output, force)
    _refuse(context_, _OF_TASKS if task == "perplexity" else _OF_TEXT, task)
    errors = Console(stderr=True)
    record: judge.Record | judge.CodeRecord
    with errors.status("reading") as status:
        if task == "perplexity":
            record = judge.perplexity(
                model,
                dataset,
                against=against,
                context=context,
                most_chunks=chunks,
                text_key=text_key,
                device=device,
                dtype=dtype,
                threads=threads,
                progress=status.update,
            )
        else:
            record = judge.evaluate(
                model,
                dataset,
                task,
                sampling=judge.Sampling(samples, max_tokens, temperature, top_p, seed),
                ks=k,
                most_problems=problems,
                limits=judge.Limits(time_limit, memory_limit << 20),
                weak=weak,
                floor=floor,
                device=device,
                dtype=dtype,
                threads=threads,
                progress=status.update,
            )
    text = json.dumps(record.to_json(), allow_nan=False)
    if output is not None:
        write_text(output, text + "\n", force=force)
    if as_json:
        print(text)
    else:
        out = Console()
        (out if out.is_terminal else Console(width=200)).print(as_table(record))
    if isinstance(record, judge.CodeRecord) and record.missed:
        errors.print(
            f"error: {model}: {record.share:.4f} passed, below the floor of {record.floor:g}",
            style="", markup=False, soft_wrap=True,
        )  # fmt: skip
        raise typer.Exit(5)


def _refuse(context: typer.Context, names: tuple[str, ...], task: str) -> None:
    """Flags of the other kind of task would be without effect: an error."""
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in names and source is not None and source.name == "COMMANDLINE":
            raise UsageError(
                option.opts[0], f"has no effect on --task {task}", "leave it out, or change --task"
            )
