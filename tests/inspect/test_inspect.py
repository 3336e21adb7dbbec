"""inspect: complete and incomplete files in three formats, honest about what it did not check."""

import json
import subprocess
import sys

import pytest
from apr_tiny import write_tiny

from apr import contracts
from apr.checkpoint import AprFile, write_apr
from apr.cli.inspect_view import escaped, show
from apr.errors import CorruptFile, InvalidFormat, NotFound
from apr.formats import GgufFile, open_model, write_gguf, write_hf
from apr.formats.gguf_container import write_container
from apr.inspect import inspect
from apr.inspect.quality import CHECKS, judge


def without(source, target, *keys, tensors=None, **changes):
    """An .apr file with some metadata removed or changed."""
    file = AprFile.open(source)
    kept = {k: v for k, v in file.metadata.items() if not k.startswith(keys or ("\0",))}
    held = [t for t in file.tensors.values() if tensors is None or tensors(t.name)]
    write_apr(target, {**kept, **changes}, held)
    return target


@pytest.fixture
def three(tiny_apr, tmp_path):
    model = open_model(tiny_apr)
    write_gguf(tmp_path / "m.gguf", model)
    write_hf(tmp_path / "hf", model)
    return [tiny_apr, tmp_path / "m.gguf", tmp_path / "hf"]


def shown(facts, capsys, **options):
    show(facts, **{"tensors": False, "as_json": False, **options})
    return capsys.readouterr().out


def test_same_facts_from_all_three_formats(three):
    first, *others = [inspect(path) for path in three]
    assert first.valid and first.parameters == 139_584
    assert first.groups["norm"] == 5 * 64 and "unknown" not in first.groups
    for other in others:
        assert other.valid
        assert other.groups == first.groups and other.training == first.training
        assert other.architecture == first.architecture
        assert other.tokenizer.pre == first.tokenizer.pre == "qwen2"
        assert other.tokenizer.listed == first.tokenizer.listed
        assert other.tokenizer.fillers == first.tokenizer.fillers == 16
        assert other.tokenizer.special_ids["eos"] == first.tokenizer.special_ids["eos"]


def test_sections_hold_what_a_person_looks_for(three, capsys):
    for path in three:
        text = shown(inspect(path), capsys)
        for words in ("Architecture", "feed_forward", "pre-tokenizer", "bits per byte", "BYPASSED"):
            assert (words in text) == (words != "BYPASSED"), words
        assert text.count("ready") == 3


def test_what_is_special_about_a_family_is_shown_and_nothing_else(tiny_apr, tmp_path, capsys):
    kinds = ("full_attention", "sliding_attention")
    path = write_tiny(
        tmp_path / "q.apr", family="qwen2", qkv_bias=True, sliding_window=8, layer_types=kinds
    )
    text = " ".join(shown(inspect(path), capsys).split())
    assert "window 8 tokens in 1 of 2 layers" in text and "biases q, k, v" in text
    assert "norm of heads" not in text
    plain = " ".join(shown(inspect(tiny_apr), capsys).split())
    assert " window " not in plain and "biases" not in plain


def test_bypassed_budget_is_shown_with_its_reason(tiny_apr, tmp_path, capsys):
    record = dict(AprFile.open(tiny_apr).metadata["training"])
    record["budget"] = {"verdict": "refusal", "bypassed": "only a demo"}
    path = without(tiny_apr, tmp_path / "x.apr", training=record)
    assert "BYPASSED: only a demo" in shown(inspect(path), capsys)


# -- what is missing --------------------------------------------------------------------------


def missing(facts, verb):
    return " | ".join(p.what for p in facts.missing_for(verb))


def test_removed_tokenizer_is_named_for_qa_and_export(tiny_apr, tmp_path):
    """aprender #1698, first defect: inspect said valid, qa said missing embedded tokenizer."""
    facts = inspect(without(tiny_apr, tmp_path / "x.apr", "tokenizer.", "special_tokens"))
    assert not facts.valid
    assert "no embedded tokenizer" in missing(facts, "qa")
    assert "no embedded tokenizer" in missing(facts, "export")
    assert missing(facts, "bench") == ""
    assert facts.to_json()["valid"] is False


def test_removed_hidden_size_is_named_for_every_verb(tiny_apr, tmp_path):
    """aprender #1698, second defect: inspect said valid, bench said missing hidden_size."""
    facts = inspect(without(tiny_apr, tmp_path / "x.apr", "hidden_size"))
    assert not facts.valid
    for verb in ("qa", "bench", "export"):
        assert "missing hidden_size (also tried n_embd" in missing(facts, verb)
    assert facts.to_json()["hidden_size"] is None and facts.to_json()["num_layers"] == 2


def test_hugging_face_class_name_in_a_gguf_is_named(tiny_apr, tmp_path):
    """aprender #1698, third defect: unknown architecture 'LlamaForCausalLM' in llama.cpp."""
    write_gguf(tmp_path / "m.gguf", open_model(tiny_apr))
    file = GgufFile.open(tmp_path / "m.gguf")
    fields = {**file.fields, "general.architecture": "LlamaForCausalLM"}
    with (tmp_path / "bad.gguf").open("wb") as out:
        write_container(out, fields, list(file.tensors.values()))
    facts = inspect(tmp_path / "bad.gguf")
    assert "LlamaForCausalLM" in missing(facts, "export") and not facts.valid
    assert facts.to_json()["hidden_size"] == 64
    with pytest.raises(InvalidFormat):
        open_model(tmp_path / "bad.gguf")


def test_missing_and_unexpected_tensors_are_named(tiny_apr, tmp_path):
    path = without(tiny_apr, tmp_path / "x.apr", tensors=lambda name: name != "model.norm.weight")
    assert "missing tensor model.norm.weight" in missing(inspect(path), "bench")


def test_implausible_and_unknown_values_are_named(tiny_apr, tmp_path):
    path = without(tiny_apr, tmp_path / "x.apr", rope_theta=1e9)
    assert "[META-THETA]" in missing(inspect(path), "qa")
    path = without(tiny_apr, tmp_path / "y.apr", architecture="mamba")
    assert "unknown architecture 'mamba'" in missing(inspect(path), "qa")


def test_token_list_of_another_length_is_named(tiny_apr, tmp_path):
    tokens = AprFile.open(tiny_apr).metadata["tokenizer.vocabulary"]
    changes = {"tokenizer.vocabulary": tokens[:-2], "tokenizer.vocab_size": len(tokens) - 2}
    path = without(tiny_apr, tmp_path / "x.apr", **changes)
    assert "414 tokens are listed, vocab_size is 416" in missing(inspect(path), "export")


def test_incomplete_folders_are_shown_with_what_they_lack(three):
    folder = three[2]
    (folder / "tokenizer.json").unlink()
    assert "no embedded tokenizer (tokenizer.json)" in missing(inspect(folder), "qa")
    (folder / "model.safetensors").unlink()
    assert "neither model.safetensors nor" in missing(inspect(folder), "bench")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert "missing hidden_size" in missing(inspect(folder), "bench")


def test_published_vocabulary_without_weights_is_shown(shared):
    facts = inspect(shared / "tokenizers" / "qwen2" / "vocab.gguf")
    assert facts.tokenizer.listed == 151_936 and not facts.valid
    assert facts.to_json()["hidden_size"] == 4096


# -- honesty ----------------------------------------------------------------------------------


def flipped(source, target):
    data = bytearray(source.read_bytes())
    data[-1000] ^= 1
    target.write_bytes(data)
    return target


def test_unread_bytes_are_not_called_checked(tiny_apr, tmp_path):
    facts = inspect(flipped(tiny_apr, tmp_path / "x.apr"))
    assert facts.to_json()["checksum_valid"] is None
    assert facts.to_json()["verification"] == "not checked; use --verify"


def test_verify_reads_every_byte(tiny_apr, tmp_path):
    facts = inspect(tiny_apr, verify=True)
    assert facts.to_json()["checksum_valid"] is True and "body checksum" in facts.verification
    with pytest.raises(CorruptFile, match="checksum"):
        inspect(flipped(tiny_apr, tmp_path / "x.apr"), verify=True)


def test_formats_without_checksum_say_so(three):
    for path in three[1:]:
        assert inspect(path).verification == "the format has none"
        facts = inspect(path, verify=True)
        assert facts.verified is None and "carries no checksum" in facts.verification


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(NotFound):
        inspect(tmp_path / "none.apr")
    (tmp_path / "x.apr").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(InvalidFormat, match="GGUF"):
        inspect(tmp_path / "x.apr")


# -- output -----------------------------------------------------------------------------------


def test_control_characters_are_escaped(tiny_apr, tmp_path, capsys):
    path = without(tiny_apr, tmp_path / "x.apr", name="evil\x1b[2J\r\u202ename\n")
    text = shown(inspect(path), capsys, tensors=True)
    assert "evil\\x1b[2J\\r\\u202ename\\n" in text and "\x1b" not in text
    assert escaped("日本 ok") == "日本 ok"


def test_json_is_one_document_without_the_big_arrays(three, capsys):
    for path in three:
        text = shown(inspect(path, quality=True), capsys, as_json=True, tensors=True)
        data = json.loads(text)
        assert len(text) < 60_000 and "\x1b" not in text
        for key in (
            "file", "valid", "format", "version", "tensor_count", "size_bytes", "checksum_valid",
            "architecture", "num_layers", "num_heads", "hidden_size", "vocab_size", "flags",
            "metadata", "ready", "quality",
        ):  # fmt: skip
            assert key in data
        assert len(data["tensors"]) == data["tensor_count"] == 21
    apr = json.loads(shown(inspect(three[0]), capsys, as_json=True))
    assert apr["format"] == "APR v2" and apr["version"] == "2.0"
    assert apr["metadata"]["tokenizer.vocabulary"] == {"type": "array", "length": 416}
    assert apr["flags"]["row_major"] is True


def test_torch_and_tokenizers_are_not_imported(three):
    code = (
        "import sys; from apr.cli.main import main; sys.argv = ['apr', 'inspect', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "bad = {'torch', 'tokenizers', 'transformers', 'gguf', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    for path in three:
        done = subprocess.run(
            [sys.executable, "-c", code, str(path), "--json", "--quality", "--tensors"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)


# -- quality ----------------------------------------------------------------------------------


def rules():
    return [r for s in contracts.load("quality")["sections"] for r in s["checks"]]


def test_points_add_up_to_the_sections_and_to_100():
    sections = contracts.load("quality")["sections"]
    assert {s["id"]: s["points"] for s in sections} == {
        "physics": 20, "structure": 20, "provenance": 25, "hf_identity": 20, "tokenizer": 15,
    }  # fmt: skip
    for section in sections:
        assert sum(rule["points"] for rule in section["checks"]) == section["points"]
    assert {rule["check"] for rule in rules()} == CHECKS.keys()


COMPLETE = {
    "author": "me", "license": "Apache-2.0", "data_license": "PSF-2.0", "created_at": "now",
}  # fmt: skip


def complete(source, target, *keys, tensors=None, **changes):
    record = dict(AprFile.open(source).metadata["training"])
    record["receipt"] = {"command": "apr pretrain", "apr_version": "1"}
    values = {**COMPLETE, "training": record, **changes}
    return without(
        source, target, *keys, tensors=tensors,
        **{k: v for k, v in values.items() if not k.startswith(keys or ("\0",))},
    )  # fmt: skip


def test_complete_file_has_100_points(tiny_apr, tmp_path):
    quality = judge(inspect(complete(tiny_apr, tmp_path / "x.apr")))
    assert quality["score"] == 100 and quality["ready"]


def lost(path):
    sections = judge(inspect(path))["sections"]
    return {c["id"] for s in sections for c in s["checks"] if not c["earned"]}


DEFECTS = {
    "QUAL-COMPLETE": {"keys": ("hidden_size",)},
    "QUAL-FAMILY": {"changes": {"architecture": "mamba"}},
    "QUAL-BOUNDS": {"changes": {"rope_theta": 10.0}},
    "QUAL-COUNT": {"changes": {"param_count": 5}},
    "QUAL-TENSORS": {"tensors": lambda name: "norm" not in name},
    "QUAL-SHAPES": {"changes": {"vocab_size": 417}},
    "QUAL-NOTHING-ELSE": {"changes": {"num_layers": 1}},
    "QUAL-NAME": {"keys": ("name",)},
    "QUAL-CREATED": {"keys": ("created_at",)},
    "QUAL-DATA": {"changes": {"training": {"tokens_seen": 1, "validation_loss": 2.0}}},
    "QUAL-TRAINING": {"changes": {"training": {"data": {"tokens": 1}}}},
    "QUAL-RECEIPT": {"changes": {"training": {"receipt": {"command": "x"}}}},
    "QUAL-LICENSE": {"keys": ("license",)},
    "QUAL-DATA-LICENSE": {"keys": ("data_license",)},
    "QUAL-AUTHOR": {"keys": ("author",)},
    "QUAL-HF-CLASS": {"changes": {"hf_architecture": "Qwen2ForCausalLM"}},
    "QUAL-TOKENIZER": {"keys": ("tokenizer.",)},
    "QUAL-WHOLE": {"keys": ("tokenizer.spec",)},
    "QUAL-ROWS": {"changes": {"tokenizer.vocabulary": ["a", "b"]}},
    "QUAL-EOS": {"keys": ("tokenizer.eos",)},
    "QUAL-PRE": {"keys": ("tokenizer.pre_type",)},
}


@pytest.mark.parametrize("rule", DEFECTS)
def test_each_rule_can_fail(tiny_apr, tmp_path, rule):
    defect = DEFECTS[rule]
    path = complete(
        tiny_apr, tmp_path / "x.apr", *defect.get("keys", ()),
        tensors=defect.get("tensors"), **defect.get("changes", {}),
    )  # fmt: skip
    assert rule in lost(path)


def test_integers_as_weights_and_aliases_cost_their_points(tiny_apr, tmp_path):
    """The two rules that our own writer could not break: a facts object stands in."""
    from dataclasses import replace

    import numpy as np

    from apr.tensors import from_array

    facts = inspect(tiny_apr)
    ints = {"x": from_array("x", np.zeros(3, np.int32))}
    assert not CHECKS["weights_are_numbers"](replace(facts, tensors=ints))
    aliased = replace(facts, metadata={**facts.metadata, "n_embd": 64})
    assert not CHECKS["canonical_keys"](aliased)
    assert {r["id"] for r in rules()} - DEFECTS.keys() == {"QUAL-DTYPES", "QUAL-NAMES"}
