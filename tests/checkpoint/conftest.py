"""A small model, a tokenizer stub, and ways to damage a file so that only one thing is wrong."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from apr import families, quant
from apr.architecture import Architecture
from apr.checkpoint import write_apr, write_checkpoint
from apr.checkpoint.layout import header_checksum
from apr.dtypes import DTYPES
from apr.tensors import Tensor, from_array


class StubTokenizer:
    """Gives the keys that a real tokenizer gives, for `size` tokens, padded up to vocab_size."""

    def __init__(self, size: int) -> None:
        self.size = size

    def to_metadata(self, vocab_size=None):
        vocabulary = [f"t{i}" for i in range(self.size)]
        vocabulary += [f"<filler-{i}>" for i in range(self.size, vocab_size or self.size)]
        return {
            "tokenizer.vocabulary": vocabulary,
            "tokenizer.merges": ["t 1", "t 2"],
            "tokenizer.vocab_size": len(vocabulary),
            "tokenizer.model": "gpt2",
            "tokenizer.spec": {"version": "1.0", "added_tokens": []},
            "special_tokens": {"eos_token": "t0"},
        }


@pytest.fixture
def stub_tokenizer():
    """A function: a tokenizer of so many tokens."""
    return StubTokenizer


@pytest.fixture
def tokenizer() -> StubTokenizer:
    return StubTokenizer(40)


@pytest.fixture
def architecture() -> Architecture:
    return Architecture(
        family="llama",
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=64,
        vocab_size=48,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
    )


@pytest.fixture
def tensors(architecture) -> list[Tensor]:
    rng = np.random.default_rng(3)
    return [
        from_array(spec.name, rng.standard_normal(spec.shape).astype(np.float32))
        for spec in families.tensor_specs(architecture)
    ]


@pytest.fixture
def golden_metadata() -> dict[str, object]:
    return {
        "model_type": "linear_regression",
        "name": "golden-v2",
        "version": "0.0.0-golden",
        "created_at": "1700000000",
        "param_count": 8,
    }


@pytest.fixture
def golden_tensors() -> list[Tensor]:
    return [
        from_array("weights", np.array([1, 2, 0.5, -0.5, 4, -2, 0.25, 8], dtype=np.float32)),
        from_array("bias", np.array([0.125], dtype=np.float32)),
    ]


@pytest.fixture
def golden(tmp_path, golden_metadata, golden_tensors) -> Path:
    """The check values' file: two tensors, metadata, 516 bytes."""
    path = tmp_path / "golden.apr"
    write_apr(path, golden_metadata, golden_tensors)
    return path


def _resealed(data: bytes) -> bytes:
    out = bytearray(data)
    out[40:44] = struct.pack("<I", header_checksum(bytes(out[:64])))
    out[-4:] = struct.pack("<I", zlib.crc32(out[:-4]))
    return bytes(out)


@pytest.fixture
def resealed():
    """A function: the bytes with both checksums made right, to meet the rule behind them."""
    return _resealed


@pytest.fixture
def patched():
    """A function: the bytes with `new` written at `at`, checksums made right."""
    return lambda data, at, new: _resealed(data[:at] + new + data[at + len(new) :])


@pytest.fixture
def model_bytes(tmp_path, architecture, tokenizer, tensors) -> bytes:
    """A whole small checkpoint, with a vocabulary and a quantized tensor."""
    tensors = [quant.recoded(t, DTYPES["Q8_0"]) if "mlp" in t.name else t for t in tensors]
    path = tmp_path / "model.apr"
    write_checkpoint(path, architecture=architecture, tokenizer=tokenizer, tensors=tensors)
    return path.read_bytes()
