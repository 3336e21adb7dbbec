"""Names by which llama.cpp takes a tokenizer for another."""

import pytest
from apr_tiny import make_tokenizer, write_tiny

from apr.formats import open_model, write_gguf
from apr.formats.gguf_reader import GgufFile


@pytest.fixture
def written(tmp_path):
    source = write_tiny(
        tmp_path / "m.apr", tokenizer=make_tokenizer(), metadata={"name": "My Phi-3"}
    )
    write_gguf(tmp_path / "m.gguf", open_model(source))
    return tmp_path / "m.gguf"


def test_a_name_that_says_phi3_is_kept_where_llama_cpp_does_not_look(written):
    assert GgufFile.open(written).fields["general.name"] == "My Phi 3"
    assert open_model(written).metadata["name"] == "My Phi-3"


@pytest.mark.exact
def test_llama_cpp_loads_a_model_of_that_name(written):
    llama_cpp = pytest.importorskip("llama_cpp")
    assert llama_cpp.Llama(str(written), vocab_only=True, verbose=False).n_vocab() == 416
