"""Models of tests/chat, and the command line in this process."""

import importlib.util
from pathlib import Path

import pytest

from apr.cli import main

_path = Path(__file__).resolve().parents[1] / "chat" / "conftest.py"
_spec = importlib.util.spec_from_file_location("apr_chat_conftest", _path)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
_few_threads = _module._few_threads
tokenizer = _module.tokenizer
chat_tokenizer = _module.chat_tokenizer
plain_apr = _module.plain_apr
chat_apr = _module.chat_apr


@pytest.fixture(scope="session")
def endless_apr(tmp_path_factory, chat_tokenizer):
    """A model that can be asked for more than anybody waits for."""
    path = tmp_path_factory.mktemp("endless") / "endless.apr"
    return _module.tiny.write_tiny(path, tokenizer=chat_tokenizer, max_position_embeddings=50_000)


@pytest.fixture
def apr(capsys, monkeypatch):
    """`apr(*arguments)` -> (exit code, stdout, stderr)."""
    monkeypatch.setattr("sys.argv", ["apr"])

    def call(*arguments):
        code = main.run([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call
