"""Whether special tokens are what the vocabulary needs, by contracts/special-tokens.yaml."""

from __future__ import annotations

from apr import contracts
from apr.tokenizer.tokenizer import Tokenizer


def special_token_problems(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """What is wrong with bos, eos and pad, as (rule id, sentence); empty if nothing.

    A published vocabulary is recognised by its marks (texts at ids), and then judged by its
    family's ids; any other vocabulary only needs an end-of-text token.
    """
    out = []
    eos = tokenizer.eos_token_ids
    if not eos:
        out.append(("TOK-EOS", "there is no end-of-text token"))
    tokens = tokenizer.tokens()
    named = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id, *eos]
    # The constructor refuses such ids; ids of the fillers pass it and mean nothing either.
    empty = [id for id in named if id is not None and tokenizer.is_filler(id)]
    if empty:
        out.append(("TOK-RANGE", f"special ids {empty} name no token of the vocabulary"))
    for family in contracts.load("special-tokens")["families"]:
        marks = family["marks"].items()
        if not all(id < len(tokens) and tokens[id] == text for id, text in marks):
            continue
        found: dict[str, list[int | None]] = {
            "bos": [tokenizer.bos_token_id],
            "eos": list(eos),
            "pad": [tokenizer.pad_token_id],
        }
        out += [
            ("TOK-FAMILY", f"{name} is {id}, {family['family']} has {family[name]}")
            for name, ids in found.items()
            for id in ids
            if id not in family[name]
        ]
    return out
