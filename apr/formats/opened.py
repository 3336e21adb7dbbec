"""The opened model: architecture, tokenizer and lazy tensors, whatever the file's format.

`.apr` files, GGUF files and Hugging Face folders all open into it, so that qa, bench, run, inspect,
plan and export never see which one it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from apr.architecture import Architecture
from apr.errors import ModelLoadError
from apr.families import tensor_problems
from apr.tensors import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from apr.tokenizer import Tokenizer

FormatName = Literal["apr", "gguf", "hf"]


@dataclass(frozen=True)
class OpenedModel:
    """A model whose file is mapped and whose weights are still unread.

    `tensors` has canonical (Hugging Face) names and row-major shapes. `metadata` is what the file
    says beside weights and tokenizer, in `.apr` keys where one exists; `training` is the record of
    the run that made it, or None. `tokenizer` is None where the file has none: verbs that need one
    call `require_tokenizer`.
    """

    path: Path
    format: FormatName
    architecture: Architecture
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]
    load_tokenizer: Callable[[], Tokenizer | None]
    size_bytes: int

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, made on first use."""
        return self.load_tokenizer()

    @property
    def training(self) -> Mapping[str, Any] | None:
        """The training record, where the file carries one."""
        return self.metadata.get("training")

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            ModelLoadError: the file has none.
        """
        if self.tokenizer is None:
            raise ModelLoadError(
                self.path,
                "has no embedded tokenizer (tokenizer.vocabulary)",
                "write the file again with its tokenizer: apr import, or apr pretrain",
            )
        return self.tokenizer

    def fitting_tokenizer(self) -> Tokenizer:
        """The tokenizer, for writing it beside the weights.

        Raises:
            ModelLoadError: the file has none, or one with more tokens than the embedding has rows.
        """
        tokenizer, rows = self.require_tokenizer(), self.architecture.vocab_size
        if tokenizer.vocab_size > rows:
            raise ModelLoadError(
                self.path,
                f"its tokenizer has {tokenizer.vocab_size} tokens, the embedding has {rows} rows",
                "the model cannot take every token that this tokenizer gives",
            )
        return tokenizer

    def check_tensors(self) -> None:
        """Compare the tensors with what the family requires.

        Raises:
            ModelLoadError: one message that lists all that are missing, unexpected, or of another
                shape.
        """
        problems = tensor_problems(self.architecture, self.tensors)
        if problems:
            shown = "; ".join(problems[:20])
            more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
            raise ModelLoadError(self.path, shown + more)
