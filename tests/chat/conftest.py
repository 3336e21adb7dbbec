"""A tiny model with control tokens for a chat, and one that says what it is told."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from apr.chat import TextModel
from apr.tokenizer.pieces import added_token

_path = Path(__file__).resolve().parents[1] / "formats" / "conftest.py"
_spec = importlib.util.spec_from_file_location("apr_formats_conftest", _path)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
_few_threads = _module._few_threads
tiny = _module.tiny

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    """Without a chat template."""
    return tiny.make_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer(tokenizer):
    """With ChatML's two control tokens and its template; the end token is another one."""
    first = tokenizer.vocab_size
    added = [
        added_token(first + number, text, special=True)
        for number, text in enumerate(("<|im_start|>", "<|im_end|>"))
    ]
    spec = {**tokenizer.spec, "added_tokens": [*tokenizer.spec["added_tokens"], *added]}
    return dataclasses.replace(
        tokenizer, spec=spec, vocab_size=first + 2, chat_template=TEMPLATE, config={}, record={}
    )


@pytest.fixture(scope="session")
def plain_apr(tmp_path_factory, tokenizer):
    """A model without a chat template; its context is 128."""
    return tiny.write_tiny(tmp_path_factory.mktemp("plain") / "plain.apr", tokenizer=tokenizer)


@pytest.fixture(scope="session")
def chat_apr(tmp_path_factory, chat_tokenizer):
    """A model with a chat template; its context is 128."""
    path = tmp_path_factory.mktemp("chat") / "chat.apr"
    return tiny.write_tiny(path, tokenizer=chat_tokenizer)


class Plan:
    """Stands for what runs."""

    def __str__(self):
        return "engine script"

    def to_json(self):
        return {"device": "cpu"}


class Scripted:
    """An engine that answers with given texts, each ended by a token (or by none: `None`).

    `sessions` are all that were begun, with the ids they were fed. `fails_at`: after so many
    tokens Ctrl-C comes.
    """

    def __init__(self, tokenizer, answers, context=1000, fails_at=None):
        self.tokenizer, self.context, self.fails_at = tokenizer, context, fails_at
        self.plan, self.sessions, self.tokens = Plan(), [], 0
        self.answers = [
            [*tokenizer.encode(text), *([] if end is None else [end])] for text, end in answers
        ]

    def session(self):
        self.sessions.append(_Session(self))
        return self.sessions[-1]

    def generate(self, *args, **kwargs):
        from apr.engine.engine import Engine

        return Engine.generate(self, *args, **kwargs)

    def _require_cache(self, *_):
        """Nothing is kept."""


class _Session:
    def __init__(self, engine):
        self.engine, self.fed, self.said = engine, [], None

    @property
    def length(self):
        return len(self.fed)

    def prefill(self, ids):
        self.said = self.engine.answers.pop(0)
        self.fed += ids
        return self._next()

    def rewind(self, length):
        del self.fed[length:]
        return True

    def decode(self, id):
        self.fed.append(id)
        return self._next()

    def _next(self):
        if self.engine.tokens == self.engine.fails_at:
            raise KeyboardInterrupt
        self.engine.tokens += 1
        logits = np.zeros(self.engine.tokenizer.vocab_size, dtype=np.float32)
        logits[self.said[0] if len(self.said) == 1 else self.said.pop(0)] = 9
        return logits


@pytest.fixture
def speak(chat_tokenizer):
    """`speak((text, end), ...)`: a model that answers so."""

    def make(*answers, context=1000, fails_at=None, tokenizer=chat_tokenizer):
        engine = Scripted(tokenizer, answers, context, fails_at)
        return TextModel(Path("script.apr"), engine, tokenizer, {})

    return make
