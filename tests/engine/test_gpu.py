"""The same model by PyTorch on the CPU and on CUDA; the CUDA kernels: tests/cuda/test_gpu.py."""

import numpy as np
import pytest
import torch

from apr import engine as engines

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def test_logits_on_cuda_equal_those_on_the_cpu(build):
    _, model = build()
    cpu, cuda = (engines.load(model, device=d, kernels="torch") for d in ("cpu", "cuda"))
    assert cuda.plan.device.startswith("cuda")
    ids = [(37 * i + 11) % 300 for i in range(60)]
    assert np.abs(cpu.logits(ids) - cuda.logits(ids)).max() < 1e-4
    assert cpu.generate(ids[:9], 30, stop_ids=()).ids == cuda.generate(ids[:9], 30, stop_ids=()).ids


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_stored_type_is_what_computes_on_cuda(build, dtype):
    _, model = build(dtype=dtype)
    cuda = engines.load(model, device="cuda", kernels="torch")
    assert cuda.plan.weights == str(dtype).removeprefix("torch.")
    reference = engines.load(model, device="cpu", dtype="float32").logits(range(40))
    scale = np.abs(reference).max()
    assert np.abs(cuda.logits(range(40)) - reference).max() / scale < 0.05


def test_a_session_on_cuda_repeats_its_logits_to_the_bit(build):
    _, model = build(dtype=torch.bfloat16)
    engine = engines.load(model, device="cuda", kernels="torch")
    runs = []
    for _ in range(2):
        session = engine.session()
        session.prefill([1, 2, 3])
        runs.append(session.decode(4))
    assert np.array_equal(*runs)
