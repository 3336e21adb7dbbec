"""Which tests are run: prompts and decodes, at depths and batch sizes, fitted to the context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from apr.errors import InferenceError, UsageError

DEFAULT_PROMPT, DEFAULT_DECODE, DEFAULT_REPETITIONS = 512, 128, 5


@dataclass(frozen=True)
class Test:
    """One test: `kind` is pp (a prompt in one pass) or tg (decode steps); `tokens` of each of
    `batch` sequences, after `depth` tokens that are not timed; where these are a `text`, it is
    continued, with up to `speculate` guessed tokens a pass.
    """

    __test__ = False  # no test for pytest
    kind: str
    tokens: int
    depth: int = 0
    batch: int = 1
    text: tuple[int, ...] = ()
    speculate: int | None = None

    @property
    def name(self) -> str:
        """`pp512`, `tg128@d512` (at depth 512), `tg128x4` (four sequences), `tg128@text` (after a
        text), `tg128@text+8` (with up to 8 guesses).
        """
        if self.text:
            guesses = f"+{self.speculate}" if self.speculate else ""
            return f"{self.kind}{self.tokens}@text{guesses}"
        batch = f"x{self.batch}" if self.batch > 1 else ""
        return f"{self.kind}{self.tokens}{batch}" + (f"@d{self.depth}" if self.depth else "")


@dataclass(frozen=True)
class Sizes:
    """Tests to run: tokens of each prompt and of each decode; empty leaves the kind out.

    None: the default, reduced to the context with a note. What was asked for is never reduced.
    `batches` hold for decoding alone.
    """

    prompts: tuple[int, ...] | None = None
    decodes: tuple[int, ...] | None = None
    repetitions: int = DEFAULT_REPETITIONS
    depths: tuple[int, ...] = (0,)
    batches: tuple[int, ...] = (1,)


def check(sizes: Sizes, floor: float | None) -> Sizes:
    """The sizes without zeros.

    Raises:
        UsageError: negative, or nothing is left to measure.
    """
    for flag, values in (("-p", sizes.prompts), ("-n", sizes.decodes), ("--depth", sizes.depths)):
        if any(n < 0 for n in values or ()):
            raise UsageError(flag, "a number of tokens is not negative", "write 0 to leave it out")
    if sizes.repetitions < 1:
        raise UsageError("-r", f"{sizes.repetitions} is less than 1", "write 1 or more")
    if not sizes.batches or min(sizes.batches) < 1:
        raise UsageError("--batch", "a batch has 1 sequence or more", "write for example 1,4")
    trimmed = replace(
        sizes,
        prompts=sizes.prompts and tuple(n for n in sizes.prompts if n),
        decodes=sizes.decodes and tuple(n for n in sizes.decodes if n),
    )
    if trimmed.prompts == () and trimmed.decodes == ():
        raise UsageError("-p 0 -n 0", "leaves nothing to measure", "give one of them")
    if floor is not None:
        if trimmed.decodes == ():
            raise UsageError("--floor", "holds for decoding, which -n 0 leaves out", "drop -n 0")
        if not (math.isfinite(floor) and floor > 0):
            raise UsageError("--floor", f"{floor} is no speed", "write tokens per second above 0")
    return trimmed


def continuing(
    text: tuple[int, ...], speculate: int, decodes: tuple[int, ...] | None, context: int
) -> list[Test]:
    """A text continued by as many tokens as the decode tests have steps, without guesses and with.

    Raises:
        UsageError: it does not fit into the context, or guesses are out of range.
    """
    from apr.engine.speculation import check_most

    check_most(speculate)
    out = []
    for tokens in decodes or (DEFAULT_DECODE,):
        if not text or len(text) + tokens > context:
            raise UsageError(
                "--text",
                f"its {len(text)} tokens and {tokens} more do not fit into the context of "
                f"{context} tokens"
                if text
                else "has no tokens",
                "give another text, or a smaller -n",
            )
        out += [Test("tg", tokens, len(text), 1, text, most) for most in (None, speculate)]
    return out


def plan(sizes: Sizes, context: int) -> tuple[list[Test], list[str]]:
    """The tests that fit into a context, and a note on each default that was reduced.

    Raises:
        UsageError: what was asked for does not fit.
        InferenceError: nothing is left.
    """
    out: list[Test] = []
    notes: list[str] = []
    depths = sizes.depths or (0,)
    # A decode of n steps begins after one token.
    for kind, flag, asked, default in (
        ("pp", "-p", sizes.prompts, DEFAULT_PROMPT),
        ("tg", "-n", sizes.decodes, DEFAULT_DECODE),
    ):
        rooms = [context - (max(d, 1) if kind == "tg" else d) for d in depths]
        if max(depths) >= context:
            raise UsageError(
                f"--depth {max(depths)}",
                f"leaves nothing of the context of {context} tokens",
                f"write --depth {context - 1} or less",
            )
        room = min(rooms)
        if asked is None:
            fits = min(default, room)
            if fits < default:
                notes.append(
                    f"{kind}{fits} instead of {kind}{default}: the context has {context} tokens"
                )
            asked = (fits,) if fits > 0 else ()
        for tokens in asked:
            if tokens > room:
                behind = f" behind a depth of {max(depths)}" if max(depths) else ""
                raise UsageError(
                    f"{flag} {tokens}",
                    f"does not fit into the context of {context} tokens{behind}",
                    f"write {flag} {room} or less",
                )
            batches: Sequence[int] = sizes.batches if kind == "tg" else (1,)
            out += [Test(kind, tokens, depth, batch) for depth in depths for batch in batches]
    if not out:
        raise InferenceError("bench", f"a context of {context} tokens leaves nothing to measure")
    return out, notes
