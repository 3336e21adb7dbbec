"""A conversation: history, the model's chat template, and a cache that is kept between turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from apr import receipt
from apr.chat.completion import room, with_seed
from apr.chat.templates import ChatTemplate
from apr.chat.unknown import check_known
from apr.errors import AprError, InferenceError, InvalidFormat, UsageError

if TYPE_CHECKING:
    from apr.chat.opening import TextModel
    from apr.engine import Generation, Sampling, Session, TextStream

MAX_TOKENS = 1024


@dataclass(frozen=True)
class Answer:
    """An answer's text, and how it was made; interrupted ones end where they were."""

    text: str
    generation: Generation


class Conversation:
    """Questions and answers with one model.

    An answer ends at the tokenizer's end tokens, and at what the template writes between an answer
    and the next question: its first token where that is a control token (`stop_ids`), else its
    first line as a text (`stop_strings`).

    Args:
        model: see `open_text_model`.
        template: how messages become a prompt.
        system: the system prompt, None for none.
        max_tokens: of one answer; None takes 1024, or fewer where the context ends.
        stop_strings: further ones.
        allow_unknown: characters that the tokenizer has no token for are no error.
        sampling: settings of `Sampler`. A missing seed is drawn; each answer's is one more.
        speculate: see `Engine.generate`.
        keep: likewise, and for a conversation that is longer than the context; -1 keeps what comes
            before the first question, up to half of the context.

    Raises:
        UsageError: the template leaves the system prompt out, or a setting is out of its range.
        InferenceError, InvalidFormat: see `ChatTemplate.render`.
    """

    def __init__(
        self,
        model: TextModel,
        template: ChatTemplate,
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        stop_strings: Sequence[str] = (),
        allow_unknown: bool = False,
        sampling: Sampling | None = None,
        speculate: int | None = None,
        keep: int | None = None,
    ) -> None:
        self.model, self.template = model, template
        self._engine, self._tokenizer = model.engine, model.tokenizer
        self._allow_unknown = allow_unknown
        self.max_tokens, self._speculate, self._keep = max_tokens, speculate, keep
        self.configure(sampling or {})
        self.stop_ids, found = self._ends()
        self.stop_strings = (*stop_strings, *found)
        self.system: str | None = None
        self.messages: list[dict[str, str]] = []
        self._session: Session | None = None
        self._processed: list[int] = []
        self.instruct(system)
        self._check_question()

    def configure(self, sampling: Sampling) -> None:
        """Other settings of `Sampler` from now on.

        Raises:
            UsageError: one is outside its range.
        """
        from apr.engine import Sampler

        Sampler(**sampling)
        self.sampling = with_seed(sampling)

    def instruct(self, system: str | None) -> None:
        """Another system prompt from now on, None for none; the history stays.

        Raises:
            UsageError: the template leaves it out.
        """
        rest = [message for message in self.messages if message["role"] != "system"]
        first = [] if system is None else [{"role": "system", "content": system}]
        if system is not None:
            self._check_system(system, [*first, *rest])
        self.system, self.messages = system, [*first, *rest]

    def reset(self) -> None:
        """Forget all but the system prompt."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        self.messages = system
        self._session, self._processed = None, []

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Answer:
        """The answer to a further question; both are in the history then.

        Ctrl-C ends the answer: what there is of it is returned and kept; if there is nothing, the
        question is forgotten too. After an error the history is what it was before.

        Raises:
            InferenceError: the conversation does not fit into the context; see `Engine.generate`
                and `check_known`.
            InvalidFormat: the template fails.
        """
        from apr.engine import GenerationStopped, TextStream

        stream = TextStream(
            self._tokenizer, stop_strings=self.stop_strings, on_text=on_text, continues=False
        )
        self.messages.append({"role": "user", "content": question})
        try:
            answer = self._generate(stream)
        except GenerationStopped as stopped:
            answer = Answer(stream.text, stopped.generations[0])
            if not answer.text:
                self.messages.pop()
                return answer
        except BaseException:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": answer.text})
        return answer

    def _generate(self, stream: TextStream) -> Answer:
        ids = self.prompt()
        # Whatever goes wrong below, a cache of which a step may be half done is not used again.
        session, self._session = self._session, None
        keep = self._kept()
        ids, shifts = self._fitting(ids, keep)
        asked = self.max_tokens if keep is None else None
        if len(ids) + (asked or 1) - 1 > self._engine.context:
            answer = f" and its answer up to {asked}" if asked else ""
            raise InferenceError(
                "context",
                f"the conversation has {len(ids)} tokens{answer}, the model's context "
                f"{self._engine.context}",
                "ask with fewer words, begin anew with /clear, or run with --context-shift",
            )
        # What was said may be split into other tokens when it is read: from there on it is new.
        # One token at least is processed, for its logits.
        known = _common(self._processed, ids[:-1])
        if session is None or not known or not session.rewind(known):
            session = self._engine.session()
        generation = self._engine.generate(
            ids,
            room(self._engine, len(ids), self.max_tokens, MAX_TOKENS, endless=keep is not None),
            stop_ids=self.stop_ids,
            stream=stream,
            session=session,
            speculate=self._speculate,
            keep=keep,
            **self._settings(),
        )
        self._session = session
        self._processed = [*ids, *generation.ids][: session.length]
        if generation.context_shifts:
            self._processed = list(session.ids)
        shifts += generation.context_shifts
        return Answer(stream.text, replace(generation, context_shifts=shifts))

    def _kept(self) -> int | None:
        """How many tokens at the beginning of a full context stay; None if it is not to go on."""
        if self._keep is None or self._keep >= 0:
            return self._keep
        first = next(m["content"] for m in self.messages if m["role"] == "user")
        before = self.template.render(self.messages).partition(first)[0] if first else ""
        return min(len(self._tokenizer.encode(before)), self._engine.context // 2)

    def _fitting(self, ids: list[int], keep: int | None) -> tuple[list[int], int]:
        """A prompt without what is too much for the context, where that may go, and how often its
        older half went.
        """
        from apr.engine.speculation import check_keep, shifted

        if keep is None:
            return ids, 0
        check_keep(keep, self._engine.context)
        shifts = 0
        while len(ids) > self._engine.context:
            ids = shifted(ids, keep)
            shifts += 1
        return ids, shifts

    def prompt(self) -> list[int]:
        """Ids of the conversation so far with what opens an answer; the template brings its bos."""
        text = self.template.render(self.messages)
        if not self._allow_unknown:
            check_known(self._tokenizer, text)
        return self._tokenizer.encode(text)

    def to_json(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The document of `apr chat --json`."""
        plan = self._engine.plan.to_json()
        return {
            "model": str(self.model.path),
            "template": str(self.template.where),
            "messages": self.messages,
            "answers": [
                {"text": one.text, "ids": one.generation.ids, **one.generation.statistics()}
                for one in answers
            ],
            "sampling": dict(self.sampling),
            "stop_ids": self.stop_ids,
            "stop_strings": list(self.stop_strings),
            "plan": plan,
            "receipt": receipt.receipt(plan["device"]),
        }

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
        between = self.template.between().lstrip()
        if not between:
            return ends, []
        first = self._tokenizer.encode(between)[0]
        if first in self._tokenizer.added:
            return list(dict.fromkeys([*ends, first])), []
        return ends, [between.splitlines()[0].rstrip()]

    def _check_system(self, system: str, messages: Sequence[dict[str, str]]) -> None:
        asked = [] if messages[-1]["role"] == "user" else [{"role": "user", "content": "?"}]
        try:
            text = self.template.render([*messages, *asked])
        except AprError as error:
            raise UsageError("system prompt", error.line(), "leave it out") from error
        if system.strip() not in text:
            raise UsageError(
                "system prompt",
                "the model's chat template leaves it out",
                "put it into the first question, or choose another --template",
            )

    def _check_question(self) -> None:
        """Refuse a template that leaves questions out: the model would answer something else."""
        question = "is this question within"
        with suppress(InferenceError):  # it refuses: in its words, once there is a question
            text = self.template.render([*self.messages, {"role": "user", "content": question}])
            if question not in text.lower():
                raise InvalidFormat(
                    self.template.where,
                    "leaves the question out of the prompt",
                    "choose another: --template chatml or FILE",
                )


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for number, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return number
    return min(len(first), len(second))
