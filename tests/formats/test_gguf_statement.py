"""What our GGUF files state beside llama.cpp's keys, and which of the two wins."""

import json

import pytest
from apr_tiny import make_tokenizer, write_tiny

from apr import families
from apr.errors import InvalidFormat
from apr.formats import gguf_writer, open_model
from apr.formats.gguf_reader import GgufFile
from apr.formats.gguf_statement import ARCHITECTURE

TOKENIZER = make_tokenizer()
MISTRAL = {"sliding_window": 128, "initializer_range": 0.05, "rope_theta": 1234567.891}


def model(tmp_path, **changes):
    return open_model(write_tiny(tmp_path / "m.apr", tokenizer=TOKENIZER, **changes))


def written(tmp_path, monkeypatch, source, **changes):
    """The GGUF of a model, with other key-values than we write; a None leaves one out."""
    right = gguf_writer.write_container

    def changed(file, fields, *args):
        fields = {**fields, **changes}
        right(file, {k: v for k, v in fields.items() if v is not None}, *args)

    monkeypatch.setattr(gguf_writer, "write_container", changed)
    gguf_writer.write_gguf(tmp_path / "m.gguf", source, force=True)
    return tmp_path / "m.gguf"


def test_what_the_keys_cannot_say_comes_back(tmp_path, monkeypatch):
    source = model(tmp_path, family="mistral", **MISTRAL)
    path = written(tmp_path, monkeypatch, source)
    stated = json.loads(GgufFile.open(path).fields[ARCHITECTURE])
    assert stated == {"family": "mistral", **MISTRAL}
    assert open_model(path).architecture == source.architecture


def test_a_model_that_the_keys_describe_states_nothing(tmp_path, monkeypatch):
    path = written(tmp_path, monkeypatch, model(tmp_path))
    assert ARCHITECTURE not in GgufFile.open(path).fields


def test_a_file_without_the_statement_opens_by_its_keys(tmp_path, monkeypatch):
    source = model(tmp_path, family="mistral", sliding_window=128)
    path = written(tmp_path, monkeypatch, source, **{ARCHITECTURE: None})
    assert open_model(path).architecture == families.as_opened_from_gguf(source.architecture)


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("llama.rope.freq_base", 5000.0, "rope_theta"),
        (ARCHITECTURE, '{"family":"mistral","num_layers":3}', "num_layers"),
        (ARCHITECTURE, '{"family":"mistral","sliding_window":16}', "sliding_window"),
        (ARCHITECTURE, '{"family":"qwen2"}', "qkv_bias"),
        (ARCHITECTURE, '{"family":"mamba"}', "family"),
    ],
    ids=str,
)
def test_the_keys_win_where_the_statement_contradicts_them(
    tmp_path, monkeypatch, key, value, field
):
    source = model(tmp_path, family="mistral", **MISTRAL)
    opened = open_model(written(tmp_path, monkeypatch, source, **{key: value})).architecture
    by_keys = families.as_opened_from_gguf(source.architecture)
    expected = value if key == "llama.rope.freq_base" else getattr(by_keys, field)
    assert (opened.family, getattr(opened, field)) == ("llama", expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"shape_of_the_moon": 1}', "shape_of_the_moon"),
        ('{"initializer_range": "wide"}', "initializer_range is 'wide'"),
        ("[]", "no valid JSON object"),
    ],
)
def test_a_statement_of_no_use_is_refused(tmp_path, monkeypatch, text, message):
    path = written(tmp_path, monkeypatch, model(tmp_path), **{ARCHITECTURE: text})
    with pytest.raises(InvalidFormat, match=message):
        open_model(path)
