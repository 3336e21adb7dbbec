"""Every rule of contracts/special-tokens.yaml can fail, and sound tokenizers pass."""

from dataclasses import replace

import pytest

from apr import contracts
from apr.tokenizer.expectations import special_token_problems


def test_a_trained_tokenizer_has_no_problem(each, chatty):
    assert special_token_problems(each) == []
    assert special_token_problems(chatty) == []


@pytest.mark.parametrize(
    ("rule", "change"),
    [("TOK-EOS", {"eos_token_ids": ()}), ("TOK-RANGE", {"pad_token_id": 1000, "vocab_size": 1001})],
)
def test_each_rule_can_fail(rule, change, each):
    assert rule in {found for found, _ in special_token_problems(replace(each, **change))}


@pytest.mark.parametrize(
    ("name", "bos", "eos", "pad"),
    [
        ("gpt-2", 50256, 50256, None),
        ("qwen2", 151643, 151645, 151643),
        ("phi-3", 1, 32000, 32000),
    ],
)
def test_a_published_vocabulary_needs_its_familys_ids(name, bos, eos, pad, published):
    made = published.made(name)
    sound = replace(made, bos_token_id=bos, eos_token_ids=(eos,), pad_token_id=pad)
    assert special_token_problems(sound) == []
    for change in ({"bos_token_id": 7}, {"eos_token_ids": (7,)}, {"pad_token_id": 7}):
        [(rule, text)] = special_token_problems(replace(sound, **change))
        assert rule == "TOK-FAMILY"
        assert "is 7" in text


def test_every_rule_has_a_case_above():
    stated = {rule["id"] for rule in contracts.load("special-tokens")["rules"]}
    assert stated == {"TOK-EOS", "TOK-RANGE", "TOK-FAMILY"}
