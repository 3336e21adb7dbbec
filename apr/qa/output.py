"""The output gate: a trained model writes with the uncertainty that its record states.

Greedy text of a small model loops, so loops prove nothing. But drawn at temperature 1, a calibrated
model is on average as uncertain about its own text as about held-out text: the mean entropy along
the way is near the recorded validation loss. Far above it the model has lost what it learned, far
below it has collapsed. The garbage rules of the Rust tool are then applied to the same text,
relative to the corpus where the record holds a piece of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from apr.engine.sampling import Sampler
from apr.qa.parity import training_record
from apr.qa.report import Finding, Skip
from apr.qa.subject import Subject

Limits = Mapping[str, Any]


def output_not_degenerate(subject: Subject, limits: Limits) -> Finding:
    """Entropy of sampled text against the recorded loss, then the garbage rules."""
    record = training_record(subject)
    loss = record.get("validation_loss")
    if not isinstance(loss, int | float) or not math.isfinite(loss) or loss <= 0:
        raise Skip("the training record has no validation loss to judge against")
    architecture = subject.require_model().architecture
    chance = math.log(architecture.vocab_size)
    if loss > limits["learned"] * chance:
        raise Skip(
            f"the recorded validation loss {loss:.3f} is chance (ln {architecture.vocab_size} = "
            f"{chance:.3f}): nothing was learned yet"
        )
    tokenizer = subject.tokenizer()
    corpus = _corpus_text(subject, record)
    entropies, texts = [], []
    for seed in range(int(limits["texts"])):
        ids, entropy = _sample(subject, int(limits["new_tokens"]), seed)
        entropies.append(entropy)
        texts.append(tokenizer.decode(ids))
    entropy = float(np.mean(entropies))
    lowest = limits["entropy_low"] * min(loss, float(record.get("train_loss") or loss))
    # A text's first tokens, with nothing before them, are far less certain than the average of the
    # validation set; a model that lost what it learned is at chance. The line lies between.
    highest = loss + limits["entropy_high"] * (chance - loss)
    ratio = (
        f"mean entropy {entropy:.2f} nats a token over {len(texts)} sampled texts, recorded loss"
    )
    details = {"entropy": entropy, "bounds": [lowest, highest], "texts": texts}
    if not lowest <= entropy <= highest:
        side = "collapsed onto few tokens" if entropy < lowest else "lost what it learned"
        text = f"{ratio} {loss:.2f}: outside {lowest:.2f} to {highest:.2f}, the model {side}"
        return Finding(False, text, entropy, highest if entropy > highest else lowest, details)
    broken = [problems for text in texts if (problems := garbage(text, corpus, limits))]
    if len(broken) > limits["failing_texts"]:
        return Finding(
            False,
            f"{len(broken)} of {len(texts)} sampled texts are garbage: {broken[0][0]}",
            len(broken),
            int(limits["failing_texts"]),
            details,
        )
    return Finding(True, f"{ratio} {loss:.2f}; no garbage", entropy, highest, details)


def garbage(text: str, corpus: str | None, limits: Limits) -> list[str]:
    """What makes a text garbage, a phrase each. `corpus` is a piece of what was trained on.

    Runs of whitespace, or of one character such as a rule of dashes, are what code looks like;
    only a text that is nearly nothing else is refused.
    """
    if not text:
        return ["it is empty"]
    out = []
    solid = [c for c in text if not c.isspace()]
    common, count = Counter(solid or text).most_common(1)[0]
    total = len(solid) or len(text)
    if total > 8 and count / total > limits["one_character"]:
        out.append(f"{count / total:.0%} of it is {common!r}")
    share = repeated_share(text, *limits["fragment_bytes"])
    if share > limits["repeated_share"]:
        out.append(f"{share:.0%} of it are fragments three times in a row")
    replaced = text.count("\ufffd") / len(text)
    expected = corpus.count("\ufffd") / len(corpus) if corpus else 0.0
    if replaced > limits["replacement_share"] + expected:
        out.append(f"{replaced:.0%} of it are bytes that are no character")
    if corpus and (_non_ascii(corpus) < limits["non_ascii_share"] / 2):
        share = _non_ascii(text)
        if share > limits["non_ascii_share"]:
            out.append(f"{share:.0%} of it is not ASCII, the corpus has {_non_ascii(corpus):.0%}")
    return out


def repeated_share(text: str, shortest: int, longest: int) -> float:
    """Share of bytes in fragments of `shortest` to `longest` bytes that come 3 times in a row.

    Fragments of whitespace or of one repeated byte are left out.
    """
    data = text.encode("utf-8", errors="replace")
    covered = bytearray(len(data))
    for size in range(shortest, longest + 1):
        for start in range(len(data) - 3 * size + 1):
            piece = data[start : start + size]
            if len(set(piece)) == 1 or piece.isspace():
                continue
            if data[start + size : start + 3 * size] == piece * 2:
                covered[start : start + 3 * size] = b"\x01" * (3 * size)
    return sum(covered) / len(data) if data else 0.0


def _sample(subject: Subject, count: int, seed: int) -> tuple[list[int], float]:
    """A text drawn at temperature 1 from the start of a document, and the mean entropy (nats)."""
    engine = subject.engine
    tokenizer = subject.tokenizer()
    start = tokenizer.bos_token_id
    if start is None:
        start = tokenizer.eos_token_ids[0] if tokenizer.eos_token_ids else seed
    sampler = Sampler(temperature=1.0, seed=seed)
    session = engine.session()
    logits = session.prefill([start])
    ids: list[int] = []
    entropies = []
    for _ in range(min(count, engine.context - 1)):
        ids.append(sampler(logits))
        logits = session.decode(ids[-1])
        wide = logits.astype(np.float64)
        p = np.exp(wide - wide.max())
        p /= p.sum()
        entropies.append(float(-(p * np.log(np.maximum(p, 1e-300))).sum()))
    return ids, float(np.mean(entropies))


def _corpus_text(subject: Subject, record: Mapping[str, Any]) -> str | None:
    probe = record.get("probe")
    ids = probe.get("ids") if isinstance(probe, Mapping) else None
    if not isinstance(ids, list) or not ids:
        return None
    return subject.tokenizer().decode(ids)


def _non_ascii(text: str) -> float:
    return sum(ord(c) > 127 for c in text) / len(text) if text else 0.0
