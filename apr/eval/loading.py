"""A model that is evaluated: opened, loaded into the engine, and named by its hash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.errors import StrPath
from apr.receipt import file_sha256

if TYPE_CHECKING:
    from apr.engine import Engine
    from apr.formats.opened import OpenedModel
    from apr.tokenizer import Tokenizer

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Loaded:
    """A model that is evaluated."""

    model: OpenedModel
    engine: Engine
    tokenizer: Tokenizer
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """What it is and how it computed."""
        return {
            "model": str(self.model.path),
            "format": self.model.format,
            "size_bytes": self.model.size_bytes,
            "model_sha256": self.sha256,
            "architecture": self.model.architecture.family,
            "engine": self.engine.plan.to_json(),
        }


def load(
    path: StrPath,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """A model that can be evaluated: with an engine, a tokenizer and its hash.

    Raises:
        NotFound, InvalidFormat, ModelLoadError, FeatureUnavailable: it could not be loaded.
    """
    from apr import engine
    from apr.formats import open_model

    if progress is not None:
        progress(f"loading {path}")
    model = open_model(path)
    tokenizer = model.require_tokenizer()
    loaded = engine.load(model, device, dtype, threads)
    return Loaded(model, loaded, tokenizer, file_sha256(Path(path)))
