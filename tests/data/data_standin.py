"""A tokenizer of bytes, with the face that the data room needs; and little helpers."""

import random
from dataclasses import dataclass

from apr.architecture import Architecture


@dataclass(frozen=True)
class ByteTokenizer:
    """Byte b is token b; 256 ends a text. `shift` makes another tokenizer of it."""

    vocab_size: int = 257
    shift: int = 0
    ends: tuple[int, ...] = (256,)

    @property
    def fingerprint(self):
        return f"bytes-{self.shift}-{'0' * 56}"

    @property
    def eos_token_ids(self):
        return self.ends

    def encode_batch(self, texts):
        return [[(b + self.shift) % 256 for b in text.encode()] for text in texts]

    def tokens(self):
        names = [f"b{i}" for i in range(self.vocab_size)]
        if self.vocab_size > 256:
            names[256] = "<|endoftext|>"
        return names


def decode(array):
    """The documents of a split made by ByteTokenizer, as texts."""
    ids = array.slice(0, len(array)).tolist()
    out, text = [], bytearray()
    for i in ids:
        if i == 256:
            out.append(text.decode())
            text = bytearray()
        else:
            text.append(i)
    assert not text, "the last document has no end of text"
    return out


def sentences(count, seed=0):
    """`count` distinct short documents."""
    rng = random.Random(seed)
    words = ["sun", "moon", "river", "stone", "über", "日本", "tree\nline", "wind", "🙂", "sea"]
    return [f"{n} " + " ".join(rng.choices(words, k=rng.randint(3, 30))) for n in range(count)]


def architecture(**changes):
    values = {
        "family": "llama",
        "hidden_size": 128,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 32,
        "intermediate_size": 352,
        "vocab_size": 257,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
    }
    return Architecture(**{**values, **changes})
