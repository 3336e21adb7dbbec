import importlib.util
import sys
from pathlib import Path

import pytest
import torch

_spec = importlib.util.spec_from_file_location("apr_tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(_spec)
sys.modules["apr_tiny"] = tiny
_spec.loader.exec_module(tiny)


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.make_tokenizer()


@pytest.fixture(scope="session")
def tiny_apr(tmp_path_factory, tokenizer):
    """A complete float32 checkpoint with an untied head."""
    return tiny.write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.apr", tokenizer=tokenizer)


@pytest.fixture(scope="session")
def tied_apr(tmp_path_factory, tokenizer):
    """The same in bfloat16, tied, with biases on attention and feed-forward."""
    return tiny.write_tiny(
        tmp_path_factory.mktemp("tied") / "tied.apr",
        tokenizer=tokenizer,
        dtype=torch.bfloat16,
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
    )


@pytest.fixture(scope="session")
def shared():
    """The folder of shared data beside the repository, where there is one."""
    folder = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared data beside the repository")
    return folder
