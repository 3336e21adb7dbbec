"""Characters without a token: named with their place, where a tokenizer has such."""

import dataclasses

import pytest

from apr.chat.unknown import check_known
from apr.errors import InferenceError
from apr.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def letters():
    """A SentencePiece-like tokenizer of a few letters, without bytes to fall back on."""
    pieces = ["<unk>", "\u2581", "a", "b", "c", "\u2581a"]
    spec = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{
            "id": 0, "content": "<unk>", "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581",
                          "prepend_scheme": "never", "split": False},
        "post_processor": None,
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never",
                    "split": False},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "byte_fallback": False, "ignore_merges": False,
                  "vocab": {piece: id for id, piece in enumerate(pieces)},
                  "merges": [["\u2581", "a"]]},
    }  # fmt: skip
    return Tokenizer(spec=spec, vocab_size=6, unk_token_id=0)


def test_unknown_characters_are_named_with_the_place_of_the_first(letters):
    check_known(letters, "abc cab a")
    with pytest.raises(
        InferenceError, match=r"no token for 'ξ' \(U\+03BE\), .*character 4"
    ) as error:
        check_known(letters, "ab ξa")
    assert "--allow-unknown" in error.value.line()
    assert error.value.exit_code == 8
    with pytest.raises(InferenceError, match=r"'d'.*'h' \(U\+0068\) and 3 more"):
        check_known(letters, "defghijk")


def test_a_byte_level_tokenizer_knows_every_text(tokenizer):
    check_known(tokenizer, "ξ 😀\x00\u200b\n")


def test_what_a_tokenizer_drops_without_a_word_is_unknown_too(letters):
    model = {**letters.spec["model"], "unk_token": None}
    silent = dataclasses.replace(letters, spec={**letters.spec, "model": model}, unk_token_id=None)
    assert silent.encode("aξb") == silent.encode("ab")
    with pytest.raises(InferenceError, match="ξ"):
        check_known(silent, "aξb")
