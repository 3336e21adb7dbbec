"""Published tokenizers (where ../shared is), tokenizers trained here, and text that is hard."""

import importlib.util
from functools import cache
from pathlib import Path

import pytest

from apr.tokenizer import Tokenizer, train

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT.parent / "shared" / "data" / "tokenizers"

HARD = [
    "",
    " ",
    "\n\n\n \t \r\n\r\r",
    "hello  world   and    more" + " " * 300 + "x",
    "don't WE'LL I'M 'Sx 'ſx ’s o'clock'",
    "0 12 345 6789 1234567890 ½ ² Ⅷ ١٢٣ ৪৫",
    "นี่คือภาษาไทย ที่ไม่มีช่องว่าง",
    "مرحبا بالعالم، كيف الحال؟",
    "你好，世界。日本語のテキスト 한국어",
    "e\u0301 é \u0301\u0302 a\u0300\u0323b ﬁ ﬅ",
    "👩\u200d💻 👍🏽 🇩🇪 ❤️ 1\ufe0f\u20e3 😀😀😀",
    "\x00\x01\x02\x1b[31m\x7f\x80\x85\x9f\xa0\u2028\u2029\ufeff\u200b",
    "<|endoftext|> <| |> <|filler_0|> <|im_start|>",
    "def f(x):\n\treturn x['a'] + [1, 2]  # done\r\n\n\n    if True:\n",
    "\U000116d0\u1c89c \U0001e5d0 \U00013460\U00016d70 \U0010ffff\ufffe",
    "x" * 5000,
]


@pytest.fixture(scope="session")
def published():
    """The folder of a published tokenizer, by name; `published.made(name)` is the tokenizer itself,
    made once: the largest takes two seconds.
    """

    def folder(name):
        if not (PUBLISHED / name).is_dir():
            pytest.skip("../shared/data/tokenizers is not here")
        return PUBLISHED / name

    folder.made = cache(lambda name: Tokenizer.from_directory(folder(name)))
    return folder


@pytest.fixture(scope="session")
def vectors(published):
    """Texts and the ids that llama.cpp gives for them, as (text, ids)."""

    def read(name):
        folder = published(name)
        texts = (folder / "vectors.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
        lines = (folder / "vectors.out").read_text("utf-8").split("\n")
        pairs = [(t, [int(i) for i in ids.split()]) for t, ids in zip(texts, lines, strict=True)]
        assert len(pairs) > 40
        return pairs

    return read


@pytest.fixture(scope="session")
def gguf_keys(published):
    """The keys of a published vocabulary, by the gguf package's own reader."""
    gguf = pytest.importorskip("gguf")

    @cache
    def read(name):
        fields = gguf.GGUFReader(published(name) / "vocab.gguf").fields
        return {key: field.contents() for key, field in fields.items()}

    return read


@pytest.fixture(scope="session")
def comparison():
    """scripts/compare_tokenizers.py as a module."""
    path = ROOT / "scripts" / "compare_tokenizers.py"
    spec = importlib.util.spec_from_file_location("compare_tokenizers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def mixed(comparison):
    """About 200 KB of code, prose, other scripts, emoji and control characters."""
    return comparison.mixed(200_000, [])


@pytest.fixture(scope="session")
def trained(mixed):
    """A tokenizer of 1,000 tokens trained on `mixed`, by its pre-tokenizer."""

    class Trained(dict):
        def __missing__(self, pre):
            self[pre] = train(iter(mixed), 1000, pre)
            return self[pre]

    return Trained()


SENTENCEPIECE = {
    "bpe": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False},
    "bpe-rules": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False},
    "unigram": {"model_type": "unigram", "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False, "user_defined_symbols": ["[INST]"]},
    "unigram-rules": {"model_type": "unigram", "byte_fallback": True},
}  # fmt: skip


@pytest.fixture(scope="session")
def sentencepieces(tmp_path_factory, mixed):
    """A folder with a SentencePiece model of 600 pieces, by how it was trained."""
    spm = pytest.importorskip("sentencepiece")
    lines = [line for text in mixed for line in text.splitlines() if line and line.isascii()]
    lines = [*[line for line in lines if len(line) < 200][:2000], "été 你好 ﬁn"]
    out = {}
    for name, options in SENTENCEPIECE.items():
        folder = tmp_path_factory.mktemp(name)
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), vocab_size=600,
            character_coverage=0.999, minloglevel=2, num_threads=1, **options,
        )  # fmt: skip
        out[name] = folder
    return out


@pytest.fixture(scope="session")
def hard():
    return HARD


@pytest.fixture(params=["qwen2", "llama-bpe", "gpt-2"])
def each(request, trained):
    """Each trained tokenizer in turn."""
    return trained[request.param]


@pytest.fixture
def chatty(trained):
    """A trained tokenizer with bos, more ends, a template, and added tokens of both kinds."""
    from dataclasses import replace

    base = trained["llama-bpe"]
    end = base.eos_token_ids[0]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": end + 1, "content": "<|begin|>", **plain, "special": True},
        {"id": end + 2, "content": "<|im_end|>", **plain, "special": True},
        {"id": end + 3, "content": "<tool call>", **plain, "special": False},
    ]
    begin = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    spec = {
        **base.spec,
        "added_tokens": [*base.spec["added_tokens"], *added],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, sequence],
            "pair": [begin, sequence, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                "<|begin|>": {"id": "<|begin|>", "ids": [end + 1], "tokens": ["<|begin|>"]}
            },
        },
    }
    return replace(
        base,
        spec=spec,
        vocab_size=end + 9,
        bos_token_id=end + 1,
        eos_token_ids=(end + 2, end),
        chat_template="{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
        config={"model_max_length": 4096},
    )


def same(a: Tokenizer, b: Tokenizer, texts) -> None:
    """Both encode and decode alike, and say the same about themselves."""
    assert a.spec == b.spec
    assert (a.vocab_size, a.bos_token_id, a.eos_token_ids, a.pad_token_id, a.unk_token_id) == (
        b.vocab_size, b.bos_token_id, b.eos_token_ids, b.pad_token_id, b.unk_token_id
    )  # fmt: skip
    assert a.chat_template == b.chat_template
    assert a.fingerprint == b.fingerprint
    for text in texts:
        ids = a.encode(text, add_special_tokens=True)
        assert ids == b.encode(text, add_special_tokens=True)
        assert a.decode(ids) == b.decode(ids)


@pytest.fixture(scope="session")
def assert_same():
    return same
