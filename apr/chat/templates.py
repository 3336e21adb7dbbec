"""Chat templates: Jinja text that came with a model, rendered as transformers renders it.

A template is somebody else's program. It runs in a sandbox with limits of time and size
(`apr.chat.sandbox`), sees plain JSON values alone and imports nothing. The settings, filters and
functions are those that templates are written for (`apply_chat_template` of transformers):
trim_blocks, lstrip_blocks, loop controls, `tojson` that does not escape for HTML,
`raise_exception`, `strftime_now`, and `{% generation %}` blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.errors import InferenceError, InvalidFormat, ModelLoadError, NotFound, StrPath

if TYPE_CHECKING:
    from jinja2 import Template

    from apr.tokenizer import Tokenizer

Message = Mapping[str, Any]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BUILT_IN = {"chatml": CHATML}
_MARKS = ("first-question", "first-answer", "second-question")


class ChatTemplate:
    """A template with the special tokens that it may name.

    Args:
        source: the Jinja text.
        special_tokens: `bos_token`, `eos_token`, ... by name.
        where: what errors call it.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        where: StrPath = "chat template",
    ) -> None:
        self.source, self.where = source, where
        self.special_tokens = dict(special_tokens or {})

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, chosen: str | None = None, model: StrPath = "model"
    ) -> ChatTemplate:
        """The model's own template, or the chosen one: a name of `BUILT_IN`, or a file.

        Raises:
            ModelLoadError: the model has none, and none was chosen.
            NotFound: the chosen one is no name and no file.
            InvalidFormat: the file is not UTF-8.
        """
        tokens = tokenizer.tokens()
        ids = {
            "bos_token": tokenizer.bos_token_id,
            "eos_token": tokenizer.eos_token_ids[0] if tokenizer.eos_token_ids else None,
            "unk_token": tokenizer.unk_token_id,
            "pad_token": tokenizer.pad_token_id,
        }
        special = {name: tokens[id] for name, id in ids.items() if id is not None}
        if chosen in BUILT_IN:
            return cls(BUILT_IN[chosen], special, chosen)
        if chosen is not None:
            return cls(_read(Path(chosen)), special, chosen)
        if tokenizer.chat_template is None:
            raise ModelLoadError(
                model,
                "has no chat template",
                "choose one: --template chatml or --template FILE (apr run continues plain text)",
            )
        return cls(tokenizer.chat_template, special, f"{model}: chat template")

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: each with `role` and `content`, JSON values.
            add_generation_prompt: end with what opens the assistant's answer.
            tools: JSON schemas of functions that the model may call.
            variables: further names for the template; they go before special tokens.

        Raises:
            InferenceError: the template refuses the conversation, in its own words.
            InvalidFormat: the template is no valid Jinja, or fails.
        """
        from jinja2.exceptions import TemplateError

        values = {**self.special_tokens, **variables}
        template = self._compiled
        try:
            template.environment.begin()  # type: ignore[attr-defined]
            return template.render(
                messages=_plain([_without_none(message) for message in messages]),
                tools=_plain(tools),
                documents=values.pop("documents", None),
                add_generation_prompt=add_generation_prompt,
                **_plain(values),
            )
        except TemplateError as error:
            if type(error) is TemplateError:  # raise_exception's
                raise InferenceError(self.where, f"refuses this conversation: {error}") from error
            raise InvalidFormat(self.where, f"fails: {error}") from error
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
                ValueError, MemoryError) as error:  # fmt: skip
            text = str(error) or type(error).__name__
            raise InvalidFormat(
                self.where, f"fails: {text}", "choose another: --template chatml or FILE"
            ) from error

    def between(self) -> str:
        """What stands between an answer and the next question; empty where it cannot be told.

        Raises:
            InvalidFormat: the template goes beyond its limits, as it would each time.
        """
        from apr.chat.sandbox import TooMuch

        first, answer, second = _MARKS
        messages = [
            {"role": "user", "content": first},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": second},
        ]
        try:
            text = self.render(messages, add_generation_prompt=False)
        except (InferenceError, InvalidFormat) as error:
            if isinstance(error.__cause__, TooMuch):
                raise
            return ""
        _, found, rest = text.partition(answer)
        middle, ends, _ = rest.partition(second)
        return middle if found and ends else ""

    @cached_property
    def _compiled(self) -> Template:
        from jinja2.exceptions import TemplateSyntaxError

        from apr.chat.sandbox import Environment

        try:
            return Environment().template(self.source)
        except TemplateSyntaxError as error:
            raise InvalidFormat(
                self.where,
                f"is no valid Jinja: {error.message}, line {error.lineno}",
                "choose another: --template chatml or FILE",
            ) from error
        except RecursionError as error:
            raise InvalidFormat(self.where, "is no valid Jinja: it nests too deep") from error


def _without_none(message: Message) -> dict[str, Any]:
    """Without keys of value None, which many templates would write as "None"."""
    return {key: value for key, value in message.items() if value is not None}


def _plain(value: Any) -> Any:
    """JSON values alone: no object's methods are within a template's reach."""
    return json.loads(json.dumps(value))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidFormat(path, f"is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise NotFound(
            path,
            f"is no chat template that can be read ({error.strerror or error})",
            f"write a file, or one of: {', '.join(BUILT_IN)}",
        ) from error
