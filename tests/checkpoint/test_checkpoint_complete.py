"""A checkpoint lacks nothing, or is not written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apr import architecture as arch
from apr import families, quant
from apr.checkpoint import AprFile, Flag, verify, write_checkpoint
from apr.dtypes import DTYPES
from apr.errors import InvalidFormat, ModelLoadError, StorageError
from apr.tensors import from_array


@pytest.fixture
def save(tmp_path, architecture, tokenizer, tensors):
    """`write_checkpoint` of the small model, with something changed."""
    path = tmp_path / "model.apr"

    def write(**changes):
        parts = {"architecture": architecture, "tokenizer": tokenizer, "tensors": tensors}
        return path, write_checkpoint(path, **{**parts, **changes})

    return write


def nothing_left(tmp_path) -> bool:
    return list(tmp_path.iterdir()) == []


def test_what_comes_out_is_what_went_in(save, architecture, tensors):
    training = {"step": 7, "validation_loss": 2.5, "budget": {"bypassed": None}}
    path, checksum = save(metadata={"name": "tiny", "training": training})
    assert verify(path).checksum == checksum
    file = AprFile.open(path)
    assert arch.from_metadata(file.metadata, path) == architecture
    assert file.metadata["training"] == training
    assert file.metadata["model_type"] == "llama"
    assert file.metadata["hf_architecture"] == "LlamaForCausalLM"
    assert file.metadata["rope_type"] == 2
    assert len(file.metadata["tokenizer.vocabulary"]) == 48
    assert file.flags == Flag.HAS_VOCAB | Flag.ROW_MAJOR
    for tensor in tensors:
        assert np.array_equal(file.tensors[tensor.name].numpy(), tensor.numpy())


def test_quantized_tensors_set_the_flag(save, tensors):
    packed = [quant.recoded(t, DTYPES["Q8_0"]) if len(t.shape) == 2 else t for t in tensors]
    path, _ = save(tensors=packed)
    assert AprFile.open(path).flags & Flag.QUANTIZED
    verify(path)


def test_a_copied_metadata_block_is_taken_with_its_figures_made_anew(save, tmp_path, tensors):
    path, _ = save()
    metadata = AprFile.open(path).metadata
    halves = [quant.recoded(t, DTYPES["BF16"]) for t in tensors]
    path, _ = save(tensors=halves, metadata=metadata, force=True)
    assert AprFile.open(path).metadata["total_size"] == metadata["total_size"] // 2


def test_no_tokenizer_no_checkpoint(save, tmp_path):
    with pytest.raises(ModelLoadError, match="without its tokenizer is never written"):
        save(tokenizer=None)
    assert nothing_left(tmp_path)


def test_missing_unexpected_and_misshapen_tensors_are_listed_together(save, tmp_path, tensors):
    wrong = [t for t in tensors if t.name != "model.norm.weight"]
    wrong.append(from_array("model.extra", np.zeros(3, dtype=np.float32)))
    wrong[0] = from_array(wrong[0].name, np.zeros((48, 31), dtype=np.float32))
    with pytest.raises(ModelLoadError) as caught:
        save(tensors=wrong)
    line = caught.value.line()
    assert "missing tensor model.norm.weight" in line
    assert "unexpected tensor model.extra [3]" in line
    assert "shape [48, 31], the architecture needs [48, 32]" in line
    assert nothing_left(tmp_path)


def test_a_tensor_given_twice_is_refused(save, tensors):
    with pytest.raises(ModelLoadError, match=r"model.norm.weight is given 2 times"):
        save(tensors=[*tensors, next(t for t in tensors if t.name == "model.norm.weight")])


@pytest.mark.parametrize("key", ["hidden_size", "num_kv_heads", "rope_theta", "vocab_size"])
def test_an_incomplete_architecture_is_refused_by_key(save, tmp_path, architecture, key):
    with pytest.raises(InvalidFormat, match=rf"missing {key}"):
        save(architecture=replace(architecture, **{key: None}))
    assert nothing_left(tmp_path)


def test_an_implausible_architecture_is_refused_by_rule(save, architecture):
    with pytest.raises(InvalidFormat, match="META-GQA"):
        save(architecture=replace(architecture, num_kv_heads=3))


def test_a_token_list_that_does_not_fit_names_the_three_numbers(save, tmp_path, stub_tokenizer):
    with pytest.raises(ModelLoadError, match=r"has 50 entries .* 48 rows, and vocab_size is 48"):
        save(tokenizer=stub_tokenizer(50))
    assert nothing_left(tmp_path)


def test_a_tokenizer_without_tokens_is_refused(save):
    class Empty:
        def to_metadata(self, vocab_size=None):
            return {"tokenizer.model": "gpt2"}

    with pytest.raises(ModelLoadError, match="no token list"):
        save(tokenizer=Empty())


def test_metadata_that_contradicts_the_model_is_refused(save, tmp_path):
    with pytest.raises(InvalidFormat, match="hidden_size is 64, the model's is 32"):
        save(metadata={"n_embd": 64})
    assert nothing_left(tmp_path)
    path, _ = save(metadata={"n_embd": 32})  # agrees: written under the canonical key only
    assert "n_embd" not in AprFile.open(path).metadata


def test_the_tokenizers_own_keys_give_way_to_the_tokenizer(save):
    stale = {"special_tokens": {"bos_token": None}, "tokenizer.old": 1, "tokenizer.merges": []}
    path, _ = save(metadata=stale)
    metadata = AprFile.open(path).metadata
    assert metadata["special_tokens"] == {"eos_token": "t0"}
    assert "tokenizer.old" not in metadata
    assert metadata["tokenizer.merges"] == ["t 1", "t 2"]


@pytest.mark.slow
def test_a_real_tokenizer_of_151_643_tokens_fits_and_comes_back_whole(tmp_path, architecture):
    folder = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "tokenizers" / "qwen2"
    if not folder.is_dir():
        pytest.skip("Qwen2's tokenizer (shared data) is not on this machine")
    from apr.tokenizer import Tokenizer

    real = replace(architecture, vocab_size=151_936, hidden_size=32)
    tensors = [
        from_array(spec.name, np.ones(spec.shape, dtype=np.float32))
        for spec in families.tensor_specs(real)
    ]
    tokenizer = Tokenizer.from_directory(folder)
    path = tmp_path / "model.apr"
    write_checkpoint(path, architecture=real, tokenizer=tokenizer, tensors=tensors)
    file = AprFile.open(path)
    assert file.header.metadata_size < 16 << 20
    back = Tokenizer.from_metadata(file.metadata)
    assert back.fingerprint == tokenizer.resized(151_936).fingerprint
    text = "Wörter, 中文 🙂\n\tdef f(x): return x**2  <|im_end|>"
    assert back.encode(text) == tokenizer.encode(text)


def test_an_existing_checkpoint_is_kept_unless_forced(save):
    save()
    with pytest.raises(StorageError, match="exists already"):
        save()
    save(force=True)
