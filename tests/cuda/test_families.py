"""A shape of each dense family against transformers: one pass, steps, further prompts."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
pytest.importorskip("transformers")

from apr.engine.cuda import CudaEngine, why_not
from apr.formats import open_model

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "parity.py"
_spec = importlib.util.spec_from_file_location("parity", SCRIPT)
parity = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("parity", parity)  # dataclasses look their module up
_spec.loader.exec_module(parity)

FIRST = {case.family: case for case in reversed(parity.cases())}
REFUSED = {
    "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "gpt_oss", "mixtral", "olmoe", "qwen2_moe",
    "qwen3_moe",
}  # fmt: skip


def slow_but_llama(case):
    marks = () if case.family == "llama" or case.family in REFUSED else pytest.mark.slow
    return pytest.param(case, id=case.family, marks=marks)


@pytest.mark.usefixtures("large_programs")
@pytest.mark.parametrize("case", map(slow_but_llama, FIRST.values()))
def test_logits_are_those_of_transformers(case, tmp_path):
    model = parity.random_model(case)
    with parity.quiet():
        model.save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    assert bool(why_not(opened, torch.device("cpu"))) == (case.family in REFUSED)
    if case.family in REFUSED:
        return
    prompt = torch.randint(0, 289, (1, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = model(prompt).logits[0].float().numpy()
    ids = prompt[0].tolist()
    session = CudaEngine(opened, torch.device("cpu"), "float32").session()
    first = session.feed(ids[:9], 9)  # a prompt's way
    step = session.decode(ids[9])
    few = session.feed(ids[10:], 2)  # several tokens in one step
    got = np.concatenate((first, step[None], few))
    assert np.abs(got - theirs).max() < 1e-4
