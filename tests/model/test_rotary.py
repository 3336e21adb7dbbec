"""Every rotary kind against transformers: angles, logits, and generation across the boundary."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from apr import rope
from apr.architecture import FULL, SLIDING, Architecture
from apr.model.cache import KVCache
from apr.model.decoder import Decoder, initialize
from apr.model.rotary import Rotary, cos_sin, rotate

transformers = pytest.importorskip("transformers")
ORIGINAL = 32
CPU = torch.device("cpu")


def longrope(width=16, **further):
    return {
        "rope_type": "longrope", "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0 + 0.07 * i for i in range(width // 2)],
        "long_factor": [1.0 + 0.9 * i for i in range(width // 2)],
        **further,
    }  # fmt: skip


def yarn(**further):
    return {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        **further,
    }


SCALINGS = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 2.7},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "yarn": yarn(),
    "yarn, ramp": yarn(factor=3.3, beta_fast=4, beta_slow=0.5, truncate=False),
    "yarn, one pair": yarn(beta_fast=1.2, beta_slow=1.1),
    "yarn, mscale": yarn(mscale=0.9, mscale_all_dim=0.4),
    "yarn, one mscale": yarn(mscale_all_dim=0.4, mscale=0),
    "yarn, explicit": yarn(attention_factor=1.3),
    "longrope": longrope(),
    "longrope, factor": longrope(factor=7.5),
    "longrope, explicit": longrope(attention_factor=0.8),
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
}  # fmt: skip


def architecture(family="llama", **changes) -> Architecture:
    values = {
        "hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16,
        "intermediate_size": 48, "vocab_size": 100, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "qkv_bias": family == "qwen2",
    }  # fmt: skip
    return Architecture(family=family, **{**values, **changes})


def config(arch, cls, **further):
    scaling = arch.rope_scaling or {"rope_type": "default"}
    # An object of its own: transformers writes into it.
    parameters = {**scaling, "rope_theta": arch.rope_theta}
    if arch.partial_rotary_factor != 1:
        parameters["partial_rotary_factor"] = arch.partial_rotary_factor
    return cls(
        hidden_size=arch.hidden_size, num_hidden_layers=arch.num_layers, vocab_size=arch.vocab_size,
        num_attention_heads=arch.num_heads, num_key_value_heads=arch.num_kv_heads,
        head_dim=arch.head_dim, intermediate_size=arch.intermediate_size, rms_norm_eps=1e-5,
        max_position_embeddings=arch.max_position_embeddings, rope_parameters=parameters,
        tie_word_embeddings=False, pad_token_id=0, **further,
    )  # fmt: skip


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_angles_are_those_of_transformers_within_and_beyond_the_original_context(name, partial):
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    scaling = SCALINGS[name]
    if scaling and partial != 1 and "long_factor" in scaling:
        scaling = {**scaling, **{k: scaling[k][:4] for k in ("long_factor", "short_factor")}}
    arch = architecture(rope_scaling=scaling, partial_rotary_factor=partial, rope_theta=5e5)
    assert not rope.problems(scaling, arch.rotary_dim) if scaling else True
    ours = Rotary(arch)
    for length in (20, 32, 33, 64, 65, 5000):
        theirs = Phi3RotaryEmbedding(config(arch, transformers.LlamaConfig))
        positions = torch.arange(length)
        cos, sin = ours.tables(positions, torch.float32)[FULL]
        expected = theirs(torch.zeros(1), positions[None])
        assert cos.shape == (length, arch.rotary_dim) == expected[0].shape[1:]
        for a, b in zip((cos, sin), expected, strict=True):
            # One unit in the last place of a frequency, times the position.
            assert (a - b).abs().max() < 1e-6 + length * 2e-7


def test_sliding_layers_turn_by_a_base_of_their_own_that_is_never_scaled():
    arch = architecture(rope_scaling=SCALINGS["yarn"], rope_theta=1e6, rope_local_theta=1e4)
    tables = Rotary(arch).tables(torch.arange(50), torch.float32)
    for kind, alone in (
        (FULL, replace(arch, rope_local_theta=None)),
        (SLIDING, replace(arch, rope_scaling=None, rope_theta=1e4, rope_local_theta=None)),
    ):
        expected = Rotary(alone).tables(torch.arange(50), torch.float32)[FULL]
        assert all(torch.equal(a, b) for a, b in zip(tables[kind], expected, strict=True))
    assert (
        not Rotary(replace(arch, rope_theta=None, rope_scaling=None))
        .tables(torch.arange(3), torch.float32)
        .get(FULL)
    )


def test_neighbours_turn_as_halves_do_after_reordering_and_the_rest_stays():
    x = torch.randn(1, 2, 5, 12, generator=torch.Generator().manual_seed(1))
    angles = Rotary(architecture(head_dim=8)).tables(torch.arange(5), torch.float32)[FULL]
    halves, neighbours = rotate(x, *angles), rotate(x[..., :8], *angles, interleaved=True)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    assert torch.equal(halves[..., 8:], x[..., 8:])
    assert torch.allclose(rotate(x[..., order], *angles), neighbours[..., order], atol=1e-6)


def random_decoder(arch: Architecture) -> Decoder:
    generator = torch.Generator().manual_seed(1)
    model = Decoder(arch)
    initialize(model, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.08)
    return model.eval()


def peer(arch: Architecture, ours: nn.Module, cls: str, **further) -> nn.Module:
    settings = config(arch, getattr(transformers, cls + "Config"), **further)
    settings._attn_implementation = "eager"
    theirs = getattr(transformers, cls + "ForCausalLM")(settings).eval()
    theirs.load_state_dict(ours.state_dict())
    return theirs


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize(("family", "cls"), [("llama", "Llama"), ("qwen2", "Qwen2")])
def test_logits_are_those_of_transformers(family, cls, name):
    arch = architecture(family, rope_scaling=SCALINGS[name])
    ours = random_decoder(arch)
    for length in (20, 150):
        theirs = peer(arch, ours, cls)  # afresh: it remembers the longest sequence
        ids = torch.randint(0, 100, (1, length), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            assert (ours(ids) - theirs(ids).logits).abs().max() < 2e-5


def steps(model: Decoder, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Logits after the prompt and after each later token, as a session computes them."""
    cache = KVCache(model.architecture, 1, device=CPU, dtype=torch.float32)
    cache.limit = 1000
    out, start = [], 0
    for end in range(prompt, ids.shape[1] + 1):
        if model.rotary.stale(cache.length, end):
            cache.length = start = 0
        out.append(model(ids[:, start:end], cache)[0, -1])
        start = end
    return torch.stack(out)


PHI3 = {
    "fused_qkv": True, "fused_gate_up": True, "partial_rotary_factor": 0.5,
    "rope_scaling": longrope(8),
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "cls", "changes"),
    [
        ("llama", "Llama", {"rope_scaling": longrope()}),
        ("llama", "Llama", {"rope_scaling": SCALINGS["dynamic"], "max_position_embeddings": 32}),
        ("phi3", "Phi3", PHI3),
    ],
    ids=["longrope", "dynamic", "phi3"],
)
def test_a_cache_grows_over_the_boundary_as_in_transformers_generate(family, cls, changes):
    arch = architecture(family, **changes)
    ours = random_decoder(arch)
    further = {"original_max_position_embeddings": ORIGINAL} if family == "phi3" else {}
    theirs = peer(arch, ours, cls, **further)
    ids = torch.randint(1, 100, (1, 29), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        answer = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False,
            eos_token_id=None, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        found = steps(ours, answer.sequences[:, :-1], 29)
        anew = ours(answer.sequences[:, :-1])[0, -8:]
    assert (found - torch.cat(answer.logits)).abs().max() < 2e-5
    # Only phi3 computes the earlier keys anew; elsewhere they keep the angles they had.
    assert ((found - anew)[-1].abs().max() < 2e-5) == (family == "phi3")


def test_mla_scores_get_the_factor_of_transformers():
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale

    for scaling in (None, SCALINGS["linear"], yarn(), SCALINGS["yarn, mscale"]):
        expected = yarn_apply_mscale(scaling or {}, 1.0)
        assert rope.softmax_mscale(scaling) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("width", [16, 64, 128])
@pytest.mark.parametrize(
    ("theta", "factor", "high", "original"),
    [(5e5, 8.0, 4.0, 8192), (5e5, 32.0, 4.0, 8192), (1e4, 2.7, 3.5, 1000)],
)
def test_llama3_is_recognised_by_its_divisors(width, theta, factor, high, original):
    given = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }  # fmt: skip
    divisors = torch.tensor(rope.divisors(given, theta, width)).tolist()  # rounded to float32
    found = rope.llama3_from_divisors(divisors, theta)
    if width > 16:
        assert found == given
        twice = {**given, "low_freq_factor": 2.0, "high_freq_factor": 2 * high,
                 "original_max_position_embeddings": 2 * original}  # fmt: skip
        assert rope.divisors(twice, theta, width) == pytest.approx(divisors, rel=1e-5)  # the same
    elif found is not None:
        assert rope.divisors(found, theta, width) == pytest.approx(divisors, rel=1e-5)
    assert rope.llama3_from_divisors([d * 1.01 for d in divisors], theta) is None
    assert rope.llama3_from_divisors([1.0] * 8, theta) is None


def test_cosines_and_sines_are_rounded_once_and_so_the_same_in_every_process():
    """torch's of float32 are off by a last bit here and there, elsewhere in other processes."""
    frequencies = 1e4 ** -(torch.arange(0, 64, 2).float() / 64)
    positions = torch.arange(4096)
    angles = (positions.float()[:, None] * frequencies).numpy().astype(np.float64)
    cos, sin = cos_sin(frequencies, positions)
    assert (cos[:, :32].numpy() == np.cos(angles).astype(np.float32)).all()
    assert (sin[:, 32:].numpy() == np.sin(angles).astype(np.float32)).all()
