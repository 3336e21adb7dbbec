"""The CUDA kernels on a real GPU against PyTorch's path; graphs are used, none of them waits."""

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from apr import engine as engines
from apr.dtypes import DTYPES
from apr.engine.cuda import CudaEngine, load_cuda
from apr.tensors import Tensor, from_torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
SHAPE = {"num_heads": 14, "num_kv_heads": 2, "hidden_size": 512, "head_dim": 64,
         "intermediate_size": 768, "max_position_embeddings": 4096}  # fmt: skip


def ids(count, seed=0):
    return [int(i) for i in np.random.default_rng(seed).integers(0, 300, count)]


def test_the_kernels_are_the_default_and_agree_with_torch_in_float32(build):
    model = build(**SHAPE)
    engine = engines.load(model, device="cuda")
    assert isinstance(engine, CudaEngine)
    assert engine.plan.kernels.startswith("cuda (triton")
    prompt = ids(700)
    want = engines.load(model, device="cuda", kernels="torch").logits(prompt)
    assert np.abs(engine.logits(prompt) - want).max() < 1e-4
    session = engine.session()
    session.prefill(prompt[:300])
    session.prefill(prompt[300:690])
    steps = np.stack([session.decode(id) for id in prompt[690:]])
    assert np.abs(steps - want[690:]).max() < 1e-4


def test_a_step_is_one_graph_without_a_wait_and_repeats_its_logits_to_the_bit(build):
    model = build(torch.bfloat16, **SHAPE)
    engine = load_cuda(model, torch.device("cuda"), None)
    runs = []
    for _ in range(2):
        session = engine.session()
        session.prefill(ids(20))
        runs.append(np.stack([session.decode(id) for id in ids(6, 1)]))
    assert np.array_equal(*runs)
    assert engine.graphs.replays >= 10  # all steps but the first of a shape
    graph = next(iter(engine.graphs._graphs.values()))
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph.replay()
        slot = next(iter(engine._slots.values()))
        slot.fill([[1]], [session.length - 1], [session.held])
        with torch.inference_mode():
            engine._cuda.run(slot.work((1,) * len(engine.pools), engine._angles))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_16_bit_weights_agree_with_the_same_in_float32(build, kind):
    model = build(kind, **SHAPE)
    prompt = ids(90)
    want = engines.load(model, device="cuda", dtype="float32", kernels="torch").logits(prompt)
    engine = engines.load(model, device="cuda")
    size = np.abs(want).max()
    assert np.abs(engine.logits(prompt) - want).max() < 0.05 * size
    session = engine.session()
    steps = np.stack([session.decode(id) for id in prompt[:20]])
    assert np.abs(steps - want[:20]).max() < 2e-3 * size  # only the cache is rounded


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ2_0", "MXFP4"])
def test_block_types_are_computed_as_what_they_decode_to(build, name):
    gguf = pytest.importorskip("gguf")
    model = build(**SHAPE)
    stored, decoded = dict(model.tensors), dict(model.tensors)
    for key, tensor in model.tensors.items():
        if len(tensor.shape) == 2:
            raw = gguf.quants.quantize(tensor.float32(), gguf.GGMLQuantizationType[name])
            raw = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
            stored[key] = Tensor(key, DTYPES[name], tensor.shape, lambda raw=raw: raw)
            decoded[key] = from_torch(key, torch.from_numpy(stored[key].float32().copy()))
    model, plain = (dataclasses.replace(model, tensors=t) for t in (stored, decoded))
    prompt = ids(40)
    want = engines.load(plain, device="cuda", kernels="torch").logits(prompt)
    engine = load_cuda(model, torch.device("cuda"), "float32")
    size = np.abs(want).max()
    session = engine.session()
    steps = np.stack([session.decode(id) for id in prompt])
    assert np.abs(steps - want).max() < 1e-4 * size
    assert np.abs(engine.logits(prompt) - want).max() < 0.05 * size


def test_a_batch_is_its_sequences(build):
    engine = engines.load(build(**SHAPE), device="cuda")
    for count in (3, 9, 40):
        together, alone = ([engine.session() for _ in range(count)] for _ in range(2))
        for number, pair in enumerate(zip(together, alone, strict=True)):
            for session in pair:
                session.prefill(ids(10 + number, number))
        for step in range(3):
            got = engine.decode_batch(together, [step + n for n in range(count)])
            want = np.stack([s.decode(step + n) for n, s in enumerate(alone)])
            assert np.abs(got - want).max() < 1e-4
