"""Options that verbs share: how tokens are chosen, and where and on what the model runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apr.errors import UsageError

if TYPE_CHECKING:
    from apr.engine import Sampling

Model = Annotated[Path, typer.Argument(help="An .apr file, a .gguf file or a Hugging Face folder.")]
MaxTokens = Annotated[int | None, typer.Option("-n", "--max-tokens", help="Tokens at most.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="The text ends before this; repeatable.")
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", "--temp", help="0 takes the most likely token.")
]
TopK = Annotated[int | None, typer.Option("--top-k", help="Draw from this many; 0: all.")]
TopP = Annotated[
    float | None, typer.Option("--top-p", help="Draw from the likeliest with this share; 1: all.")
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", help="Draw from those with this share of the likeliest; 0: all."),
]
Repetition = Annotated[
    float | None,
    typer.Option("--repetition-penalty", help="Over 1: against tokens of prompt and answer."),
]
Presence = Annotated[
    float | None,
    typer.Option("--presence-penalty", help="Over 0: against tokens of the answer."),
]
Frequency = Annotated[
    float | None,
    typer.Option("--frequency-penalty", help="Over 0: the same, for each time it came."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Of the draws; default: a fresh one.")]
AllowUnknown = Annotated[
    bool,
    typer.Option("--allow-unknown", help="Characters without a token become the unknown token."),
]
Speculate = Annotated[
    int | None,
    typer.Option("--speculate", help="Guess up to N tokens from the text so far; same tokens."),
]
ContextShift = Annotated[
    bool,
    typer.Option("--context-shift", help="Where the context is full, drop the older half; go on."),
]
Keep = Annotated[
    int | None,
    typer.Option("--keep", help="Tokens at the beginning that --context-shift keeps."),
]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="What ran, and how fast, on stderr.")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N.")]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16 or float16; default: as the file stores."),
]
Kernels = Annotated[
    str | None,
    typer.Option(
        "--kernels",
        help="torch, native (the CPU's best) or a set of it (amx, avx512, avx2, portable), cuda.",
    ),
]
Cache = Annotated[
    str | None,
    typer.Option("--cache", help="Keys and values: float32, float16 or (CPU) int8."),
]
Threads = Annotated[int | None, typer.Option("-t", "--threads", help="CPU threads.")]


def kept(context_shift: bool, keep: int | None) -> int | None:
    """What stays of a full context: None ends the text there, -1 stands for the default.

    Raises:
        UsageError: something is to be kept where nothing is dropped, or less than nothing.
    """
    if keep is not None and not context_shift:
        raise UsageError("--keep", "has no effect alone", "add --context-shift")
    if keep is not None and keep < 0:
        raise UsageError("--keep", f"{keep} is negative", "write 0 or more")
    return (-1 if keep is None else keep) if context_shift else None


def sampling(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition: float | None,
    presence: float | None,
    frequency: float | None,
    seed: int | None,
) -> Sampling:
    """The settings that were given."""
    found: Sampling = {}
    if temperature is not None:
        found["temperature"] = temperature
    if top_k is not None:
        found["top_k"] = top_k
    if top_p is not None:
        found["top_p"] = top_p
    if min_p is not None:
        found["min_p"] = min_p
    if repetition is not None:
        found["repetition_penalty"] = repetition
    if presence is not None:
        found["presence_penalty"] = presence
    if frequency is not None:
        found["frequency_penalty"] = frequency
    if seed is not None:
        found["seed"] = seed
    return found
