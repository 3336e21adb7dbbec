"""llama.cpp itself on exported vocabularies: the same ids, on every line and every character."""

import pytest

from apr.tokenizer import Tokenizer, pretokenizers

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.exact


@pytest.fixture
def encoder(comparison, tmp_path):
    def make(tokenizer, **options):
        comparison.write_vocabulary(tokenizer, tmp_path / "vocab.gguf")
        return comparison.llama_cpp_encoder(tmp_path / "vocab.gguf", **options)

    return make


def test_mixed_text_differs_in_no_line(each, encoder, comparison, mixed):
    result = comparison.compare(each, encoder(each), mixed)
    assert result["lines"] > 3000
    assert (result["differing_documents"], result["examples"]) == (0, [])


def test_hard_text_gives_the_same_ids_also_with_control_tokens_read(chatty, encoder, hard):
    plain, parsing = encoder(chatty), encoder(chatty, parse_special=True)
    for text in [*hard, "<|im_end|>a<|begin|>", "x<tool call>y", "<tool call"]:
        assert plain(text) == chatty.encode(text, parse_special=False)
        assert parsing(text) == chatty.encode(text)


def test_bytes_as_tokens_agree(encoder, hard):
    from apr.tokenizer import train

    for pre in pretokenizers.names():
        made = train(iter(["text"]), 257, pre).resized(320)
        theirs = encoder(made)
        for text in hard:
            assert theirs(text) == made.encode(text, parse_special=False)


def test_a_published_tokenizer_from_its_json_agrees(published, encoder, hard):
    made = Tokenizer.from_directory(published("gpt-2"))
    theirs = encoder(made)
    for text in [*hard[:-2], hard[-1]]:  # the published pattern differs on Unicode 16 alone
        assert theirs(text) == made.encode(text, parse_special=False)
    read_back = Tokenizer.from_gguf(made.to_gguf())
    assert theirs(hard[-2]) == read_back.encode(hard[-2], parse_special=False)


@pytest.mark.slow
@pytest.mark.parametrize("pre", pretokenizers.names())
def test_no_character_of_unicode_is_split_otherwise(pre, encoder):
    """Each character beside a letter, digit, space, mark and line end: two that stand in one piece
    merge, two in separate pieces cannot, so that the ids show every split."""
    from apr.tokenizer import alphabet, train
    from apr.tokenizer.pieces import added_token

    base = train(iter(["text"]), 257, pre)
    sign = alphabet.characters()
    around = "x1 !\n'"
    vocab = {character: byte for byte, character in enumerate(sign)}
    merges = []
    for byte in range(256):
        for neighbour in around:
            for pair in ([sign[ord(neighbour)], sign[byte]], [sign[byte], sign[ord(neighbour)]]):
                if "".join(pair) not in vocab:
                    vocab["".join(pair)] = len(vocab)
                    merges.append(pair)
    model = {**base.spec["model"], "vocab": vocab, "merges": merges}
    end = added_token(len(vocab), "<|endoftext|>", special=True)
    spec = {**base.spec, "model": model, "added_tokens": [end]}
    made = Tokenizer(spec=spec, vocab_size=len(vocab) + 1, eos_token_ids=(len(vocab),))
    theirs = encoder(made)
    points = [p for p in range(0x323B0) if not 0xD800 <= p < 0xE000] + [0xE0001, 0xF0000, 0x10FFFF]
    different = set()
    for form in [n + "{}" for n in around] + ["{}" + n for n in around] + ["'{}x", "  {}1"]:
        texts = [form.format(chr(point)) for point in points]
        ours = made.encode_batch(texts)
        different |= {p for p, t, a in zip(points, texts, ours, strict=True) if theirs(t) != a}
    assert not different
