"""A small model that passes every gate, and ways to break one thing of it.

Training takes long, so the "trained" model is one of random weights whose corpus is what it writes
itself: drawn from it at temperature 1, that text is held-out data on which its loss is its entropy.
The loss is measured by torch's own cross entropy, not by the code under test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from apr import tokenizer as tokenizers
from apr.architecture import Architecture
from apr.checkpoint import write_apr, write_checkpoint
from apr.formats.opened import OpenedModel
from apr.model.decoder import Decoder, initialize
from apr.tensors import Tensor, from_torch

TEXT = (
    "def gcd(a, b):\n    while b:\n        a, b = b, a % b\n    return a\n\n"
    "The quick brown fox jumps over the lazy dog, again and again. Größe, café, naïve.\n"
)


@dataclass
class Tiny:
    """What a checkpoint is made of; change a part, then `write` it."""

    architecture: Architecture
    tokenizer: tokenizers.Tokenizer
    weights: dict[str, torch.Tensor]
    training: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        return [from_torch(name, w) for name, w in sorted(self.weights.items())]

    def metadata(self) -> dict[str, Any]:
        training = {"training": self.training} if self.training is not None else {}
        return {
            "model_type": "llama",
            "name": "tiny",
            **self.architecture.to_metadata(),
            **self.tokenizer.to_metadata(self.architecture.vocab_size),
            **training,
            **self.extra,
        }

    def write(self, path: Path) -> Path:
        training = {"training": self.training} if self.training is not None else {}
        write_checkpoint(
            path, architecture=self.architecture, tokenizer=self.tokenizer,
            tensors=self.tensors(), metadata=training,
        )  # fmt: skip
        return path

    def write_bare(self, path: Path, drop: tuple[str, ...] = (), **changes: Any) -> Path:
        """Past every check of `write_checkpoint`: what another writer may leave."""
        metadata = {**self.metadata(), **changes}
        for key in list(metadata):
            if any(key == d or key.startswith(d + ".") for d in drop):
                del metadata[key]
        write_apr(path, metadata, self.tensors())
        return path

    def opened(self) -> OpenedModel:
        return OpenedModel(
            path=Path("memory.apr"), format="apr", architecture=self.architecture,
            tensors={t.name: t for t in self.tensors()}, metadata=self.metadata(),
            load_tokenizer=lambda: self.tokenizer, size_bytes=0,
        )  # fmt: skip


def _train_record(decoder: Decoder, eos: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    ids = [eos]
    with torch.no_grad():
        while len(ids) < 97:
            p = decoder(torch.tensor([ids]))[0, -1].softmax(-1)
            ids.append(int(torch.multinomial(p, 1, generator=generator)))
        logits = decoder(torch.tensor([ids[:-1]]))[0]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).item()
    return {"step": 100, "validation_loss": loss, "train_loss": loss, "dtype": "float32",
            "probe": {"ids": ids, "loss": loss, "dtype": "float32"}}  # fmt: skip


@pytest.fixture(scope="session")
def _shared_tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.train(iter([TEXT] * 4), 320, "qwen2")


@pytest.fixture
def make_tiny(_shared_tokenizer):
    """`make_tiny(trained=True, **changes of the architecture)`."""

    def make(trained: bool = False, **changes: Any) -> Tiny:
        torch.set_num_threads(1)
        values: dict[str, Any] = {
            "family": "llama", "hidden_size": 64, "num_layers": 2, "num_heads": 4,
            "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 160,
            "vocab_size": _shared_tokenizer.vocab_size, "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "tie_word_embeddings": True,
        }  # fmt: skip
        architecture = Architecture(**{**values, **changes})
        tokenizer = _shared_tokenizer.resized(architecture.vocab_size)
        decoder = Decoder(architecture)
        initialize(decoder, torch.Generator().manual_seed(1))
        record = None
        if trained:
            with torch.no_grad():
                for name, parameter in decoder.named_parameters():
                    # Large enough that attention matters; norms off 1, so that they count.
                    parameter.mul_(8.0 if parameter.ndim > 1 and "embed" not in name else 1.0)
                    if parameter.ndim == 1:
                        parameter.add_(torch.linspace(-0.1, 0.1, len(parameter)))
                decoder.model.norm.weight.mul_(12.0)
            record = _train_record(decoder, tokenizer.eos_token_ids[0])
        weights = {k: v.detach().clone() for k, v in decoder.canonical_state().items()}
        return Tiny(architecture, tokenizer, weights, record)

    return make


@pytest.fixture
def verdicts():
    """`verdicts(report)` -> {gate: verdict}."""

    def of(report: Any) -> dict[str, str]:
        return {g.name: g.verdict for g in report.gates}

    return of
