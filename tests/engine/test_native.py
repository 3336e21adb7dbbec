"""The engine on the CPU kernels against the one on torch, which others hold to transformers."""

import dataclasses
import weakref

import numpy as np
import pytest
import torch

from apr import engine as engines
from apr import native
from apr.errors import FeatureUnavailable, UsageError
from apr.formats.opened import OpenedModel
from apr.tensors import from_array, from_torch

if native.unavailable():
    pytest.skip(native.unavailable(), allow_module_level=True)
SETS = [entry.name for entry in native.kernel_sets() if entry.usable]
# Groups of 1 to 9 heads, widths off the vectors' 16, windows shorter than the prompt and than a
# piece of it; a prompt of three pieces, whose ends lie on no border of chunks or blocks.
SHAPES = {
    "nine heads, one cached": {"num_heads": 9, "num_kv_heads": 1},
    "all heads cached": {"num_heads": 5, "num_kv_heads": 5, "head_dim": 24},
    "window, softcap": {
        "num_heads": 4, "num_kv_heads": 2, "head_dim": 80, "sliding_window": 37,
        "attn_logit_softcap": 3.0,
    },
    "one layer slides, sinks": {
        "num_heads": 6, "num_kv_heads": 2, "head_dim": 128, "sliding_window": 300,
        "layer_types": ("full_attention", "sliding_attention"), "attention_sinks": True,
    },
}  # fmt: skip
LENGTH = 523


def ids(count, seed=0):
    return [int(i) for i in np.random.default_rng(seed).integers(0, 300, count)]


def rounded(values, kind):
    """What a cache of this kind gives back."""
    if kind == "float32":
        return values
    if kind == "float16":
        return values.half().float()
    scale = values.abs().amax(-1, keepdim=True) / 127
    return (values * (1 / scale)).round() * scale


def reference(model, kind):
    """A session of torch's engine that rounds what it caches as the kernels do."""
    session = engines.load(model, device="cpu", kernels="torch").session()
    append = session._cache.append
    session._cache.append = lambda layer, k, v: append(layer, rounded(k, kind), rounded(v, kind))
    return session


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(shape, id=name, marks=[] if "softcap" in name else [pytest.mark.slow])
        for name, shape in SHAPES.items()
    ],
)
def test_attention_over_each_kind_of_cache_in_pieces_and_in_steps(build, shape, monkeypatch):
    # Llama's contract has no sinks, and the families that have them have experts too.
    monkeypatch.setattr(OpenedModel, "check_tensors", lambda self: None)
    _, model = build(**shape, num_layers=2, hidden_size=32, max_position_embeddings=600)
    prompt = ids(LENGTH)
    for kind in ("float32", "float16", "int8"):
        theirs = reference(model, kind)
        want = np.stack([theirs.prefill(prompt), *(theirs.decode(id) for id in range(6))])
        # Where a last bit rounds the other way, a step of the cache's type is between them.
        bound = {"float32": 2e-5, "float16": 2e-4, "int8": 5e-3}[kind]
        for name in SETS:
            engine = engines.load(model, device="cpu", kernels=name, cache=kind, threads=2)
            assert (engine.plan.kernels, engine.plan.cache) == (name, kind)
            session = engine.session()
            got = np.stack([session.prefill(prompt), *(session.decode(id) for id in range(6))])
            assert np.abs(got - want).max() < bound, (name, kind)
        session = engines.load(model, device="cpu", cache=kind, threads=2).session()
        for start, end in ((0, 1), (1, 130), (130, 131), (131, LENGTH - 3), (LENGTH - 3, LENGTH)):
            last = session.prefill(prompt[start:end])
        assert np.abs(last - want[0]).max() < bound, kind


def test_all_logits_of_a_long_prompt_are_those_of_torch_and_steps_repeat_them(build):
    _, model = build(sliding_window=40, max_position_embeddings=400)
    prompt = ids(300)
    want = engines.load(model, device="cpu", kernels="torch").logits(prompt)
    engine = engines.load(model, device="cpu", kernels=SETS[0], threads=2)
    assert np.abs(engine.logits(prompt) - want).max() < 2e-5
    assert np.abs(engine.logits(prompt, last=200) - want[100:]).max() < 2e-5
    session = engine.session()
    steps = np.stack([session.decode(id) for id in prompt])
    assert np.abs(steps - want).max() < 2e-5
    assert session.length == 300


def test_sessions_are_apart_and_a_rewound_one_is_as_new(build):
    _, model = build()
    engine = engines.load(model, device="cpu", kernels=SETS[0], threads=2)
    first, second, again = engine.session(), engine.session(), engine.session()
    alone = first.prefill([1, 2, 3])
    other = second.prefill(ids(40))
    assert np.array_equal(again.prefill([1, 2, 3]), alone)
    together = engine.decode_batch([first, second], [4, 5])
    assert np.array_equal(together[0], again.decode(4))
    assert second.rewind(40)
    assert np.array_equal(second.decode(5), together[1])
    assert first.rewind(0)
    assert np.array_equal(first.prefill(ids(40)), other)
    assert not first.rewind(41)


def test_a_window_is_rewound_as_far_as_it_still_holds_what_is_seen(build):
    _, model = build(sliding_window=20, max_position_embeddings=1000)
    engine = engines.load(model, device="cpu", kernels=SETS[0], threads=2)
    session, prompt = engine.session(), ids(700)
    session.prefill(prompt)
    assert not session.rewind(100)
    assert session.length == 700
    assert session.rewind(650)
    fresh = engine.session()
    fresh.prefill(prompt[:650])
    assert np.abs(session.decode(7) - fresh.decode(7)).max() < 2e-5


@pytest.mark.parametrize(
    ("name", "steps", "prompts"),
    # Shares of the largest logit. Activations in float32, in 8 bits (steps of 1/127 of the largest
    # of 32: 0.4 % of each product), in bfloat16 (2^-9); F16 is cut in two bfloat16 without loss.
    [("F16", 2e-5, 1e-4), ("BF16", 2e-5, 2e-2), ("Q8_0", 3e-2, 3e-2), ("Q4_0", 3e-2, 3e-2),
     ("Q5_1", 3e-2, 3e-2), ("TQ2_0", 3e-2, 3e-2), ("MXFP4", 3e-2, 3e-2)],
)  # fmt: skip
def test_stored_types_are_computed_as_what_they_decode_to(build, quantized, name, steps, prompts):
    _, model = build(hidden_size=256, head_dim=64, intermediate_size=512, num_layers=2)
    stored, decoded = quantized(model, name)
    prompt = ids(29)
    want = engines.load(decoded, device="cpu", kernels="torch").logits(prompt)
    size = np.abs(want).max()
    for kernels in SETS:
        engine = engines.load(stored, device="cpu", kernels=kernels, cache="float32", threads=2)
        assert engine.plan.stored.keys() == {name, "F32"}
        session = engine.session()
        stepped = np.stack([session.decode(id) for id in prompt])
        assert np.abs(stepped - want).max() < steps * size, kernels
        assert np.abs(engine.logits(prompt) - want).max() < prompts * size, kernels


def test_the_kernels_are_taken_where_nothing_else_is_asked_for(build, monkeypatch):
    _, model = build()
    default = engines.load(model, device="cpu", threads=1)
    assert (default.plan.engine, default.plan.kernels) == ("apr native", SETS[0])
    assert default.plan.threads == 1
    assert default.plan.weight_bytes == sum(t.nbytes for t in model.tensors.values())
    assert default.looked_up_bytes == engines.load(model, "cpu", "float32").looked_up_bytes
    whole = engines.load(model, "cpu", "float32").cache_bytes_per_token
    assert default.cache_bytes_per_token == whole
    assert engines.load(model, "cpu", cache="float16").cache_bytes_per_token == whole / 2
    assert engines.load(model, device="cpu", kernels="native").plan.kernels == SETS[0]
    for asked in ({"dtype": "float32"}, {"kernels": "torch"}):
        plan = engines.load(model, device="cpu", **asked).plan
        assert plan.engine.startswith("torch")
        assert plan.reason == ""
    monkeypatch.setattr("apr.engine.native.unavailable", lambda: "CPU kernels: not built")
    plan = engines.load(model, device="cpu").plan
    assert plan.engine.startswith("torch")
    assert "CPU kernels: not built" in str(plan)
    with pytest.raises(FeatureUnavailable, match="int8 was asked for, only .*CPU kernels: not bui"):
        engines.load(model, device="cpu", cache="int8")


def test_what_does_not_go_together_is_an_error_and_never_something_else(build):
    _, model = build()
    for asked, what in (
        ({"kernels": "sse9"}, "kernel set sse9: unknown; there are"),
        ({"kernels": "native", "dtype": "float32"}, "dtype: float32 was asked for, the CPU kern"),
        ({"kernels": "torch", "cache": "int8"}, "cache: int8 was asked for, torch keeps"),
        ({"cache": "int4"}, "cache: 'int4' is unknown; there are float32, float16 and int8"),
    ):
        with pytest.raises((UsageError, FeatureUnavailable), match=what):
            engines.load(model, device="cpu", **asked)
    clamped = dataclasses.replace(
        model, architecture=dataclasses.replace(model.architecture, hidden_act="mish")
    )
    for kernels in ("native", None):
        with pytest.raises(FeatureUnavailable, match="hidden_act mish; .*--kernels torch"):
            engines.load(clamped, device="cpu", kernels=kernels)


def test_a_type_without_a_kernel_is_an_error_and_torch_decodes_it_where_it_is_asked_to(build):
    _, model = build()
    name = "model.layers.1.mlp.up_proj.weight"
    wide = from_array(name, model.tensors[name].float32().astype(np.float64))
    odd = dataclasses.replace(model, tensors={**model.tensors, name: wide})
    for kernels in (None, "native", SETS[-1]):
        with pytest.raises(
            FeatureUnavailable, match=rf"no kernel for F64 \({name}\); .*--kernels torch"
        ):
            engines.load(odd, device="cpu", kernels=kernels)
    asked = engines.load(odd, device="cpu", kernels="torch").logits([1, 2])
    assert (asked == engines.load(model, device="cpu", kernels="torch").logits([1, 2])).all()


def test_a_key_that_is_no_number_is_never_hidden_by_the_softmax(build):
    _, model = build()
    name = "model.layers.1.self_attn.k_proj.weight"
    values = model.tensors[name].float32().copy()
    values[0, 0] = np.nan
    tensors = {**model.tensors, name: from_torch(name, torch.from_numpy(values))}
    for kernels in SETS:
        broken = dataclasses.replace(model, tensors=tensors)
        logits = engines.load(broken, device="cpu", kernels=kernels, threads=1).logits([1, 2, 3])
        assert np.isnan(logits).all(), kernels


def test_a_step_keeps_the_angles_it_began_with_while_another_thread_lets_them_grow(
    build, monkeypatch
):
    _, model = build(max_position_embeddings=2048)
    engine = engines.load(model, device="cpu", kernels="native")
    session, other = engine.session(), engine.session()
    session.prefill([5, 7])
    other.prefill([5, 7])
    expected, step = other.decode(9), engine._native.step

    def grown_meanwhile(*arguments):
        held = weakref.ref(engine._tables[0])
        engine._grown(1024)  # what a longer prompt in another thread does
        assert held() is not None and held() is not engine._tables[0]
        return step(*arguments)

    monkeypatch.setattr(engine._native, "step", grown_meanwhile)
    assert np.array_equal(session.decode(9), expected)
