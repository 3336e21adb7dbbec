"""llama.cpp itself on exported vocabularies: the same ids, on every line and every character."""

from unicodedata import category

import pytest

from apr.tokenizer import Tokenizer, alphabet, pretokenizers, probe, train
from apr.tokenizer.pieces import added_token

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
    for pre in pretokenizers.offered():
        made = train(iter(["text"]), 257, pre).resized(320)
        theirs = encoder(made)
        for text in hard:
            assert theirs(text) == made.encode(text, parse_special=False)


def test_a_published_tokenizer_from_its_json_agrees(published, encoder, hard):
    made = published.made("gpt-2")
    theirs = encoder(made)
    for text in [*hard[:-2], hard[-1]]:  # the published pattern differs on Unicode 16 alone
        assert theirs(text) == made.encode(text, parse_special=False)
    read_back = Tokenizer.from_gguf(made.to_gguf())
    assert theirs(hard[-2]) == read_back.encode(hard[-2], parse_special=False)


OTHERS = [name for name in pretokenizers.offered() if name not in ("qwen2", "llama-bpe", "gpt-2")]


@pytest.mark.parametrize("pre", OTHERS)
def test_under_every_name_llama_cpp_gives_the_ids_of_our_pattern(pre, encoder, mixed, hard):
    made = train((text for text in mixed if len(text) < 20_000), 700, pre)
    assert made.vocab_size > 500
    theirs = encoder(made)
    # llama.cpp's own regular expressions overflow its stack on pieces of some 100,000 characters.
    lines = [line for text in mixed[::5] for line in text.splitlines() if len(line) < 2000]
    for text in [*probe.texts(), *hard, *lines[::4]]:
        assert theirs(text) == made.encode(text, parse_special=False)


@pytest.mark.parametrize("name", ["bpe", "unigram", "unigram-rules"])
def test_pieces_give_the_ids_that_llama_cpp_makes_of_their_keys(name, sentencepieces, encoder):
    made = Tokenizer.from_directory(sentencepieces[name])
    keys = made.to_gguf()
    theirs = encoder(made), encoder(made, parse_special=True)
    plain = Tokenizer.from_gguf({key: keys[key] for key in keys if key != "apr.tokenizer"})
    back = Tokenizer.from_gguf(keys)
    assert (back.spec, back.scores) == (made.spec, made.scores)
    # The library's charsmap step takes characters with their marks together and loses some.
    texts = [t for t in probe.texts() if not any(category(c) in ("Mn", "Mc", "Cf") for c in t)]
    assert len(texts) > 80
    for text in [*texts, "</s>a<s>x<0x41><unk>", "a[INST] b", " x  y ", "\u3000ab\u00a0"]:
        if text.startswith("<|im_start|>") and name == "unigram":
            continue  # spaces alone between special tokens, see gguf_caveats
        assert theirs[0](text) == plain.encode(text, parse_special=False)
        assert theirs[1](text) == plain.encode(text)
    differs = [t for t in texts if theirs[0](t) != back.encode(t, parse_special=False)]
    # Where the source has bytes for what is no piece, llama.cpp has the unknown token: a caveat.
    assert bool(differs) == (name == "unigram-rules")
    assert bool(differs) == any("byte fallback" in caveat for caveat in made.gguf_caveats)


def test_mistrals_scores_give_mistrals_ids(published, encoder):
    made = published.made("mistral-v3")
    theirs = encoder(made)
    for text in [*probe.texts(), *(" " * n + "x" for n in range(40))]:
        assert theirs(text) == made.encode(text, parse_special=False)


@pytest.mark.slow
@pytest.mark.parametrize("pre", pretokenizers.offered())
def test_no_character_of_unicode_is_split_otherwise(pre, encoder):
    """Each character beside a letter, digit, space, mark and line end: two that stand in one piece
    merge, two in separate pieces cannot, so that the ids show every split."""
    base = train(iter(["text"]), 257, pre)
    sign = alphabet.characters()
    around = "x1 !\n'A/"
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
    forms = [n + "{}" for n in around] + ["{}" + n for n in around] + ["'{}x", "  {}1", "a{}b"]
    different = set()
    for form in forms:
        # Many at a time: llama.cpp compiles its regular expressions for every text.
        for start in range(0, len(points), 150):
            part = points[start : start + 150]
            text = "\n".join(form.format(chr(point)) for point in part)
            if theirs(text) != made.encode(text, parse_special=False):
                different.add((form, part[0]))
    assert not different
