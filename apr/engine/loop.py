"""The generation loop: logits to tokens to text, for one sequence or several in lockstep.

It knows of a model only that sequences of it can be begun and fed (`Steps`), so that every way of
computing logits generates in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from apr.engine.generation import Generation
from apr.engine.sampling import Sampler
from apr.engine.speculation import PromptLookup, check_keep, shifted
from apr.engine.streaming import TextStream
from apr.errors import InferenceError, UsageError

Logits = npt.NDArray[np.float32]


class Steps(Protocol):
    """One sequence of a model."""

    @property
    def length(self) -> int:
        """Tokens processed so far."""

    def prefill(self, ids: Sequence[int], /) -> Logits:
        """Process further tokens; logits after the last one, `[vocab]`."""

    def decode(self, token_id: int, /) -> Logits:
        """Process one further token; the logits after it, `[vocab]`."""

    def verify(self, ids: Sequence[int], /) -> Logits:
        """Process the first n of `ids`, at least one; logits `[n, vocab]` after each, of which the
        same tokens are chosen as of those that `decode` would give.
        """

    def rewind(self, length: int, /) -> bool:
        """Forget all but the first tokens; False where that cannot be."""

    def reset(self) -> None:
        """Forget all tokens."""


class GenerationStopped(KeyboardInterrupt):
    """Ctrl-C came while tokens were generated; `generations` holds what there was, one a prompt.

    A step may be half done: the sessions are not to be used any more.
    """

    def __init__(self, generations: list[Generation]) -> None:
        super().__init__("stopped by the user")
        self.generations = generations


class Writing:
    """The state of one generation: takes logits, chooses tokens, knows when to end.

    Args:
        prompt: its ids.
        cached: how many of them were processed before.
        room: tokens that may follow, at least 1; `bounded` says whether that was asked for, or is
            all that the context has.
        stops: ids that end the text.
        lookup: guesses tokens to come; None leaves every token to a step of its own.
        keep: tokens that stay at the beginning of a full context, while half of the others go;
            None ends the text there.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        cached: int,
        room: int,
        bounded: bool,
        stops: Collection[int],
        on_token: Callable[[int], None] | None,
        stream: TextStream | None,
        lookup: PromptLookup | None = None,
        keep: int | None = None,
    ) -> None:
        sampler.start(prompt)
        self.ids: list[int] = []
        self.lookup, self.keep, self.shifts = lookup, keep, 0
        self._prompt, self._cached, self._sampler = len(prompt), cached, sampler
        self._room, self._full = room, "length" if bounded else "context"
        self._stops, self._on_token, self._stream = stops, on_token, stream
        self._steps = 0
        self._stop_id: int | None = None
        self._called = self._began = time.perf_counter()
        self._times: list[float] = []  # prompt processed, first token chosen, end

    @property
    def left(self) -> int:
        """Tokens that may still follow."""
        return self._room - len(self.ids)

    def begin(self) -> None:
        """Its prompt is processed from now on."""
        self._began = time.perf_counter()

    def take(self, logits: Logits) -> bool:
        """Choose the token after logits `[vocab]`; whether a further one is wanted after it."""
        if self._times:
            self._steps += 1
        else:
            self._times = [time.perf_counter()]
        token = self._sampler(logits)
        if len(self._times) == 1:
            self._times.append(time.perf_counter())
        if token in self._stops:
            self._stop_id = token
            return False
        self.ids.append(token)
        if self._on_token is not None:
            self._on_token(token)
        goes_on = self._stream is None or self._stream.feed(token)
        return goes_on and len(self.ids) < self._room

    def result(self, *, interrupted: bool = False) -> Generation:
        """What was generated; the stream gives out the rest of its text."""
        stream = self._stream
        if stream is not None:
            stream.finish()
        lookup = self.lookup
        now = time.perf_counter()
        prefilled, first = [*self._times, now, now][:2]
        stop_string = None if stream is None else stream.stop_string
        stopped = self._stop_id is not None or stop_string is not None
        return Generation(
            ids=self.ids,
            prompt_tokens=self._prompt,
            prefill_seconds=prefilled - self._began,
            decode_seconds=now - first,
            decode_steps=self._steps,
            time_to_first_token=first - self._called if self._times else None,
            stop_reason="stop" if stopped else "interrupted" if interrupted else self._full,
            stop_id=self._stop_id,
            stop_string=stop_string,
            text=None if stream is None else stream.text,
            cached_tokens=self._cached,
            context_shifts=self.shifts,
            speculative_passes=None if lookup is None else lookup.passes,
            drafted_tokens=None if lookup is None else lookup.drafted,
            accepted_tokens=None if lookup is None else lookup.accepted,
        )


def room(context: int, prompt: int, asked: int | None, keep: int | None = None) -> int:
    """How many tokens may follow a prompt; the last of them is not fed back. With `keep` the
    context's end does not bound those that were asked for.

    Raises:
        UsageError: less than one was asked for.
        InferenceError: prompt and continuation do not fit into the context.
    """
    if asked is not None and asked < 1:
        raise UsageError("max_tokens", f"{asked} is less than 1", "write 1 or more")
    if keep is not None:
        check_keep(keep, context)
    needed = prompt + (asked if asked and keep is None else 1) - 1
    if needed > context:
        bound = asked is not None and keep is None
        new = f" and {asked} new ones need {needed} positions" if bound else ""
        raise InferenceError(
            "context",
            f"{prompt} prompt tokens{new or ' are too many'}, the model's context has {context}",
            "use a shorter prompt" + (" or generate fewer tokens" if new else ""),
        )
    return context - prompt + 1 if asked is None else asked


def write(
    session: Steps, prompt: Sequence[int], writing: Writing, context: int | None = None
) -> Generation:
    """Run one generation to its end, in at most `context` positions.

    Raises:
        GenerationStopped: Ctrl-C came.
    """
    lookup, keep = writing.lookup, writing.keep
    try:
        writing.begin()
        text = list(prompt)  # what the session holds, and the token that it is to take next
        if lookup is not None:
            lookup.extend(prompt)
        wanted = writing.take(session.prefill(prompt[session.length :]))
        while wanted:
            text.append(writing.ids[-1])
            free = writing.left - 1
            if context is not None:
                free = min(free, context - len(text))
            draft: list[int] = []
            if lookup is not None:
                lookup.extend(text[-1:])
                draft = lookup.propose(free)
            if keep is not None and context is not None and len(text) > context:
                text = shifted(text, keep)
                writing.shifts += 1
                session.reset()
                wanted = writing.take(session.prefill(text))
            elif draft:
                wanted = _take_checked(session, text, draft, writing)
            else:
                wanted = writing.take(session.decode(text[-1]))
    except KeyboardInterrupt as stop:
        raise GenerationStopped([writing.result(interrupted=True)]) from stop
    return writing.result()


def _take_checked(session: Steps, text: list[int], draft: list[int], writing: Writing) -> bool:
    """Process the last token of a text in one pass with what may follow it, and take the tokens
    that really do; those of them that are processed then are added to the text. Whether a further
    token is wanted.
    """
    start = session.length
    rows = session.verify([text[-1], *draft])
    accepted = 0
    while (wanted := writing.take(rows[accepted])) and accepted + 1 < len(rows):
        if writing.ids[-1] != draft[accepted]:
            break
        accepted += 1
    if session.length > start + 1 + accepted and not session.rewind(start + 1 + accepted):
        raise InferenceError("speculation", "the cache cannot be taken back", "leave it off")
    text += draft[:accepted]
    if writing.lookup is not None:
        writing.lookup.extend(draft[:accepted])
        writing.lookup.judged(len(draft), accepted)
    return wanted


def write_together(
    sessions: Sequence[Steps],
    prompts: Sequence[Sequence[int]],
    writings: Sequence[Writing],
    step: Callable[[Sequence[int], Sequence[int]], Logits],
) -> list[Generation]:
    """Run several generations in lockstep: each prompt in a pass of its own, then all that are not
    at their end by one token at a time.

    Args:
        sessions: one for each prompt, empty.
        prompts: of any lengths.
        writings: one for each prompt.
        step: given the numbers of the sequences that go on and their last tokens, logits
            `[sequences, vocab]`.

    Raises:
        GenerationStopped: Ctrl-C came.
    """
    done: list[Generation | None] = [None] * len(prompts)
    try:
        active = []
        for number, (session, prompt, writing) in enumerate(
            zip(sessions, prompts, writings, strict=True)
        ):
            writing.begin()
            if writing.take(session.prefill(prompt)):
                active.append(number)
            else:
                done[number] = writing.result()
        while active:
            rows = step(active, [writings[number].ids[-1] for number in active])
            going = []
            for number, row in zip(active, rows, strict=True):
                if writings[number].take(row):
                    going.append(number)
                else:
                    done[number] = writings[number].result()
            active = going
    except KeyboardInterrupt as stop:
        raise GenerationStopped(
            [
                writing.result(interrupted=True) if one is None else one
                for one, writing in zip(done, writings, strict=True)
            ]
        ) from stop
    return [one for one in done if one is not None]
