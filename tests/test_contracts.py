"""Every rule of the contracts can fail, and the sound architecture passes them all."""

from dataclasses import replace

import pytest

from apr import architecture as arch
from apr import contracts, families
from apr.architecture import Architecture
from apr.errors import AprError, InvalidFormat, NotFound

SOUND = Architecture(
    family="llama", hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
    intermediate_size=172, vocab_size=300, max_position_embeddings=128, rms_norm_eps=1e-5,
    rope_theta=10_000.0,
)  # fmt: skip


def bounds():
    yield from contracts.load("metadata")["bounds"]
    for family in families.known():
        yield from contracts.load(f"families/{family}").get("plausible", [])


def test_a_sound_architecture_breaks_no_rule():
    assert arch.violations(SOUND) == []
    arch.check(SOUND, "x.apr")


@pytest.mark.parametrize("rule", [r for r in bounds() if "min" in r], ids=lambda r: r["id"])
@pytest.mark.parametrize("end", ["min", "max"])
def test_a_value_beyond_each_bound_is_named_by_the_rule(rule, end):
    limit = rule[end]
    beyond = limit / 2 if isinstance(limit, float) and end == "min" else limit - 1
    if end == "max":
        beyond = limit * 2
    broken = arch.violations(replace(SOUND, **{rule["key"]: beyond}))
    assert rule["id"] in {v.rule for v in broken}
    with pytest.raises(InvalidFormat, match=rule["id"]):
        arch.check(replace(SOUND, **{rule["key"]: beyond}), "x.apr")


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("META-GQA", {"num_kv_heads": 3}),
        ("META-ROPE-EVEN", {"head_dim": 15}),
        ("LLAMA-HEADS", {"num_heads": 6}),
        ("LLAMA-ACT", {"hidden_act": "gelu"}),
    ],
)
def test_each_relation_can_fail(rule, change):
    assert rule in {v.rule for v in arch.violations(replace(SOUND, **change))}


def test_every_relation_and_choice_has_a_case_above():
    tested = {"META-GQA", "META-ROPE-EVEN", "LLAMA-HEADS", "LLAMA-ACT"}
    stated = {r["id"] for r in contracts.load("metadata")["relations"]}
    for family in families.known():
        contract = contracts.load(f"families/{family}")
        stated |= {r["id"] for r in contract.get("relations", [])}
        stated |= {r["id"] for r in contract.get("plausible", []) if "one_of" in r}
    assert stated == tested


@pytest.mark.parametrize("key", contracts.load("metadata")["required"])
def test_each_required_key_is_named_when_it_is_missing(key):
    metadata = SOUND.to_metadata()
    del metadata[key]
    if key == "head_dim":  # may be derived; only without its sources is it missing
        del metadata["num_heads"]
    with pytest.raises(InvalidFormat, match=key):
        arch.from_metadata(metadata, "x.apr")


def test_metadata_round_trips_and_aliases_are_understood():
    metadata = SOUND.to_metadata()
    assert arch.from_metadata(metadata, "x.apr") == SOUND
    for canonical, others in contracts.load("metadata")["aliases"].items():
        for other in others:
            renamed = dict(metadata)
            renamed[other] = renamed.pop(canonical)
            assert arch.from_metadata(renamed, "x.apr") == SOUND, other


def test_a_value_of_the_wrong_type_is_named():
    with pytest.raises(InvalidFormat, match="num_layers is 'two'"):
        arch.from_metadata({**SOUND.to_metadata(), "num_layers": "two"}, "x.apr")


def test_an_unknown_family_lists_the_known_ones():
    with pytest.raises(InvalidFormat, match="llama"):
        arch.from_metadata({**SOUND.to_metadata(), "architecture": "mamba"}, "x.apr")
    with pytest.raises(InvalidFormat, match="LlamaForCausalLM"):
        families.by_gguf_architecture("LlamaForCausalLM", "x.gguf")


def test_exit_codes_of_the_contract_are_those_of_the_code():
    stated = {e["kind"]: e["code"] for e in contracts.load("exit-codes")["exit_codes"]}

    def kinds(cls):
        yield cls
        for sub in cls.__subclasses__():
            yield from kinds(sub)

    raised = {c.kind: c.exit_code for c in kinds(AprError) if c.__module__ == "apr.errors"}
    assert raised.pop("corrupt_file") == stated["invalid_format"]
    assert stated.pop("ok") == 0
    assert raised == stated


def test_an_unknown_contract_lists_those_that_exist():
    with pytest.raises(NotFound, match="exit-codes"):
        contracts.load("no-such-contract")


def test_tied_models_have_no_head_and_count_it_once():
    names = {s.name for s in families.tensor_specs(replace(SOUND, tie_word_embeddings=True))}
    assert "lm_head.weight" not in names
    embedding = SOUND.vocab_size * SOUND.hidden_size
    tied = families.num_parameters(replace(SOUND, tie_word_embeddings=True))
    assert families.num_parameters(SOUND) == tied + embedding
    assert families.num_parameters(SOUND, embedding=False) == tied - embedding
