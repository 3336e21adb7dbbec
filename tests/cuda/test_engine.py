"""The CUDA engine, interpreted, against torch's: caches, pages, batches, stored types."""

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from apr import engine as engines
from apr.dtypes import DTYPES
from apr.engine.cuda import CudaEngine, load_cuda, why_not
from apr.errors import FeatureUnavailable, UsageError
from apr.formats.opened import OpenedModel
from apr.tensors import Tensor, from_torch

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("large_programs")


def ids(count, seed=0):
    return [int(i) for i in np.random.default_rng(seed).integers(0, 300, count)]


def by_torch(model, prompt):
    return engines.load(model, device="cpu", kernels="torch").logits(prompt)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        {"sliding_window": 70, "num_heads": 3, "num_kv_heads": 1, "head_dim": 24},
        {"layer_types": ("full_attention", "sliding_attention"), "sliding_window": 20,
         "attn_logit_softcap": 3.0, "attention_sinks": True},
    ],
    ids=["window", "one layer slides, softcap, sinks"],
)  # fmt: skip
def test_attention_over_several_pages_in_pieces_steps_and_splits(build, shape, monkeypatch):
    monkeypatch.setattr(OpenedModel, "check_tensors", lambda self: None)  # llama has no sinks
    model = build(**shape, max_position_embeddings=400)
    prompt = ids(150)
    want = by_torch(model, prompt)
    engine = CudaEngine(model, CPU, "float32")
    engine.least_pages = 1
    session = engine.session()
    session.prefill(prompt[:138])
    steps = [session.decode(prompt[138]), session.prefill(prompt[139:])]
    assert np.abs(np.stack(steps) - want[[138, 149]]).max() < 2e-5
    used = {splits for _, _, splits in engine.graphs._seen}
    assert max(max(splits) for splits in used) > 1
    assert session.length == 150


def test_all_logits_are_those_of_torch_and_a_16_bit_cache_rounds_little(build):
    model = build()
    prompt = ids(20)
    want = by_torch(model, prompt)
    assert np.abs(CudaEngine(model, CPU, "float32").logits(prompt) - want).max() < 2e-5
    half = CudaEngine(model, CPU, "float16")
    assert half.plan.cache == "float16"
    session = half.session()
    session.prefill(prompt[:-1])
    assert np.abs(session.decode(prompt[-1]) - want[-1]).max() < 5e-3


def test_sessions_are_apart_a_batch_is_its_sequences_and_a_rewound_one_is_as_new(build):
    engine = CudaEngine(build(), CPU, "float32")
    first, second, again = engine.session(), engine.session(), engine.session()
    alone = first.prefill([1, 2, 3])
    second.prefill(ids(10))
    assert np.array_equal(again.prefill([1, 2, 3]), alone)
    together = engine.decode_batch([first, second], [4, 5])
    assert np.abs(together[0] - again.decode(4)).max() < 1e-5
    assert second.rewind(10)
    assert np.abs(second.decode(5) - together[1]).max() < 1e-5
    assert first.rewind(0)
    assert np.array_equal(first.prefill([1, 2, 3]), alone)
    assert not first.rewind(41)


def test_pages_are_given_back_and_taken_again(build):
    engine = CudaEngine(build(sliding_window=20, max_position_embeddings=1000), CPU, "float32")
    (pool,) = engine.pools
    held = engine.session().held[0]
    held.reach(1000, 0)
    pages = list(held.pages)
    assert len(pages) == len(set(pages)) == 16
    assert held.holds(0)
    held.reach(1000, 900)  # 20 and 256 positions before 900 stay
    assert held.first == (900 - 20 + 1 - 256) // 64
    assert held.holds(800) and not held.holds(100)
    free = len(pool._free)
    del held
    assert len(pool._free) == free + 16 - (900 - 20 + 1 - 256) // 64


def test_angles_that_follow_the_length_are_each_sequences_own(build):
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    model = build(rope_scaling=scaling, max_position_embeddings=32)
    prompt = ids(12)
    engine = CudaEngine(model, CPU, "float32")
    theirs = engines.load(model, device="cpu", kernels="torch")
    sessions = [e.session() for e in (engine, theirs) for _ in range(2)]
    for session in sessions:
        session.prefill(prompt)
    got = engine.decode_batch(sessions[:2], [1, 2])
    want = theirs.decode_batch(sessions[2:], [1, 2])
    assert np.abs(got - want).max() < 2e-5


def quantized(model, name):
    """The same model with its matrices in another type, and one with what these decode to."""
    gguf = pytest.importorskip("gguf")
    stored, decoded = dict(model.tensors), dict(model.tensors)
    for key, tensor in model.tensors.items():
        if len(tensor.shape) == 2:
            kind = name if "v_proj" not in key else "Q8_0"  # mixed, as files are
            raw = gguf.quants.quantize(tensor.float32(), gguf.GGMLQuantizationType[kind])
            raw = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
            stored[key] = Tensor(key, DTYPES[kind], tensor.shape, lambda raw=raw: raw)
            decoded[key] = from_torch(key, torch.from_numpy(stored[key].float32().copy()))
    return dataclasses.replace(model, tensors=stored), dataclasses.replace(model, tensors=decoded)


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])
def test_block_types_are_computed_as_what_they_decode_to(build, name):
    model, decoded = quantized(build(intermediate_size=64), name)
    prompt = ids(12)
    want = by_torch(decoded, prompt)
    exact = CudaEngine(model, CPU, "float32", blocks=torch.float32)
    session = exact.session()
    got = [session.prefill(prompt[:10]), session.decode(prompt[10])]
    assert np.abs(np.stack(got) - want[9:11]).max() < 2e-5
    prompts = CudaEngine(model, CPU, "float32")
    assert prompts.plan.arithmetic == "bfloat16"
    assert np.abs(prompts.logits(prompt) - want).max() < 2e-2 * np.abs(want).max()
    # Codes and scales, and no second copy.
    matrices = [t for t in model.tensors.values() if len(t.shape) == 2]
    assert exact.plan.weight_bytes <= 4 * sum(t.nbytes for t in matrices)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_16_bit_weights_stay_16_bit(build, kind):
    model = build(kind)
    prompt = ids(10)
    engine = CudaEngine(model, CPU, "float16")
    matrices = sum(t.nbytes for t in model.tensors.values() if len(t.shape) == 2)
    assert engine.plan.weight_bytes == matrices
    want = engines.load(model, device="cpu", dtype="float32").logits(prompt)
    assert np.abs(engine.logits(prompt) - want).max() < 2e-2 * np.abs(want).max()


def test_several_tokens_are_checked_in_steps_and_a_text_goes_on_beyond_the_context(build):
    model = build(num_layers=1, max_position_embeddings=16)
    engine = CudaEngine(model, CPU, "float32")
    session, other = engine.session(), engine.session()
    together = session.verify([*range(5, 15)])
    alone = np.stack([other.decode(id) for id in range(5, 15)])
    assert np.abs(together - alone[: len(together)]).max() < 1e-5
    session.reset()
    assert session.length == 0
    assert np.array_equal(session.decode(5), alone[0])
    assert engine.speculation_refusal(greedy=True) == ""
    theirs = engines.load(model, device="cpu", kernels="torch")
    found = [e.generate([1, 2, 3, 4, 5, 6, 7], 14, stop_ids=(), keep=2) for e in (engine, theirs)]
    assert found[0].ids == found[1].ids
    assert found[0].context_shifts == found[1].context_shifts > 0


def test_generating_a_batch_gives_what_each_prompt_gives_alone(build):
    engine = CudaEngine(build(num_layers=1), CPU, "float32")
    prompts = [[1, 2, 3], [4, 5]]
    together = engine.generate_batch(prompts, 3, stop_ids=())
    alone = [engine.generate(prompt, 3, stop_ids=()) for prompt in prompts]
    assert [one.ids for one in together] == [one.ids for one in alone]


def test_what_is_not_computed_is_refused_by_name(build, monkeypatch):
    model = build()
    assert why_not(model, CPU) == ""
    experts = dataclasses.replace(
        model, architecture=dataclasses.replace(model.architecture, num_experts=4)
    )
    with pytest.raises(FeatureUnavailable, match=r"no kernel for experts.*--kernels torch"):
        load_cuda(experts, CPU, None)
    name = "model.layers.0.mlp.down_proj.weight"
    row = model.tensors[name].shape[0]
    odd = Tensor(name, DTYPES["Q2_K"], (row, 256), lambda: np.zeros(row * 84, np.uint8))
    tensors = {**model.tensors, name: odd}
    with pytest.raises(FeatureUnavailable, match=r"no kernel for Q2_K \(model\.layers\.0"):
        load_cuda(dataclasses.replace(model, tensors=tensors), CPU, None)
    with pytest.raises(FeatureUnavailable, match="none of int8"):
        load_cuda(model, CPU, "int8")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FeatureUnavailable, match=r"triton is not installed.*--kernels torch"):
        load_cuda(model, CPU, None)
    monkeypatch.undo()
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(FeatureUnavailable, match="needs a C compiler, there is no no-such-comp"):
        load_cuda(model, CPU, None)
    with pytest.raises(UsageError, match="cuda are for a CUDA device, the device is cpu"):
        engines.load(model, device="cpu", kernels="cuda")
