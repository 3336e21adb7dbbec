"""What `apr inspect` says about a file: plain facts, gathered from whatever is there.

A file that lacks something is the normal case here: its pieces are read one by one, and what is
missing becomes a `Problem` that names the verbs which need it and how to mend it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr.architecture import Architecture
from apr.formats.opened import FormatName
from apr.inspect.special import costs, special
from apr.tensors import Tensor

VERBS = ("qa", "bench", "export")
_ALL = frozenset(VERBS)
RUNNING = frozenset({"qa", "bench", "export"})
TEXT = frozenset({"qa", "export"})


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is missing or wrong: `verbs` need it, `mend` says what to do."""

    what: str
    mend: str
    verbs: frozenset[str] = _ALL


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """The embedded tokenizer, without making one.

    `listed` counts the token list, fillers included; `pre` is llama.cpp's name of the
    pre-tokenizer; `whole` says whether all of it can be given back (not only tokens and merges).
    """

    model: str | None
    pre: str | None
    listed: int
    fillers: int
    merges: int | None
    special_ids: Mapping[str, Any]
    chat_template: bool
    whole: bool


@dataclass(frozen=True)
class Facts:
    """Everything that header, metadata and index say; no weight was read.

    `architecture` is None where it cannot be made; `stated` then still holds what is there, under
    canonical names. `tensors` have the file's own names; `roles` gives those that the family knows.
    `canonical` is the same tensors under canonical names, as far as they have one.
    """

    path: Path
    format: FormatName
    format_name: str
    version: str
    size_bytes: int
    tensors: Mapping[str, Tensor]
    canonical: Mapping[str, Tensor]
    roles: Mapping[str, str]
    family: str | None
    stated: Mapping[str, Any]
    architecture: Architecture | None
    metadata: Mapping[str, Any]
    summary: Mapping[str, Any]
    flags: Mapping[str, bool]
    tokenizer: TokenizerFacts | None
    training: Mapping[str, Any] | None
    problems: tuple[Problem, ...] = ()
    checksum: str | None = None
    verified: bool | None = None  # None: not asked for; True: every byte was read
    verification: str = "not checked; use --verify"
    quality: Mapping[str, Any] | None = field(default=None)

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.num_elements for tensor in self.tensors.values())

    @property
    def groups(self) -> dict[str, int]:
        """Parameters by role, largest first; `unknown` for tensors unknown to the family."""
        out: dict[str, int] = {}
        for name, tensor in self.tensors.items():
            role = self.roles.get(name, "unknown")
            out[role] = out.get(role, 0) + tensor.num_elements
        return dict(sorted(out.items(), key=lambda item: -item[1]))

    @property
    def dtypes(self) -> dict[str, dict[str, int]]:
        """Tensors, parameters and bytes by storage type."""
        out: dict[str, dict[str, int]] = {}
        for tensor in self.tensors.values():
            entry = out.setdefault(tensor.dtype.name, {"tensors": 0, "parameters": 0, "bytes": 0})
            entry["tensors"] += 1
            entry["parameters"] += tensor.num_elements
            entry["bytes"] += tensor.nbytes
        return out

    @property
    def valid(self) -> bool:
        """Readable, and nothing that a next verb needs is missing; see `verified` for its bytes."""
        return not self.problems

    def missing_for(self, verb: str) -> list[Problem]:
        """What a verb would miss; empty if the file is ready for it."""
        return [problem for problem in self.problems if verb in problem.verbs]

    def to_json(self) -> dict[str, Any]:
        """The keys of the Rust tool's `inspect --json`, and ours."""
        stated = self.architecture.to_metadata() if self.architecture else dict(self.stated)
        return {
            "file": str(self.path),
            "valid": self.valid,
            "format": self.format_name,
            "version": self.version,
            "tensor_count": len(self.tensors),
            "size_bytes": self.size_bytes,
            "checksum_valid": self.verified,
            "checksum": self.checksum,
            "verification": self.verification,
            **{
                key: stated.get(key)
                for key in (
                    "architecture", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                    "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings",
                    "rms_norm_eps", "rope_theta", "tie_word_embeddings",
                )
            },
            "special": dict(special(self.architecture)) if self.architecture else None,
            "costs": costs(self.architecture) if self.architecture else None,
            "parameters": {"total": self.parameters, **self.groups},
            "dtypes": self.dtypes,
            "tokenizer": _tokenizer_json(self.tokenizer),
            "training": dict(self.training) if self.training is not None else None,
            "ready": {
                verb: {
                    "ready": not self.missing_for(verb),
                    "missing": [{"what": p.what, "mend": p.mend} for p in self.missing_for(verb)],
                }
                for verb in VERBS
            },
            "flags": dict(self.flags),
            "metadata": dict(self.summary),
            **({"quality": dict(self.quality)} if self.quality is not None else {}),
        }  # fmt: skip


def _tokenizer_json(tokenizer: TokenizerFacts | None) -> dict[str, Any] | None:
    if tokenizer is None:
        return None
    return {
        "model": tokenizer.model,
        "pre": tokenizer.pre,
        "tokens": tokenizer.listed,
        "fillers": tokenizer.fillers,
        "merges": tokenizer.merges,
        "special_ids": dict(tokenizer.special_ids),
        "chat_template": tokenizer.chat_template,
        "whole": tokenizer.whole,
    }


def summarised(value: Any, longest: int = 16) -> Any:
    """A value for people and `--json`: long lists become their length, long texts their start."""
    if isinstance(value, (list, tuple)):
        if len(value) > longest:
            return {"type": "array", "length": len(value)}
        return [summarised(item, longest) for item in value]
    if isinstance(value, Mapping):
        if len(value) > 256:
            return {"type": "object", "length": len(value)}
        return {key: summarised(item, longest) for key, item in value.items()}
    if isinstance(value, str) and len(value) > 2000:
        return {"type": "string", "length": len(value), "start": value[:80]}
    return value
