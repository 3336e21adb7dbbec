"""Every rule of the contracts can fail, and the sound architecture passes them all."""

import json
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


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LATENT = {
    **EXPERTS, "num_kv_heads": 4, "head_dim": 24, "q_lora_rank": 32, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "num_shared_experts": 1, "shared_expert_intermediate_size": 48,
    "mlp_layer_types": ("dense", "sparse"),
}  # fmt: skip
# What a family cannot be without, beside what every model has.
SIZES: dict[str, dict[str, object]] = {
    "gpt2": {"num_kv_heads": 4, "rope_theta": None},
    "mixtral": {**EXPERTS, "intermediate_size": 48},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 56},
    "qwen3_moe": EXPERTS,
    "gpt_oss": {
        **EXPERTS, "intermediate_size": 48, "sliding_window": 8, "swiglu_limit": 7.0,
        "layer_types": ("sliding_attention", "full_attention"),
    },
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite"), LATENT),
    "olmoe": {**EXPERTS, "intermediate_size": 48},
}  # fmt: skip


def sound(family: str) -> Architecture:
    """An architecture of the family that breaks no rule."""
    implied = contracts.load(f"families/{family}").get("implied", {})
    return replace(SOUND, family=family, **{**implied, **SIZES.get(family, {})})


def bounds():
    """Every bound, with a family that it holds for."""
    for rule in contracts.load("metadata")["bounds"]:
        yield "llama", rule
    for family in families.known():
        for rule in contracts.load(f"families/{family}").get("plausible", []):
            yield family, rule


@pytest.mark.parametrize("family", families.known())
def test_a_sound_architecture_breaks_no_rule(family):
    assert arch.violations(sound(family)) == []
    arch.check(sound(family), "x.apr")


@pytest.mark.parametrize(
    ("family", "rule"),
    [b for b in bounds() if "min" in b[1]],
    ids=lambda b: b if isinstance(b, str) else b["id"],
)
@pytest.mark.parametrize("end", ["min", "max"])
def test_a_value_beyond_each_bound_is_named_by_the_rule(family, rule, end):
    limit = rule[end]
    beyond = limit / 2 if isinstance(limit, float) and end == "min" else limit - 1
    if end == "max":
        beyond = limit * 2
    broken = arch.violations(replace(sound(family), **{rule["key"]: beyond}))
    assert rule["id"] in {v.rule for v in broken}
    with pytest.raises(InvalidFormat, match=rule["id"]):
        arch.check(replace(sound(family), **{rule["key"]: beyond}), "x.apr")


CASES = [
    ("META-GQA", "llama", {"num_kv_heads": 3}),
    ("META-ROPE-EVEN", "llama", {"head_dim": 15}),
    ("META-LAYER-TYPES", "qwen2", {"layer_types": ("full_attention",), "sliding_window": 8}),
    ("META-LAYER-TYPES", "qwen2", {"layer_types": ("local", "local"), "sliding_window": 8}),
    ("META-LAYER-WINDOW", "qwen2", {"layer_types": ("full_attention", "sliding_attention")}),
    ("META-ROPE-SCALING", "llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
    ("META-ROPE-SCALING", "llama", {"rope_scaling": {"rope_type": "mrope", "factor": 8.0}}),
    ("LLAMA-HEADS", "llama", {"num_heads": 6}),
    ("GEMMA2-HEADS", "gemma2", {"num_heads": 6}),
    ("GEMMA3-HEADS", "gemma3_text", {"num_heads": 6}),
    ("META-VARIATION", "gemma2", {"norm_plus_one": False}),
    ("META-VARIATION", "llama", {"hidden_act": "gelu"}),
    ("META-VARIATION", "llama", {"sliding_window": 8}),
    ("META-VARIATION", "qwen2", {"qkv_bias": False}),
    ("META-VARIATION", "qwen2", {"mlp_bias": True}),
    ("META-VARIATION", "qwen3", {"qk_norm": False}),
    ("META-VARIATION", "mistral", {"layer_types": ("full_attention",) * 2}),
    ("META-ACT", "gpt2", {"hidden_act": "gelu_fast"}),
    ("META-VARIATION", "gpt2", {"position_embedding": "rotary"}),
    ("GPT2-WIDTH", "gpt2", {"head_dim": 8}),
    ("GPT2-KV", "gpt2", {"num_kv_heads": 2}),
    ("GPT2-SCALE", "gpt2", {"query_pre_attn_scalar": 2.0}),
    ("BITNET-WIDTH", "bitnet", {"head_dim": 8}),
    ("STARCODER2-BIAS", "starcoder2", {"mlp_bias": True}),
    ("MIXTRAL-WIDTH", "mixtral", {"intermediate_size": 64}),
    ("MIXTRAL-WIDTH", "mixtral", {"intermediate_size": 32}),
    ("OLMOE-WIDTH", "olmoe", {"head_dim": 8}),
    ("OLMOE-EXPERT-WIDTH", "olmoe", {"intermediate_size": 64}),
    ("GPTOSS-WIDTH", "gpt_oss", {"intermediate_size": 64}),
    ("META-MLP-TYPES", "llama", {"mlp_layer_types": ("dense",)}),
    ("META-EXPERT-WIDTH", "llama", {"num_experts": 4}),
    ("META-EXPERTS-CHOSEN", "llama", {"num_experts": 4, "num_experts_per_tok": 5}),
    ("META-EXPERT-GROUPS", "llama", {"num_experts": 4, "num_expert_groups": 3}),
    ("META-GROUPS-CHOSEN", "llama", {"num_expert_groups": 2, "topk_groups": 3}),
    ("DEEPSEEK-V2-HEADS", "deepseek_v2", {"num_kv_heads": 2}),
    ("DEEPSEEK-V2-HEAD-DIM", "deepseek_v2", {"qk_nope_head_dim": 18}),
    ("DEEPSEEK-V2-SHARED", "deepseek_v2", {"num_shared_experts": 2}),
    ("DEEPSEEK-V2-DENSE-FIRST", "deepseek_v2", {"mlp_layer_types": ("sparse", "dense")}),
    ("DEEPSEEK-V2-GROUPS", "deepseek_v2", {"group_score": "mean"}),
    ("DEEPSEEK-V2-HIDDEN", "deepseek_v2", {"num_heads": 6, "num_kv_heads": 6}),
    ("DEEPSEEK-V3-HEADS", "deepseek_v3", {"num_kv_heads": 1}),
    ("DEEPSEEK-V3-HEAD-DIM", "deepseek_v3", {"head_dim": 26}),
    ("DEEPSEEK-V3-SHARED", "deepseek_v3", {"shared_expert_intermediate_size": 40}),
    ("DEEPSEEK-V3-DENSE-FIRST", "deepseek_v3", {"mlp_layer_types": ("sparse", "dense")}),
    ("GLM4-MOE-LITE-HEADS", "glm4_moe_lite", {"num_kv_heads": 2}),
    ("GLM4-MOE-LITE-HEAD-DIM", "glm4_moe_lite", {"qk_rope_head_dim": 10}),
    ("GLM4-MOE-LITE-SHARED", "glm4_moe_lite", {"moe_intermediate_size": 40}),
]


@pytest.mark.parametrize(("rule", "family", "change"), CASES)
def test_each_relation_can_fail(rule, family, change):
    assert rule in {v.rule for v in arch.violations(replace(sound(family), **change))}


def test_every_relation_and_choice_has_a_case_above():
    tested = {rule for rule, _, _ in CASES}
    stated = {r["id"] for r in contracts.load("metadata")["relations"]}
    stated |= {r["id"] for r in contracts.load("metadata")["bounds"] if "one_of" in r}
    for family in families.known():
        contract = contracts.load(f"families/{family}")
        stated |= {r["id"] for r in contract.get("relations", [])}
        stated |= {r["id"] for r in contract.get("plausible", []) if "one_of" in r}
    assert stated | {contracts.load("metadata")["variation_rule"]} == tested


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


@pytest.mark.parametrize("family", families.known())
def test_what_a_family_always_has_needs_no_key(family):
    metadata = sound(family).to_metadata()
    for key in contracts.load(f"families/{family}").get("implied", {}):
        del metadata[key]
    assert arch.from_metadata(metadata, "x.apr") == sound(family)


def test_windows_survive_json_and_hold_where_the_layer_slides():
    kinds = ("full_attention", "sliding_attention")
    windowed = replace(sound("qwen2"), sliding_window=8, layer_types=kinds)
    metadata = json.loads(json.dumps(windowed.to_metadata()))
    assert arch.from_metadata(metadata, "x.apr") == windowed
    assert [windowed.window(i) for i in range(2)] == [None, 8]
    assert windowed.shortest_window == 8
    assert replace(windowed, sliding_window=128).shortest_window is None  # the whole context


def test_the_default_rotary_kind_said_in_full_means_no_scaling():
    metadata = {**SOUND.to_metadata(), "rope_scaling": {"rope_type": "default"}}
    assert arch.from_metadata(metadata, "x.apr") == SOUND


def test_a_value_of_the_wrong_type_is_named():
    with pytest.raises(InvalidFormat, match="num_layers is 'two'"):
        arch.from_metadata({**SOUND.to_metadata(), "num_layers": "two"}, "x.apr")


@pytest.mark.parametrize("scaling", [{}, {"rope_type": "dynamic"}, {"rope_type": "llama3"}])
def test_a_rotary_scaling_of_no_use_is_refused_on_opening(scaling):
    with pytest.raises(InvalidFormat, match="rotary scaling"):
        arch.from_metadata({**SOUND.to_metadata(), "rope_scaling": scaling}, "x.apr")


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
