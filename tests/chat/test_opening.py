"""What a model's maker recommends is taken from its generation config, where it samples."""

import dataclasses

import pytest

from apr.chat.opening import open_text_model, recommended
from apr.errors import ModelLoadError
from apr.formats import open_model


def test_a_sampling_generation_config_is_the_recommendation():
    config = {
        "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05,
        "repetition_penalty": 1.05, "eos_token_id": [1, 2],
    }  # fmt: skip
    assert recommended({"generation_config": config}) == {
        "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05,
    }  # fmt: skip
    assert recommended({"generation_config": {"do_sample": True}}) == {"temperature": 1.0}
    assert recommended({"generation_config": {"temperature": 0.6}}) == {}
    assert recommended({}) == {}


def test_a_model_without_a_tokenizer_is_refused_before_its_weights_are_read(plain_apr):
    opened = dataclasses.replace(open_model(plain_apr), load_tokenizer=lambda: None, tensors={})
    with pytest.raises(ModelLoadError, match="no embedded tokenizer"):
        open_text_model(opened)


def test_where_the_kernels_are_missing_a_note_says_what_computes_instead(plain_apr, monkeypatch):
    monkeypatch.setattr("apr.engine.native.unavailable", lambda: "CPU kernels: not built: why")
    [note] = open_text_model(plain_apr, device="cpu").notes
    assert note.startswith("computed by PyTorch, slower than")
    assert note.endswith("CPU kernels: not built: why")
    assert open_text_model(plain_apr, device="cpu", kernels="torch").notes == ()
