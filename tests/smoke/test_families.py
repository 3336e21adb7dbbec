"""The pipeline for every family: train a few steps -> qa -> bench -> export both ways, each proven
by the peer that reads it. A family that is added is in it at once. `-s` shows a line of figures
for each.

In this process and on a tiny size, so that a family takes seconds; `test_pipeline.py` goes through
the command line on a real preset.
"""

import importlib.util
import sysconfig
from pathlib import Path

import pytest

from apr import contracts, families

pytestmark = pytest.mark.slow

TINY = {
    "hidden_size": 64, "num_layers": 6, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16,
    "intermediate_size": 96, "rope_theta": 10_000.0, "seq_length": 64, "batch_size": 8,
    "grad_accum": 1, "lr": 1.0e-2,
}  # fmt: skip
PEERS = {"gguf": ("llama.cpp", "llama_cpp"), "safetensors": ("transformers", "transformers")}
NO_GGUF = {"bitnet": "llama.cpp computes another activation"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A text, and a tokenizer of 300 tokens made from it."""
    from apr.tokenizer import train

    library = Path(sysconfig.get_paths()["stdlib"])
    sources = [
        *sorted((library / "asyncio").glob("*.py")),
        *sorted((library / "json").glob("*.py")),
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    root = tmp_path_factory.mktemp("data")
    (root / "text.txt").write_text(text, encoding="utf-8")
    train(iter([text]), 300, "qwen2").write_directory(root / "tok")
    return root


@pytest.mark.parametrize("family", families.known())
def test_a_family_goes_through_the_whole_pipeline(family, data, tmp_path, monkeypatch):
    import torch

    from apr import bench, qa
    from apr.bench.verb import Sizes
    from apr.export import export
    from apr.train import TrainConfig, pretrain

    torch.set_num_threads(1)
    monkeypatch.setitem(contracts.load("presets")["presets"], "tiny", TINY)
    trained = pretrain(
        TrainConfig(
            dataset=(str(data / "text.txt"),), tokenizer=str(data / "tok"), preset="tiny",
            family=family, run_dir=str(tmp_path / "run"), num_steps=80, steps_per_epoch=80,
            warmup_steps=8, eval_tokens=1024, sample_tokens=4, beta2=0.99,
            device="cpu", threads=1, allow_under_provisioned="a smoke test",
        )
    )  # fmt: skip
    assert trained.best["loss"] < 4.5  # guessing is ln 300 = 5.7
    report = qa.run(trained.model)
    failed = [(g.name, g.message) for g in report.gates if g.verdict == "fail"]
    assert report.passed, failed
    found = bench.run(trained.model, Sizes((16,), (4,), 2), device="cpu")
    assert all(row.tokens_per_second > 0 for row in found.rows)
    skipped = [gate.id for gate in report.gates if gate.verdict == "skip"]
    line = [
        f"\n{family}: {trained.steps} steps in {trained.train_seconds:.1f} s",
        f"loss {trained.best['loss']:.3f} nats",
        f"qa {report.executed} gates passed, skipped: {', '.join(skipped) or 'none'}",
        f"decode {next(r.tokens_per_second for r in found.rows if r.is_decode):.0f} tok/s",
    ]
    targets = {"gguf": tmp_path / "m.gguf", "safetensors": tmp_path / "hf"}
    if family in NO_GGUF:
        del targets["gguf"]
        line.append(f"no GGUF ({NO_GGUF[family]})")
    for form, target in targets.items():
        proof = export(trained.model, target, format=form)
        verdicts = {check.id: check.outcome.verdict for check in proof.checks}
        assert set(verdicts.values()) <= {"pass", "skip"}, verdicts
        peer, package = PEERS[form]
        assert verdicts[peer] == ("pass" if importlib.util.find_spec(package) else "skip")
        asked = [c for c in proof.checks if c.id.split(" (")[0] == peer and c.outcome.figures]
        passed = sum(verdict == "pass" for verdict in verdicts.values())
        line.append(
            f"{form}: {passed} checks passed"
            + "".join(f", {c.id} {_largest(c.outcome.figures)}" for c in asked)
        )
    print("; ".join(line))


def _largest(figures):
    """How far a peer's numbers are from ours."""
    if "max_abs" in figures:
        return f"{figures['max_abs']:.1e}"
    return f"{figures['max_abs_nats']:.1e} nats" if "max_abs_nats" in figures else "agrees"
