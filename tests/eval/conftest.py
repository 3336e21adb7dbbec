"""The same tiny models as in tests/formats, one that adds bos to a text, and a file of text."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from apr.tokenizer import Tokenizer

_path = Path(__file__).resolve().parents[1] / "formats" / "conftest.py"
_spec = importlib.util.spec_from_file_location("apr_formats_conftest", _path)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

_few_threads = _module._few_threads
tokenizer = _module.tokenizer
tiny_apr = _module.tiny_apr
shared = _module.shared


@pytest.fixture(scope="session")
def with_bos(tokenizer) -> Tokenizer:
    """The same tokenizer, but it puts its control token before a text."""
    id = tokenizer.eos_token_ids[0]
    token = tokenizer.tokens()[id]
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }  # fmt: skip
    found = replace(tokenizer, spec={**tokenizer.spec, "post_processor": template}, bos_token_id=id)
    assert found.added_around == ([id], [])
    return found


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """Some 12 kB of prose and code with many scripts, ending in a newline."""
    from apr.qa.samples import SCRIPTS, python_source

    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(SCRIPTS * 2 + python_source(10_000), encoding="utf-8")
    return path
