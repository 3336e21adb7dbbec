"""Compare trained tokenizers with llama.cpp on mixed text: every line and every document, all ids.

For each pre-tokenizer that is offered: train on a part of the text, write a GGUF that holds the
vocabulary alone, load it in llama.cpp (llama-cpp-python, or xllamacpp), encode everything on both
sides. Prints lines, tokens, differing lines and seconds; exits 1 if a line differs.

    python scripts/compare_tokenizers.py --megabytes 20 --vocab-size 8192 [--prose FILE ...]

The text is made of what every machine has: the standard library's sources (code; other scripts in
its tests), texts of installed packages and the files given by --prose, words made of every
character that Unicode assigns or leaves free, emoji sequences, control characters and odd spacing.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path

from apr.formats.gguf_container import write_container
from apr.tokenizer import Tokenizer, train
from apr.tokenizer.pretokenizers import offered, rules

Encode = Callable[[str], list[int]]
SPACES = [
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    " \n",
    "\n ",
    "\t\t",
    "\u00a0",
    "\u2003",
]
SPACES += ["\u3000", "\u200b", "\u2028", "\u0085", " " * 17, " " * 130, "\n" * 9]
MARKS = ["'s", "'S", "'ll", "'\u017fx", "'re", "don't", "\u2019s", "...", "!?", "__", "->", "#1"]
JOINED = [
    "\U0001f469\u200d\U0001f4bb",
    "\U0001f1e9\U0001f1ea",
    "\U0001f44d\U0001f3fd",
    "\u2764\ufe0f",
    "1\ufe0f\u20e3",
]


def code() -> Iterator[str]:
    """The standard library's sources, in a fixed order; its tests hold many scripts."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")) + sorted(root.rglob("*-utf8.txt")):
        if "site-packages" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="replace")


def prose(files: list[Path]) -> Iterator[str]:
    """The files given, then licences and descriptions of installed packages."""
    for path in files:
        yield path.read_text(encoding="utf-8", errors="replace")
    found = sorted(distributions(), key=lambda item: item.metadata["Name"].lower())
    for item in found:
        for file in item.files or []:
            if file.suffix.lower() in (".md", ".txt", ".rst") or "LICEN" in file.name.upper():
                path = Path(str(file.locate()))
                if path.is_file():
                    yield path.read_text(encoding="utf-8", errors="replace")


def scripts(seed: int = 0) -> Iterator[str]:
    """Words made of neighbouring characters, all of Unicode in turn, again and again."""
    chance = random.Random(seed)
    points = [
        p for p in (*range(0xA0, 0x323B0), *range(0xE0000, 0xE0200)) if not 0xD800 <= p < 0xE000
    ]
    for _ in itertools.count():
        for start in range(0, len(points), 48):
            block = [chr(p) for p in points[start : start + 48]]
            out = []
            for _ in range(24):
                out.append("".join(chance.choices(block, k=chance.randint(1, 7))))
                out.append(
                    chance.choice(SPACES[:8]) if chance.random() < 0.7 else chance.choice(MARKS)
                )
                if chance.random() < 0.2:
                    out.append(str(chance.randrange(10 ** chance.randint(1, 9))))
            # Every character of the block, next to a letter, a digit and a mark.
            out += [f"a{c}b {c}1{c}!{c}\n" for c in block]
            yield "".join(out)


def oddities(seed: int = 1) -> Iterator[str]:
    """Emoji sequences, control characters (NUL among them), spacing, contractions, digits."""
    chance = random.Random(seed)
    emoji = [chr(p) for p in range(0x1F300, 0x1FAFF)] + JOINED
    control = [chr(p) for p in (*range(0x20), *range(0x7F, 0xA0))] + ["\ufeff", "\u202e", "\u200d"]
    kinds = [
        emoji,
        control,
        SPACES,
        MARKS,
        [*"abcXYZ09"],
        ["<|endoftext|>", "<|", "|>", "\u0301", "e\u0301"],
    ]
    while True:
        yield "".join(chance.choice(chance.choice(kinds)) for _ in range(400))


def mixed(size: int, files: list[Path]) -> list[str]:
    """About `size` bytes: 45 % code, 20 % prose, 25 % other scripts, 10 % oddities."""
    parts = {code(): 0.45, prose(files): 0.20, scripts(): 0.25, oddities(): 0.10}
    documents = []
    for source, share in parts.items():
        left = int(size * share)
        while left > 0 and (text := next(source, None)) is not None:
            text = text[: left + 1]
            documents.append(text)
            left -= len(text.encode("utf-8"))
    documents.append("x" * 200_000)  # a line without any place to split
    documents.append("a b " * 50_000)
    documents.append("")
    random.Random(2).shuffle(documents)
    return documents


def write_vocabulary(tokenizer: Tokenizer, path: Path) -> None:
    """A GGUF that holds the tokenizer alone, by the writer that `apr export` uses."""
    with path.open("wb") as file:
        write_container(file, {"general.architecture": "llama", **tokenizer.to_gguf()}, [])


def llama_cpp_encoder(path: Path, *, parse_special: bool = False) -> Encode:
    """llama.cpp's own tokenizer on a vocabulary file, no tokens added."""
    import llama_cpp

    llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    vocab = llama._model.vocab
    room = 1 << 16
    buffer = (llama_cpp.llama_token * room)()

    def encode(text: str) -> list[int]:
        nonlocal buffer, room
        data = text.encode("utf-8")
        count = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, room, False, parse_special)
        if count < 0:
            room = -count
            buffer = (llama_cpp.llama_token * room)()
            return encode(text)
        ids: list[int] = list(ctypes.cast(buffer, ctypes.POINTER(ctypes.c_int32))[:count])
        assert llama is not None  # keeps the vocabulary alive
        return ids

    return encode


def compare(tokenizer: Tokenizer, theirs: Encode, documents: list[str]) -> dict[str, object]:
    """Encode every document, and every line by itself, on both sides."""
    lines = [line for text in documents for line in text.splitlines(keepends=True)]
    seconds: dict[str, float] = {}
    differing: list[str] = []
    tokens = different_documents = 0
    ours_s = theirs_s = 0.0
    for number, group in enumerate((documents, lines)):
        for start in range(0, len(group), 4096):
            part = group[start : start + 4096]
            t0 = time.perf_counter()
            ours = tokenizer.encode_batch(part)
            t1 = time.perf_counter()
            reference = [theirs(text) for text in part]
            t2 = time.perf_counter()
            ours_s += t1 - t0
            theirs_s += t2 - t1
            for text, a, b in zip(part, ours, reference, strict=True):
                if number == 0:
                    tokens += len(a)
                    different_documents += a != b
                elif a != b:
                    differing.append(text)
    seconds = {"apr": round(ours_s, 2), "llama.cpp": round(theirs_s, 2)}
    return {
        "documents": len(documents),
        "differing_documents": different_documents,
        "lines": len(lines),
        "differing_lines": len(differing),
        "examples": [repr(text[:80]) for text in differing[:5]],
        "tokens": tokens,
        "bytes": sum(len(text.encode("utf-8")) for text in documents),
        "seconds": seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--train-megabytes", type=float, default=8)
    parser.add_argument("--prose", type=Path, nargs="*", default=[])
    parser.add_argument("--pre", nargs="*", default=offered())
    options = parser.parse_args()
    documents = mixed(int(options.megabytes * 1e6), options.prose)
    share = options.train_megabytes / options.megabytes
    chosen = [text for i, text in enumerate(documents) if random.Random(i).random() < share]
    worst = 0
    for pre in options.pre:
        given = documents
        if not rules(pre).get("any_length"):
            # Under these names llama.cpp's std::regex ends the process on very long pieces.
            given = [text for text in documents if max(map(len, text.split("\n"))) < 20_000]
        start = time.perf_counter()
        tokenizer = train(iter(chosen), options.vocab_size, pre)
        seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocab.gguf"
            write_vocabulary(tokenizer, path)
            result = compare(tokenizer, llama_cpp_encoder(path), given)
        trained = sum(len(text.encode("utf-8")) for text in chosen)
        learned = {
            "vocab_size": tokenizer.vocab_size,
            "bytes": trained,
            "seconds": round(seconds, 2),
        }
        print(json.dumps({"pre": pre, **result, "training": learned}, ensure_ascii=True))
        worst = max(
            worst, int(str(result["differing_lines"])), int(str(result["differing_documents"]))
        )
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main())
