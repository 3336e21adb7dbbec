"""Pre-tokenizers are recognised by what they do, not by which file they stand in."""

import copy
from dataclasses import replace

import pytest

from apr.errors import FeatureUnavailable
from apr.tokenizer import Tokenizer, pretokenizers, recognition

LLAMA3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+"
    "[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)


def spec(section, **more):
    return {"pre_tokenizer": section, "model": {"ignore_merges": False}, **more}


@pytest.mark.parametrize("name", pretokenizers.names())
def test_each_is_recognised_as_trained_and_as_published(name):
    rule = pretokenizers.rules(name)
    more = {
        "model": {"ignore_merges": rule["ignore_merges"]},
        "added_tokens": [{"content": text} for text in rule.get("marks", [])],
    }
    for section in [pretokenizers.trained(name), *pretokenizers.published(name)]:
        assert pretokenizers.recognise(spec(section, **more)) == name
        # With or without a BOS, by which a hash of the file takes it for a sibling.
        begins = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]}
        assert pretokenizers.recognise(spec(section, post_processor=begins, **more)) == name
        # By what it does alone: no known form has a step that never matches.
        idle = [pretokenizers.split("\U0010fffe"), *section.get("pretokenizers", [section])]
        probed = {"type": "Sequence", "pretokenizers": idle}
        assert pretokenizers.recognise(spec(probed, **more)) == name


@pytest.mark.parametrize(("name", "pre"), [("gpt-2", "gpt-2"), ("qwen2", "qwen2"), ("phi-3", None)])
def test_published_tokenizers_are_recognised(name, pre, published):
    assert published.made(name).pre_type == pre


def test_names_that_split_alike_are_told_apart_by_merges_and_marks(each):
    section = pretokenizers.split(LLAMA3)
    section = {"type": "Sequence", "pretokenizers": [section, pretokenizers.steps(["x"])]}
    section["pretokenizers"][1] = section["pretokenizers"][1]["pretokenizers"][1]
    glm = [{"content": "[gMASK]"}, {"content": "<sop>"}]
    for ignores, added, name in [
        (True, [], "llama-bpe"), (False, [], "dbrx"), (True, glm, "glm4"),
        (False, glm, "chatglm-bpe"),
    ]:  # fmt: skip
        found = recognition.recognition(
            {"pre_tokenizer": section, "model": {"ignore_merges": ignores}, "added_tokens": added}
        )
        assert found.name == name


def test_a_stated_name_is_kept_if_llama_cpp_does_the_same_under_it(trained):
    base = trained["gpt-2"]
    assert replace(base, stated_pre="olmo").pre_type == "olmo"
    assert replace(base, stated_pre="qwen2").pre_type == "gpt-2"
    keys = base.to_gguf() | {"tokenizer.ggml.pre": "phi-2"}
    after = Tokenizer.from_gguf(keys)
    assert after.to_gguf()["tokenizer.ggml.pre"] == "phi-2"
    assert Tokenizer.from_metadata(after.to_metadata()).pre_type == "phi-2"


def test_offsets_do_not_matter_but_a_prefix_space_does():
    section = pretokenizers.trained("qwen2")
    section["pretokenizers"][1]["trim_offsets"] = False
    assert pretokenizers.recognise(spec(section)) == "qwen2"
    section["pretokenizers"][1]["add_prefix_space"] = True
    assert pretokenizers.recognise(spec(section)) is None


def test_the_same_splits_in_another_form_are_the_same_pre_tokenizer():
    """cl100k as some files have it: what matches is kept, what does not is dropped."""
    section = pretokenizers.trained("dbrx")
    section["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    assert pretokenizers.recognise(spec(section)) == "dbrx"


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["pretokenizers"][0].update(behavior="Removed"),
        lambda s: s["pretokenizers"][0].update(pattern={"String": "x"}),
        lambda s: s["pretokenizers"][0]["pattern"].update(Regex=r"\s+"),
        lambda s: s["pretokenizers"].reverse(),
        lambda s: s["pretokenizers"].clear(),
        lambda s: s.update(type="Metaspace"),
    ],
)
def test_anything_else_is_not_recognised(change):
    section = copy.deepcopy(pretokenizers.trained("llama-bpe"))
    change(section)
    assert pretokenizers.recognise(spec(section)) is None


def test_export_of_an_unknown_one_shows_the_closest_and_a_text_that_differs(each):
    pattern = LLAMA3.replace("{1,3}", "{1,2}")
    odd = replace(each, spec={**each.spec, "pre_tokenizer": pretokenizers.steps([pattern])})
    with pytest.raises(FeatureUnavailable) as caught:
        odd.to_gguf()
    said = caught.value.what
    assert "under the closest, " in said
    closest = said.split("closest, ")[1].split(",")[0]
    assert pretokenizers.rules(closest)["trained"] == pretokenizers.rules("dbrx")["trained"]
    assert "'12', '34'" in said.replace('"', "'")
    assert odd.to_gguf(allow_inexact=True)["tokenizer.ggml.pre"] == closest


def test_nfc_is_recognised_with_a_caveat_other_normalizers_are_not(each):
    nfc = replace(each, spec={**each.spec, "normalizer": {"type": "NFC"}})
    assert nfc.pre_type == each.pre_type
    assert each.gguf_caveats == []
    assert "NFC" in nfc.gguf_caveats[0]
    assert replace(each, spec={**each.spec, "normalizer": {"type": "NFKC"}}).pre_type is None


def test_another_ignore_merges_than_llama_cpps_is_a_caveat_where_it_changes_ids(trained):
    for pre in ("qwen2", "gpt-2"):
        base = trained[pre]
        model = {**base.spec["model"], "ignore_merges": True}
        assert replace(base, spec={**base.spec, "model": model}).gguf_caveats == []
        # A word that no merges make, as Llama 3 has them.
        vocab = {**model["vocab"], "\u0120zyxw": base.vocab_size}
        made = replace(
            base,
            spec={**base.spec, "model": {**model, "vocab": vocab}},
            vocab_size=base.vocab_size + 1,
        )
        [caveat] = made.gguf_caveats
        assert "ignore_merges to false here, which changes the ids of ' zyxw'" in caveat


@pytest.mark.parametrize("name", ["tekken", "gpt-4o"])
def test_published_splits_that_llama_cpp_only_comes_near_are_a_caveat(name, trained):
    base = trained[name]
    assert base.gguf_caveats == []
    [section] = pretokenizers.published(name)
    made = replace(base, spec={**base.spec, "pre_tokenizer": section})
    assert made.pre_type == name
    [caveat] = made.gguf_caveats
    assert caveat.startswith(f"llama.cpp's {name} splits otherwise")
    assert " here and " in caveat
