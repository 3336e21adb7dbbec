"""Models as others write them: a folder by transformers itself, and our tiny checkpoints."""

import importlib.util
from pathlib import Path

import pytest
import torch

_path = Path(__file__).resolve().parents[1] / "formats" / "conftest.py"
_spec = importlib.util.spec_from_file_location("apr_formats_conftest", _path)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

_few_threads = _module._few_threads
tokenizer = _module.tokenizer
tiny_apr = _module.tiny_apr

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def save_folder(path, *, dtype=torch.float32, shard="20KB", tokens=400, seed=3, **config):
    """A random tiny Llama with a trained tokenizer, written by transformers alone."""
    import tokenizers
    import transformers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    text = Path(torch.__file__).with_name("functional.py").read_text(encoding="utf-8")
    ends = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=tokens,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=ends,
        show_progress=False,
    )
    backend.train_from_iterator([text], trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE
    values = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 416,
        "max_position_embeddings": 128, "tie_word_embeddings": False, "attention_dropout": 0.125,
        "bos_token_id": None, "eos_token_id": [2, 0], "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**values, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    model.to(dtype).save_pretrained(path, max_shard_size=shard)
    fast.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Sharded float32, untied, more embedding rows than tokens, two end tokens."""
    return save_folder(tmp_path_factory.mktemp("hf") / "tiny-llama")


@pytest.fixture(scope="session")
def make_folder():
    """`save_folder`: a folder with another config, type or tokenizer."""
    return save_folder
