"""A tied head where llama.cpp wants one of its own: the embedding twice in the file, once here."""

import pytest
from apr_tiny import make_tokenizer, write_tiny

from apr.formats import open_model, write_gguf
from apr.formats.gguf_reader import GgufFile

OLMO2 = {"family": "olmo2", "block_norms": "post", "qk_norm": True, "qk_norm_scope": "all"}


@pytest.fixture
def written(tmp_path):
    source = write_tiny(
        tmp_path / "m.apr", tokenizer=make_tokenizer(), tie_word_embeddings=True, **OLMO2
    )
    write_gguf(tmp_path / "m.gguf", open_model(source))
    return tmp_path


def test_the_copy_is_in_the_file_and_not_in_the_model(written):
    tensors = GgufFile.open(written / "m.gguf").tensors
    assert (tensors["output.weight"].raw() == tensors["token_embd.weight"].raw()).all()
    source, again = open_model(written / "m.apr"), open_model(written / "m.gguf")
    assert again.architecture == source.architecture and again.architecture.tie_word_embeddings
    assert again.tensors.keys() == source.tensors.keys()


def test_a_copy_that_was_changed_is_a_head_of_its_own(written):
    """As llama.cpp computes it, whatever our own key says."""
    path = written / "m.gguf"
    file = GgufFile.open(path)
    place = file.offsets["output.weight"]
    del file
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    again = open_model(path)
    assert not again.architecture.tie_word_embeddings and "lm_head.weight" in again.tensors
    again.check_tensors()
