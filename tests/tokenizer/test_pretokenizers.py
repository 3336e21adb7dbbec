"""Pre-tokenizers are recognised by what they do, not by which file they stand in."""

import copy

import pytest

from apr.tokenizer import Tokenizer, pretokenizers


@pytest.mark.parametrize("name", pretokenizers.names())
def test_each_is_recognised_as_trained_and_as_published(name):
    sections = [pretokenizers.trained(name)]
    for pattern in pretokenizers.rules(name)["recognised"]:
        alone = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        split = pretokenizers.split_then_bytes(pattern)
        sections.append(alone if pattern == "ByteLevel" else split)
    assert len(sections) > 1
    for section in sections:
        assert pretokenizers.recognise({"pre_tokenizer": section}) == name


@pytest.mark.parametrize(("name", "pre"), [("gpt-2", "gpt-2"), ("qwen2", "qwen2"), ("phi-3", None)])
def test_published_tokenizers_are_recognised(name, pre, published):
    assert Tokenizer.from_directory(published(name)).pre_type == pre


def test_offsets_do_not_matter_but_a_prefix_space_does():
    section = pretokenizers.trained("qwen2")
    section["pretokenizers"][1]["trim_offsets"] = False
    assert pretokenizers.recognise({"pre_tokenizer": section}) == "qwen2"
    section["pretokenizers"][1]["add_prefix_space"] = True
    assert pretokenizers.recognise({"pre_tokenizer": section}) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["pretokenizers"][0].update(invert=True),
        lambda s: s["pretokenizers"][0].update(behavior="Removed"),
        lambda s: s["pretokenizers"][0].update(pattern={"String": "x"}),
        lambda s: s["pretokenizers"][0]["pattern"].update(Regex=r"\s+"),
        lambda s: s["pretokenizers"][1].update(use_regex=True),
        lambda s: s["pretokenizers"].reverse(),
        lambda s: s["pretokenizers"].clear(),
        lambda s: s.update(type="Metaspace"),
    ],
)
def test_anything_else_is_not_recognised(change):
    section = copy.deepcopy(pretokenizers.trained("llama-bpe"))
    change(section)
    assert pretokenizers.recognise({"pre_tokenizer": section}) is None


def test_nfc_is_recognised_with_a_caveat_other_normalizers_are_not(each):
    from dataclasses import replace

    nfc = replace(each, spec={**each.spec, "normalizer": {"type": "NFC"}})
    assert nfc.pre_type == each.pre_type
    assert each.gguf_caveats == []
    assert "NFC" in nfc.gguf_caveats[0]
    assert replace(each, spec={**each.spec, "normalizer": {"type": "NFKC"}}).pre_type is None


def test_another_ignore_merges_than_llama_cpps_is_a_caveat(each):
    from dataclasses import replace

    model = {**each.spec["model"], "ignore_merges": not each.spec["model"]["ignore_merges"]}
    [caveat] = replace(each, spec={**each.spec, "model": model}).gguf_caveats
    assert "ignore_merges" in caveat
