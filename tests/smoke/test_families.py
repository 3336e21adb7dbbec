"""The pipeline for every family: train a few steps -> qa -> bench -> export both ways, each proven by
the peer that reads it. A family that is added is in it at once.

In this process and on a tiny size, so that a family takes seconds; `test_pipeline.py` goes through
the command line on a real preset.
"""

import random

import pytest

from apr import contracts, families

pytestmark = pytest.mark.slow

TINY = {
    "hidden_size": 64, "num_layers": 6, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16,
    "intermediate_size": 96, "rope_theta": 10_000.0, "seq_length": 64, "batch_size": 8,
    "grad_accum": 1, "lr": 3.0e-3,
}  # fmt: skip
NO_GGUF = {"bitnet": "llama.cpp computes another activation"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A text, and a tokenizer of 300 tokens made from it."""
    from apr.tokenizer import train

    draw = random.Random(7)
    words = ["def", "name", "value", "return", "self", "(x)", "[i]", "if", "else:", "None", "=", "1"]
    text = "\n".join(" ".join(draw.choices(words, k=8)) for _ in range(3000))
    root = tmp_path_factory.mktemp("data")
    (root / "text.txt").write_text(text, encoding="utf-8")
    train(iter([text]), 300, "qwen2").write_directory(root / "tok")
    return root


@pytest.mark.parametrize("family", families.known())
def test_a_family_goes_through_the_whole_pipeline(family, data, tmp_path, monkeypatch):
    import torch

    from apr import bench, qa
    from apr.export import export
    from apr.train import TrainConfig, pretrain

    torch.set_num_threads(1)
    monkeypatch.setitem(contracts.load("presets")["presets"], "tiny", TINY)
    trained = pretrain(
        TrainConfig(
            dataset=(str(data / "text.txt"),), tokenizer=str(data / "tok"), preset="tiny",
            family=family, run_dir=str(tmp_path / "run"), num_steps=24, steps_per_epoch=24,
            warmup_steps=2, eval_tokens=1024, sample_tokens=4, grad_accum=2, batch_size=4,
            device="cpu", threads=1, allow_under_provisioned="a smoke test",
        )
    )  # fmt: skip
    assert trained.best["loss"] < 4.5  # guessing is ln 300 = 5.7
    report = qa.run(trained.model)
    assert report.passed, report.summary
    found = bench.run(trained.model, device="cpu", prompt=16, generate=4, repetitions=2)
    assert all(row.tokens_per_second > 0 for row in found.rows)
    targets = {"gguf": tmp_path / "m.gguf", "safetensors": tmp_path / "hf"}
    if family in NO_GGUF:
        del targets["gguf"]
    for form, target in targets.items():
        proof = export(trained.model, target, format=form)
        verdicts = {check.id: check.outcome.verdict for check in proof.checks}
        assert set(verdicts.values()) <= {"pass", "skip"}, verdicts
        assert "pass" in verdicts.values()
