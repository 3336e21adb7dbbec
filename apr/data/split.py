"""Which text is for validation: decided by each document alone, so adding files moves nothing.

Two ways, chosen once per build and recorded in the manifest:

- `documents`: a document goes to validation if its content's hash falls below the fraction. No
  text of a validation document is ever trained on.
- `tails`: for corpora of few documents (often one big file), where whole documents would leave a
  side empty or tell little: the end of each document, from a line border on, is for validation,
  as nanoGPT does with the last tenth of Shakespeare.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from apr.errors import UsageError

# Fewer expected validation documents than this, and the corpus is split by tails.
MIN_VALIDATION_DOCUMENTS = 5
# Up to this many bytes of sources a tenth is held out (a hundredth would be too noisy to steer
# by), above it a hundredth.
SMALL_CORPUS_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Split:
    """How a corpus is split: `mode` documents or tails, `fraction` of it for validation."""

    mode: str
    fraction: float

    def sentence(self) -> str:
        """The rule in words."""
        share = f"{100 * self.fraction:g} %"
        if self.mode == "documents":
            return f"{share} of the documents, by a hash of their content, are for validation"
        return f"few documents: the last {share} of each, from a line border on, are for validation"

    def parts(self, text: str, digest: bytes) -> tuple[str, str]:
        """(training part, validation part) of a document; either may be empty."""
        if self.mode == "documents":
            share = int.from_bytes(digest[:8], "big") / 2**64
            return ("", text) if share < self.fraction else (text, "")
        at = tail_border(text, self.fraction)
        return text[:at], text[at:]


def digest_of(text: str) -> bytes:
    """The document's identity: 16 bytes of BLAKE2b over its UTF-8."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def choose_fraction(asked: float | None, source_bytes: int) -> float:
    """The share for validation: as asked, else a tenth of small corpora and a hundredth of others.

    Raises:
        UsageError: asked for a share that leaves one side empty.
    """
    if asked is None:
        return 0.1 if source_bytes <= SMALL_CORPUS_BYTES else 0.01
    if not 0 < asked <= 0.5:
        raise UsageError(
            "--validation-fraction", f"{asked:g} is not above 0 and up to 0.5", "write e.g. 0.01"
        )
    return asked


def documents_wanted(fraction: float) -> int:
    """Distinct documents from which on whole documents are held out."""
    return math.ceil(MIN_VALIDATION_DOCUMENTS / fraction)


def tail_border(text: str, fraction: float) -> int:
    """Where the validation tail of a document begins: at a line if there is one near, else a word.

    Both sides are non-empty if the text has two characters or more.
    """
    wanted = min(max(int(len(text) * (1 - fraction)), 1), max(len(text) - 1, 0))
    # The next border after the wanted place, or the one before it: whichever leaves a tail of
    # between half and twice the wanted size.
    tail = len(text) - wanted
    for mark in ("\n", " "):
        after = text.find(mark, wanted - 1, len(text) - max(tail // 2, 1))
        if after >= 0:
            return after + 1
        before = text.rfind(mark, max(wanted - tail, 0), wanted)
        if before >= 0:
            return before + 1
    return wanted if len(text) > 1 else len(text)
