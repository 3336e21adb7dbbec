"""`apr chat MODEL`: talk with a model, through its own chat template."""

from __future__ import annotations

import json
import sys

import typer

from apr.cli import generation_options as options
from apr.errors import Interrupted, UsageError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def chat(
    model: options.Model,
    question: str | None = typer.Argument(
        None, help="Ask this alone; - reads it from stdin. Default: line by line."
    ),
    system: str | None = typer.Option(None, "--system", help="The system prompt."),
    template: str | None = typer.Option(
        None, "--template", help="chatml, or a Jinja file; default: the model's own."
    ),
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.Repetition = None,
    presence_penalty: options.Presence = None,
    frequency_penalty: options.Frequency = None,
    seed: options.Seed = None,
    speculate: options.Speculate = None,
    context_shift: options.ContextShift = False,
    keep: options.Keep = None,
    allow_unknown: options.AllowUnknown = False,
    as_json: bool = typer.Option(False, "--json", help="One document on stdout, at the end."),
    verbose: options.Verbose = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    threads: options.Threads = None,
    kernels: options.Kernels = None,
    cache: options.Cache = None,
) -> None:
    """Talk with a model. Without --temperature it samples as its generation config says, else takes
    the most likely token. /? at the prompt lists the commands.
    """
    from rich.console import Console

    from apr.chat import ChatTemplate, Conversation, open_text_model, read_prompt
    from apr.chat.shell import Shell
    from apr.chat.terminal import Screen, hidden, reader, signals_as_interrupt
    from apr.formats import open_model

    sampling = options.sampling(
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
        frequency_penalty, seed,
    )  # fmt: skip
    kept = options.kept(context_shift, keep)
    watched = question is None and sys.stdin.isatty()
    if as_json and watched:
        raise UsageError("--json", "needs its questions", "write one, or give lines on stdin")
    with signals_as_interrupt() as terminated:
        asked = None if question is None else read_prompt(question, None, "write it, or -")
        with Console(stderr=True).status("loading"):
            found = open_model(model)
            chosen = ChatTemplate.of(found.require_tokenizer(), template, model)
            opened = open_text_model(
                found, device=device, dtype=dtype, threads=threads, kernels=kernels, cache=cache
            )
        conversation = Conversation(
            opened,
            chosen,
            system=system,
            max_tokens=max_tokens,
            stop_strings=stop or (),
            allow_unknown=allow_unknown,
            sampling={**opened.recommended, **sampling},
            speculate=speculate,
            keep=kept,
        )
        shell = Shell(
            conversation,
            hidden() if as_json else Screen(sys.stdout),
            lambda line: print(line, file=sys.stderr),
            verbose=verbose,
            patient=watched,
            over=terminated.is_set,
        )
        for note in opened.notes:
            print(f"note: {note}", file=sys.stderr)
        if verbose:
            print(opened.engine.plan, file=sys.stderr)
        if watched:
            print("/? lists the commands, /bye leaves", file=sys.stderr)
        if asked is None:
            whole = shell.run(reader(watched))
        else:
            whole = shell.ask(asked).generation.stop_reason != "interrupted"
    document = conversation.to_json(shell.answers)
    if not whole:
        raise Interrupted(model, "stopped by the user", "what was said so far is kept", document)
    if as_json:
        print(json.dumps(document))
