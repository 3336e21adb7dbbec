"""A tiny corpus, a byte tokenizer and a tiny preset, so that a run takes about a second."""

import random
import sys
from pathlib import Path

import pytest

from apr import contracts
from apr.train.config import TrainConfig

sys.path.insert(0, str(Path(__file__).parent))  # train_helpers

TINY = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "rope_theta": 10_000.0,
    "seq_length": 16,
    "batch_size": 4,
    "grad_accum": 1,
    "lr": 3.0e-3,
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _tiny_preset(monkeypatch):
    """A preset `tiny` beside the real ones."""
    table = contracts.load("presets")["presets"]
    monkeypatch.setitem(table, "tiny", TINY)


@pytest.fixture
def pictures():
    """Ask for it where the loss curve is drawn in truth."""


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    """Drawing takes longer than all else of a tiny run."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("apr.train.loop.draw_curve", lambda *_: None)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "it"]
    draw = random.Random(5)
    lines = [" ".join(draw.choices(words, k=9)) for _ in range(1200)]
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    from apr.tokenizer import train

    path = tmp_path_factory.mktemp("tokenizer") / "bytes"
    train(iter(["bytes only"]), 257, "gpt-2").write_directory(path)
    return path


@pytest.fixture
def config(corpus, tokenizer_dir, tmp_path):
    """Build a configuration of a run of 30 steps, saved every 10."""

    def make(**changes) -> TrainConfig:
        values = {
            "dataset": (str(corpus),),
            "tokenizer": str(tokenizer_dir),
            "run_dir": str(tmp_path / "run"),
            "preset": "tiny",
            "num_steps": 30,
            "steps_per_epoch": 10,
            "eval_tokens": 512,
            "sample_tokens": 8,
            "device": "cpu",
            "threads": 1,
            "allow_under_provisioned": "a test",
        }
        return TrainConfig(**{**values, **changes})

    return make
