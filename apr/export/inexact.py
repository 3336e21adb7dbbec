"""What llama.cpp would compute otherwise: refused with the difference, or allowed and recorded.

A property that llama.cpp lacks (a sliding window, say) is named by `families.gguf_obstacles`. Here
it is measured: our engine computes the model as it is and as llama.cpp would.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from apr import families
from apr.errors import FeatureUnavailable, GateFailed
from apr.export.proof import Proof
from apr.families.obstacles import Obstacle
from apr.formats.gguf_writer import TOKENIZER
from apr.formats.opened import OpenedModel

# Parameters times tokens of a measurement that is worth waiting for: minutes on two cores.
_MOST_WORK = 2e12


def as_llama_cpp_computes(
    source: OpenedModel, *, allowed: bool, threads: int | None = None
) -> tuple[OpenedModel, list[dict[str, Any]]]:
    """The model that a GGUF of `source` will be in llama.cpp, and what differs, measured.

    Without obstacles it is the source itself and an empty list.

    Raises:
        GateFailed: something differs and is not `allowed`, or llama.cpp would not load the file.
    """
    obstacles = families.gguf_obstacles(source.architecture)
    tokens = _tokenizer(source, allowed)
    if not obstacles and not tokens:
        return source, []
    found = tokens + [_measured(source, obstacle, threads) for obstacle in obstacles]
    fatal = [obstacle for obstacle in obstacles if obstacle.computed is None]
    if fatal or (obstacles and not allowed):
        hint = "write --format safetensors instead, which keeps it"
        if not fatal:
            hint += ", or go on with --allow-inexact, which records it"
        raise GateFailed(
            source.path,
            "cannot be exported to GGUF exactly: " + "; ".join(entry["text"] for entry in found),
            hint,
        )
    changes = {key: value for o in obstacles for key, value in (o.computed or {}).items()}
    architecture = replace(source.architecture, **changes)
    metadata = {**source.metadata, "inexact": found}
    return replace(source, architecture=architecture, metadata=metadata), found


def _tokenizer(source: OpenedModel, allowed: bool) -> list[dict[str, Any]]:
    """What llama.cpp does otherwise with text, if that is allowed."""
    try:
        source.require_tokenizer().to_gguf(source.architecture.vocab_size)
    except FeatureUnavailable as error:
        if not allowed:
            hint = "; ".join(filter(None, (error.hint, "--allow-inexact writes the nearest")))
            raise FeatureUnavailable(error.where, error.what, hint) from None
        # Raises where llama.cpp has nothing that comes near.
        source.require_tokenizer().to_gguf(source.architecture.vocab_size, allow_inexact=True)
        return [{"property": TOKENIZER, "text": error.what}]
    return []


def _measured(source: OpenedModel, obstacle: Obstacle, threads: int | None) -> dict[str, Any]:
    """The obstacle with the difference of logits that it makes, in words and figures."""
    entry: dict[str, Any] = {"property": obstacle.name, "text": obstacle.text}
    if obstacle.computed is None:
        return entry
    proof = Proof(source, Path("unwritten"), "gguf", threads=threads)
    parameters = families.num_parameters(source.architecture, active=True)
    window = source.architecture.shortest_window or 0
    if window >= len(proof.prompt):
        entry["text"] += f" (not measured: no prompt here is longer than {window} tokens)"
        return entry
    if proof.precision is None or parameters * len(proof.prompt) > _MOST_WORK:
        entry["text"] += " (not measured: the model is too large for that here)"
        return entry
    changed = replace(source, architecture=replace(source.architecture, **obstacle.computed))
    ours = proof.source_logits
    theirs = proof.logits_of(changed)
    far = float(np.abs(ours - theirs).max())
    same = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    entry["figures"] = {
        "max_abs": far,
        "top1": same,
        "positions": len(ours),
        "prompt_tokens": len(proof.prompt),
    }
    entry["text"] += (
        f" (measured: logits up to {far:.2g} apart at the end of {len(proof.prompt)} tokens, "
        f"top-1 equal at {same} of {len(ours)})"
    )
    return entry
