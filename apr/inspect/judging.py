"""What is missing, and for which verb: the same questions for all three formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr import architecture as arch
from apr import families
from apr.architecture import Architecture
from apr.formats.opened import FormatName
from apr.inspect.facts import RUNNING, TEXT, Problem, TokenizerFacts
from apr.tensors import Tensor

AGAIN = "write the file again from its source: apr pretrain, or apr export of the original"
_SHOWN = 5


def contract_problems(architecture: Architecture) -> list[Problem]:
    """Rules of the contracts that the architecture breaks."""
    return [
        Problem(f"[{v.rule}] {v.message}", AGAIN, RUNNING) for v in arch.violations(architecture)
    ]


def tensor_problems(architecture: Architecture, tensors: Mapping[str, Tensor]) -> list[Problem]:
    """Tensors that are missing, unexpected or misshapen, the first few named."""
    found = families.tensor_problems(architecture, tensors)
    out = [Problem(text, AGAIN, RUNNING) for text in found[:_SHOWN]]
    if len(found) > _SHOWN:
        out.append(Problem(f"and {len(found) - _SHOWN} more tensors are wrong", AGAIN, RUNNING))
    return out


def tokenizer_problems(
    tokenizer: TokenizerFacts | None, vocab_size: int | None, format: FormatName
) -> list[Problem]:
    """A tokenizer that is missing, does not fit the embedding, or is unknown to llama.cpp."""
    if tokenizer is None:
        where = {
            "apr": "tokenizer.vocabulary",
            "gguf": "tokenizer.ggml.tokens",
            "hf": "tokenizer.json",
        }[format]
        return [Problem(f"no embedded tokenizer ({where})", AGAIN, TEXT)]
    out = []
    listed = tokenizer.listed
    # A Hugging Face folder may list fewer tokens than rows: its readers need no fillers.
    if vocab_size is not None and (
        listed > vocab_size or (listed != vocab_size and format != "hf")
    ):
        out.append(
            Problem(
                f"{listed} tokens are listed, vocab_size is {vocab_size}",
                "pad the list with unused tokens, or use the tokenizer of this model",
                RUNNING,
            )
        )
    outside = {
        name: id
        for name, id in _single_ids(tokenizer.special_ids)
        if vocab_size is not None and not 0 <= id < vocab_size
    }
    if outside:
        out.append(Problem(f"special ids outside the vocabulary: {outside}", AGAIN, TEXT))
    if not tokenizer.special_ids.get("eos"):
        out.append(Problem("no end-of-text token (eos)", AGAIN, TEXT))
    if tokenizer.model in (None, "gpt2") and tokenizer.pre is None:
        out.append(
            Problem(
                "its pre-tokenizer has no name in llama.cpp",
                "export --format safetensors works; GGUF needs another tokenizer",
                frozenset({"export"}),
            )
        )
    return out


def _single_ids(special: Mapping[str, Any]) -> list[tuple[str, int]]:
    out = []
    for name, value in special.items():
        for id in value if isinstance(value, list) else [value]:
            if isinstance(id, int):
                out.append((name, id))
    return out
