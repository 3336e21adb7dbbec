"""What a file holds and what it lacks, from its header, metadata and index alone.

The answer to a file that an inspection called valid and every other tool refused: what is missing
for qa, bench and export is part of the facts, for complete and incomplete files alike.
"""

from __future__ import annotations

from dataclasses import replace

from apr.errors import StrPath
from apr.inspect.facts import Facts, Problem, TokenizerFacts
from apr.inspect.quality import judge
from apr.inspect.reading import gather

__all__ = ["Facts", "Problem", "TokenizerFacts", "inspect"]


def inspect(path: StrPath, *, verify: bool = False, quality: bool = False) -> Facts:
    """The facts of an .apr file, a GGUF file or a Hugging Face folder.

    Args:
        path: the file or folder.
        verify: read every byte and compare checksums (only .apr has them).
        quality: judge by the 100 points of `contracts/quality.yaml`.

    Raises:
        NotFound: the path does not exist, or is no model.
        InvalidFormat, CorruptFile: the container cannot be read; with `verify`, a byte is wrong.
        StorageError: it cannot be read.
    """
    facts = gather(path)
    if verify:
        facts = _verified(facts)
    return replace(facts, quality=judge(facts)) if quality else facts


def _verified(facts: Facts) -> Facts:
    if facts.format != "apr":
        return replace(
            facts,
            verification=f"not possible: a {facts.format_name} carries no checksum; "
            "bounds and sizes of every tensor were checked",
        )
    from apr.checkpoint import verify

    result = verify(facts.path)
    return replace(
        facts,
        verified=True,
        checksum=result.checksum,
        verification=f"every byte read in {result.seconds:.2f} s: {', '.join(result.checks)}",
    )
