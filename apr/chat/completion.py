"""A prompt and its continuation, with all that a program wants to know about them."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr import receipt
from apr.chat.unknown import check_known
from apr.errors import InferenceError, InvalidFormat, NotFound, UsageError

if TYPE_CHECKING:
    from apr.chat.opening import TextModel
    from apr.engine import Engine, Generation, Sampling
    from apr.tokenizer import Tokenizer

MAX_TOKENS = 256
_HOW = "write it as an argument, --file FILE, or give it on stdin"


@dataclass(frozen=True)
class Completion:
    """What `complete` gave. `notes` are sentences for the user."""

    model: str
    prompt_ids: list[int]
    generation: Generation
    sampling: Sampling
    plan: dict[str, Any]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The document of `apr run --json`."""
        return {
            "model": self.model,
            "text": self.generation.text,
            "ids": self.generation.ids,
            "prompt_ids": self.prompt_ids,
            "statistics": self.generation.statistics(),
            "sampling": dict(self.sampling),
            "plan": self.plan,
            "notes": self.notes,
            "receipt": receipt.receipt(self.plan["device"]),
        }


def read_prompt(argument: str | None, file: Path | None, how: str = _HOW) -> str:
    """The prompt's text, to the byte: an argument, a file, or stdin for `-` and where neither is
    given and nobody types; `how` is said of it.

    Raises:
        UsageError: there is none, there are two, or it is empty.
        NotFound: the file cannot be read.
        InvalidFormat: it is not UTF-8.
    """
    if argument is not None and file is not None:
        raise UsageError("prompt", "is given twice, as text and as --file", how)
    if argument is None and file is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("prompt", "there is none", how)
        argument = "-"
    try:
        if file is not None:
            where, text = str(file), file.read_bytes().decode("utf-8")
        elif argument == "-":
            where, text = "stdin", sys.stdin.buffer.read().decode("utf-8")
        else:
            where, text = "prompt", argument or ""
    except UnicodeDecodeError as error:
        raise InvalidFormat(file or "stdin", f"is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise NotFound(file or "stdin", f"cannot be read: {error.strerror or error}") from error
    if not text:
        raise UsageError(where, "the prompt is empty", how)
    return text


def prompt_ids(
    tokenizer: Tokenizer, text: str, *, raw: bool = False
) -> tuple[list[int], list[str]]:
    """Ids of a prompt to be continued, and notes about them.

    What the tokenizer's template puts before a text is put there; what it puts behind (an end
    token) is not, for the text is to go on. `raw` leaves out both.
    """
    ids = tokenizer.encode(text)
    if raw:
        return ids, []
    before, after = tokenizer.added_around
    notes = []
    if before and ids[: len(before)] == before:
        name = tokenizer.decode(before)
        notes.append(f"the prompt begins with {name}, and the tokenizer adds another; see --raw")
    if after:
        name = tokenizer.decode(after)
        notes.append(f"{name}, which the tokenizer puts after a text, is left out of the prompt")
    return [*before, *ids], notes


def with_seed(sampling: Sampling) -> Sampling:
    """The settings with a seed: where draws are made and none was asked for, a fresh one."""
    if sampling.get("temperature", 0.0) == 0.0 or "seed" in sampling:
        return sampling
    return {**sampling, "seed": secrets.randbits(32)}


def room(
    engine: Engine, prompt: int, asked: int | None, default: int, *, endless: bool = False
) -> int | None:
    """Tokens to ask the engine for: `asked`, or `default` as far as the context allows (None);
    an `endless` one allows all.
    """
    if asked is not None:
        return asked
    return default if endless or prompt + default - 1 <= engine.context else None


def complete(
    model: TextModel,
    text: str,
    *,
    max_tokens: int | None = None,
    raw: bool = False,
    allow_unknown: bool = False,
    ignore_eos: bool = False,
    stop_strings: Sequence[str] = (),
    sampling: Sampling | None = None,
    speculate: int | None = None,
    keep: int | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Completion:
    """Continue a text. Ctrl-C ends it early: `stop_reason` is `interrupted` then.

    Args:
        model: see `open_text_model`.
        text: the prompt, at least one token.
        max_tokens: None takes 256, or fewer where the context ends.
        raw: without what the tokenizer's template adds.
        allow_unknown: characters that the tokenizer has no token for are no error.
        ignore_eos: end tokens do not end the text.
        stop_strings: the text ends before the first of them.
        sampling: settings of `Sampler`; greedy by default. A missing seed is drawn and recorded.
        speculate: see `Engine.generate`.
        keep: likewise; -1 keeps what the tokenizer puts before a text.
        on_text: called with each piece of the text as soon as it is certain.

    Raises:
        InferenceError, UsageError: see `Engine.generate` and `check_known`.
    """
    from apr.engine import GenerationStopped, TextStream

    engine, tokenizer = model.engine, model.tokenizer
    if not allow_unknown:
        check_known(tokenizer, text)
    ids, notes = prompt_ids(tokenizer, text, raw=raw)
    if not ids:
        raise InferenceError("prompt", "has no tokens", "write some text")
    settings = with_seed(sampling or {})
    if keep == -1:
        before = tokenizer.added_around[0]
        keep = len(before) if ids[: len(before)] == before else 0
    stream = TextStream(tokenizer, stop_strings=stop_strings, on_text=on_text)
    try:
        generation = engine.generate(
            ids,
            room(engine, len(ids), max_tokens, MAX_TOKENS, endless=keep is not None),
            stop_ids=() if ignore_eos else None,
            stream=stream,
            speculate=speculate,
            keep=keep,
            **settings,
        )
    except GenerationStopped as stopped:
        generation = stopped.generations[0]
    notes = [*model.notes, *notes]
    return Completion(str(model.path), ids, generation, settings, engine.plan.to_json(), notes)
