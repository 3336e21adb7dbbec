"""Characters that a tokenizer has no token for: found and named, before a model guesses at them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr.errors import InferenceError

if TYPE_CHECKING:
    from apr.tokenizer import Tokenizer

_SHOWN = 5


def check_known(tokenizer: Tokenizer, text: str) -> None:
    """Refuse a text of which something would reach the model as "unknown", or not at all.

    A white space that a tokenizer leaves out is its way to see a text, and no loss.

    Raises:
        InferenceError: with the characters and where the first of them stands.
    """
    bad = [c for c in dict.fromkeys(text) if _is_lost(tokenizer, c)]
    if not bad:
        return
    first = min(text.index(c) for c in bad)
    names = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in bad[:_SHOWN])
    more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    raise InferenceError(
        "prompt",
        f"the tokenizer has no token for {names}{more}, the first is character {first + 1}",
        "write it otherwise, or let it become the unknown token: --allow-unknown",
    )


def _is_lost(tokenizer: Tokenizer, character: str) -> bool:
    ids = tokenizer.encode(character)
    unknown = tokenizer.unk_token_id
    return (unknown is not None and unknown in ids) or not (ids or character.isspace())
