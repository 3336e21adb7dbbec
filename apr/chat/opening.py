"""A model opened for text: engine and tokenizer together, and what its maker recommends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr.engine import Engine, Sampling
    from apr.formats.opened import OpenedModel
    from apr.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextModel:
    """A loaded model that reads and writes text. `recommended` is what its generation config asks
    for where it samples; empty where it has none, or is greedy. `notes` are sentences for the user.
    """

    path: Path
    engine: Engine
    tokenizer: Tokenizer
    recommended: Sampling
    notes: tuple[str, ...] = ()


def open_text_model(
    model: OpenedModel | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    kernels: str | None = None,
    cache: str | None = None,
) -> TextModel:
    """Load an opened model, or the file or folder at a path; its tokenizer comes first.

    Raises:
        ModelLoadError: it has no tokenizer; see also `apr.engine.load`.
    """
    from apr import engine
    from apr.formats import open_model

    opened = open_model(model) if isinstance(model, Path) else model
    tokenizer = opened.require_tokenizer()
    loaded = engine.load(opened, device, dtype, threads, kernels, cache)
    notes = []
    plan = loaded.plan
    asked = kernels is not None or dtype is not None or plan.device != "cpu"
    if not asked and plan.engine.startswith("torch"):
        notes.append(f"computed by PyTorch, slower than the CPU kernels: {plan.reason}")
    return TextModel(opened.path, loaded, tokenizer, recommended(opened.metadata), tuple(notes))


def recommended(metadata: Mapping[str, Any]) -> Sampling:
    """The settings of `Sampler` that a model's generation config states, if it samples."""
    config = metadata.get("generation_config")
    if not isinstance(config, Mapping) or not config.get("do_sample"):
        return {}
    stated = {
        key: value
        for key, value in config.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    found: Sampling = {"temperature": float(stated.get("temperature", 1.0))}
    if "top_k" in stated:
        found["top_k"] = int(stated["top_k"])
    if "top_p" in stated:
        found["top_p"] = float(stated["top_p"])
    if "min_p" in stated:
        found["min_p"] = float(stated["min_p"])
    if "repetition_penalty" in stated:
        found["repetition_penalty"] = float(stated["repetition_penalty"])
    return found
