"""Rows of a pass, each a token of its own sequence: to the bit what each one's own step gives."""

import dataclasses
import os
import signal
import time

import numpy as np
import pytest
import torch

from apr import engine as engines
from apr import native
from apr.errors import InferenceError
from apr.formats.opened import OpenedModel
from apr.tensors import from_torch

if native.unavailable():
    pytest.skip(native.unavailable(), allow_module_level=True)
SETS = [entry.name for entry in native.kernel_sets() if entry.usable]
SHAPES = {
    "nine heads, one cached": {"num_heads": 9, "num_kv_heads": 1},
    "all heads cached": {"num_heads": 5, "num_kv_heads": 5, "head_dim": 24},
    "window, softcap": {
        "num_heads": 4, "num_kv_heads": 2, "head_dim": 80, "sliding_window": 20,
        "attn_logit_softcap": 3.0,
    },
    "one layer slides, sinks": {
        "num_heads": 6, "num_kv_heads": 2, "head_dim": 128, "sliding_window": 20, "num_layers": 2,
        "layer_types": ("full_attention", "sliding_attention"), "attention_sinks": True,
    },
}  # fmt: skip
LATENT = {
    "family": "deepseek_v3", "num_heads": 4, "num_kv_heads": 4, "head_dim": 24, "q_lora_rank": 24,
    "kv_lora_rank": 40, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 20,
    "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
    "num_shared_experts": 1, "shared_expert_intermediate_size": 32,
    "mlp_layer_types": ("dense", "sparse", "sparse"), "num_expert_groups": 2, "topk_groups": 1,
    "router_scoring": "sigmoid", "router_correction_bias": True, "group_score": "top2",
    "norm_topk_prob": True, "rope_interleave": True,
}  # fmt: skip
FOLLOWING = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512, "num_layers": 2}
COUNTS = (1, 2, 3, 5, 8, 11)


def ids(count, seed=0):
    return [int(i) for i in np.random.default_rng(seed).integers(0, 300, count)]


def together_and_alone(model, **asked):
    """Logits of two steps of 11 sequences of unequal lengths: in passes of 1 to 11 rows, alone."""
    engine = engines.load(model, device="cpu", threads=2, **asked)
    starts = [(7 * n) % 40 + 1 for n in range(max(COUNTS))]
    alone = [engine.session() for _ in starts]
    for session, start in zip(alone, starts, strict=True):
        session.prefill(ids(start, seed=start))
    want = np.stack([[s.decode(n + 5), s.decode(n + 9)] for n, s in enumerate(alone)], axis=1)
    for count in COUNTS:
        sessions = [engine.session() for _ in range(count)]
        for session, start in zip(sessions, starts, strict=False):
            session.prefill(ids(start, seed=start))
        for step in range(2):
            got = engine.decode_batch(sessions, [n + (5, 9)[step] for n in range(count)])
            yield count, got, want[step, :count]
        assert [s.length for s in sessions] == [start + 2 for start in starts[:count]]


@pytest.mark.parametrize(
    "shape", [*SHAPES.values(), LATENT, FOLLOWING], ids=[*SHAPES, "latent, experts", "dynamic"]
)
def test_rows_of_a_pass_are_the_steps_that_each_sequence_takes_alone(build, shape, monkeypatch):
    monkeypatch.setattr(OpenedModel, "check_tensors", lambda self: None)
    _, model = build(**shape)
    kinds = ("float32", "float16", "int8") if shape is not FOLLOWING else ("float32",)
    for name in SETS:
        for kind in kinds if name == SETS[0] else kinds[:1]:
            for count, got, want in together_and_alone(model, kernels=name, cache=kind):
                assert np.array_equal(got, want), (name, kind, count)


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "TQ2_0", "MXFP4"])
def test_rows_of_stored_types_are_steps_to_the_bit(build, quantized, name):
    _, model = build(**WIDE)
    stored, _ = quantized(model, name)
    for kernels in SETS:
        for count, got, want in together_and_alone(stored, kernels=kernels):
            assert np.array_equal(got, want), (kernels, count)


def test_the_same_sequence_may_have_several_rows(build):
    _, model = build(sliding_window=20)
    engine = engines.load(model, device="cpu", threads=2)
    first, second = engine.session(), engine.session()
    first.prefill(ids(30))
    second.prefill(ids(30))
    want = np.stack([first.decode(id) for id in (1, 2, 3)])
    assert np.array_equal(engine.decode_batch([second] * 3, [1, 2, 3]), want)
    assert second.length == 33
    assert np.array_equal(first.decode(4), second.decode(4))


def test_a_row_that_does_not_fit_leaves_all_where_they_were(build):
    _, model = build(max_position_embeddings=32)
    engine = engines.load(model, device="cpu", threads=1)
    first, second = engine.session(), engine.session()
    first.prefill([1, 2])
    second.prefill(ids(32))
    with pytest.raises(InferenceError, match="33 positions do not fit"):
        engine.decode_batch([first, second], [3, 4])
    assert (first.length, second.length) == (2, 32)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_computes_with_threads_of_its_own(build):
    _, model = build()
    engine = engines.load(model, device="cpu", threads=3)
    session, other = engine.session(), engine.session()
    session.prefill(ids(40))
    other.prefill(ids(40))
    want = other.decode(7)
    child = os.fork()
    if child == 0:
        same = False
        try:
            same = np.array_equal(session.decode(7), want)
            del session, other, engine  # nor waits for threads that it does not have
        finally:
            os._exit(0 if same else 1)
    for _ in range(300):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert status == 0
    assert np.array_equal(session.decode(7), want)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "TQ2_0"])
def test_an_activation_that_is_no_number_reaches_the_logits(build, quantized, name):
    _, model = build(**WIDE)
    stored, _ = quantized(model, name)
    norm = "model.layers.1.post_attention_layernorm.weight"
    scale = stored.tensors[norm].float32().copy()
    scale[3] = np.nan
    tensors = {**stored.tensors, norm: from_torch(norm, torch.from_numpy(scale))}
    broken = dataclasses.replace(stored, tensors=tensors)
    for kernels in SETS:
        session = engines.load(broken, device="cpu", kernels=kernels, threads=1).session()
        assert np.isnan(session.decode(5)).all(), kernels


def test_a_value_that_is_no_number_stays_one_in_a_cache_of_8_bits(build):
    _, model = build()
    for part in ("k_proj", "v_proj"):
        name = f"model.layers.1.self_attn.{part}.weight"
        values = model.tensors[name].float32().copy()
        values[0, 0] = np.nan
        tensors = {**model.tensors, name: from_torch(name, torch.from_numpy(values))}
        broken = dataclasses.replace(model, tensors=tensors)
        for kernels in SETS:
            engine = engines.load(broken, device="cpu", kernels=kernels, cache="int8", threads=1)
            assert np.isnan(engine.session().decode(5)).all(), (part, kernels)
