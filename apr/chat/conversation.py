"""A conversation: history, the model's chat template, and a cache that is kept between turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apr.chat.completion import room, with_seed
from apr.chat.templates import ChatTemplate
from apr.errors import AprError, InferenceError, UsageError

if TYPE_CHECKING:
    from apr.engine import Engine, Generation, Sampling, Session
    from apr.tokenizer import Tokenizer

MAX_TOKENS = 1024


@dataclass(frozen=True)
class Answer:
    """An answer's text; `generation` is None where it was interrupted."""

    text: str
    generation: Generation | None


class Conversation:
    """Questions and answers with one model.

    An answer ends at the tokenizer's end tokens, and at what the template writes between an answer
    and the next question: its first token where that is a control token (`stop_ids`), else its
    first line as a text (`stop_strings`).

    Args:
        engine: the loaded model.
        tokenizer: its tokenizer.
        template: how messages become a prompt.
        system: the system prompt, None for none.
        max_tokens: of one answer; None takes 1024, or fewer where the context ends.
        stop_strings: further ones.
        sampling: settings of `Sampler`. A missing seed is drawn; each answer's is one more.

    Raises:
        UsageError: the template leaves the system prompt out.
        InferenceError, InvalidFormat: see `ChatTemplate.render`.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        stop_strings: Sequence[str] = (),
        sampling: Sampling | None = None,
    ) -> None:
        self._engine, self._tokenizer, self._template = engine, tokenizer, template
        self._system, self._max_tokens = system, max_tokens
        self.sampling = with_seed(sampling or {})
        self.stop_ids, found = self._ends()
        self.stop_strings = (*stop_strings, *found)
        self.reset()
        self._check_system()

    def reset(self) -> None:
        """Forget all but the system prompt."""
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        self.messages: list[dict[str, str]] = system
        self._session: Session | None = None
        self._processed: list[int] = []

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Answer:
        """The answer to a further question; both are in the history then.

        Ctrl-C ends the answer: what there is of it is returned and kept. After an error the
        history is what it was before.

        Raises:
            InferenceError: the conversation does not fit into the context; see `Engine.generate`.
            InvalidFormat: the template fails.
        """
        from apr.engine import TextStream

        self.messages.append({"role": "user", "content": question})
        stream = TextStream(
            self._tokenizer, stop_strings=self.stop_strings, on_text=on_text, continues=False
        )
        try:
            answer = self._generate(stream)
        except KeyboardInterrupt:
            # A step may be half done: the cache is not to be trusted any more.
            self._session = None
            answer = Answer(stream.text, None)
        except BaseException:
            self._session = None
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": answer.text})
        return answer

    def _generate(self, stream: TextStream) -> Answer:
        ids = self.prompt()
        if len(ids) > self._engine.context:
            raise InferenceError(
                "context",
                f"the conversation has {len(ids)} tokens, the model's context "
                f"{self._engine.context}",
                "/reset begins a new one",
            )
        session, self._session = self._session, None
        known = self._processed
        if session is None or len(known) >= len(ids) or ids[: len(known)] != known:
            session = self._engine.session()
        generation = self._engine.generate(
            ids,
            room(self._engine, len(ids), self._max_tokens, MAX_TOKENS),
            stop_ids=self.stop_ids,
            stream=stream,
            session=session,
            **self._settings(),
        )
        self._session = session
        self._processed = [*ids, *generation.ids][: session.length]
        return Answer(stream.text, generation)

    def prompt(self) -> list[int]:
        """Ids of the conversation so far with what opens an answer; the template brings its bos."""
        return self._tokenizer.encode(self._template.render(self.messages))

    def _settings(self) -> Sampling:
        """Each answer draws anew, or the same question had the same answer after all that was
        said between.
        """
        if "seed" not in self.sampling:
            return self.sampling
        turn = sum(message["role"] == "user" for message in self.messages) - 1
        return {**self.sampling, "seed": self.sampling["seed"] + turn}

    def _ends(self) -> tuple[list[int], list[str]]:
        ends = list(self._tokenizer.eos_token_ids)
        between = self._template.between().lstrip()
        if not between:
            return ends, []
        first = self._tokenizer.encode(between)[0]
        if first in self._tokenizer.added:
            return list(dict.fromkeys([*ends, first])), []
        return ends, [between.splitlines()[0].rstrip()]

    def _check_system(self) -> None:
        if self._system is None:
            return
        try:
            text = self._template.render([*self.messages, {"role": "user", "content": "?"}])
        except AprError as error:
            raise UsageError("--system", error.line(), "leave --system out") from error
        if self._system.strip() not in text:
            raise UsageError(
                "--system",
                "the model's chat template leaves the system prompt out",
                "put it into the first question, or choose another --template",
            )
