"""`apr run MODEL "prompt"`: continue a prompt; the text streams to the terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from apr.cli import generation_options as options
from apr.errors import Interrupted

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def run(
    model: options.Model,
    prompt: str | None = typer.Argument(None, help="The text to continue; - or a pipe: stdin."),
    file: Path | None = typer.Option(None, "-f", "--file", help="Read the prompt from here."),
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    ignore_eos: bool = typer.Option(False, "--ignore-eos", help="Go on after end tokens."),
    raw: bool = typer.Option(False, "--raw", help="Without the bos that the tokenizer adds."),
    echo: bool = typer.Option(False, "--echo", help="Show the prompt before its continuation."),
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
    as_json: bool = typer.Option(False, "--json", help="One document on stdout, not a stream."),
    verbose: options.Verbose = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    threads: options.Threads = None,
    kernels: options.Kernels = None,
    cache: options.Cache = None,
) -> None:
    """Continue a prompt, greedily unless --temperature says otherwise."""
    from rich.console import Console

    from apr.chat import complete, open_text_model, read_prompt
    from apr.chat.terminal import Screen, signals_as_interrupt

    sampling = options.sampling(
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
        frequency_penalty, seed,
    )  # fmt: skip
    kept = options.kept(context_shift, keep)
    with signals_as_interrupt():
        text = read_prompt(prompt, file)
        with Console(stderr=True).status("loading"):
            opened = open_text_model(
                model, device=device, dtype=dtype, threads=threads, kernels=kernels, cache=cache
            )
        screen = Screen(sys.stdout)
        if echo and not as_json:
            screen.write(text)
        try:
            done = complete(
                opened,
                text,
                max_tokens=max_tokens,
                raw=raw,
                allow_unknown=allow_unknown,
                ignore_eos=ignore_eos,
                stop_strings=stop or (),
                sampling=sampling,
                speculate=speculate,
                keep=kept,
                on_text=None if as_json else screen.write,
            )
        finally:
            screen.end()
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    if verbose:
        print(f"{opened.engine.plan}\n{done.generation}", file=sys.stderr)
    if done.generation.stop_reason == "interrupted":
        count = len(done.generation.ids)
        what = f"stopped by the user after {count} tokens"
        raise Interrupted(model, what, "the text so far is kept", done.to_json())
    if as_json:
        print(json.dumps(done.to_json()))
