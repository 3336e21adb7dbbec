"""The error kinds of `apr`, each with its exit code.

Every failure that a user can cause or meet is one of these; the command line prints it as one
line (what is wrong, where, what to do) and leaves with the kind's exit code. The codes are those
of the Rust `apr`, with two more of ours; `contracts/exit-codes.yaml` documents each, and a test
compares both lists.
"""

from __future__ import annotations

from os import PathLike, fspath
from typing import ClassVar

StrPath = str | PathLike[str]


class AprError(Exception):
    """A failure with a message for the user.

    Args:
        where: the file, flag or setting that is wrong.
        what: what is wrong there, with the figures.
        hint: what to do about it, as a sentence.
    """

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "library_error"

    def __init__(self, where: StrPath, what: str, hint: str = "") -> None:
        self.where = fspath(where)
        self.what = what
        self.hint = hint
        super().__init__(self.line())

    def line(self) -> str:
        """The whole message on one line."""
        text = f"{self.where}: {self.what}"
        if self.hint:
            text += f"; {self.hint}" if not text.endswith((".", ";")) else f" {self.hint}"
        return " ".join(text.split())

    def as_json(self) -> dict[str, object]:
        """The message for programs."""
        return {
            "error": {
                "kind": self.kind,
                "exit_code": self.exit_code,
                "where": self.where,
                "message": self.what,
                "hint": self.hint,
            }
        }


class UsageError(AprError):
    """A wrong flag, value or combination; the hint says what to write instead."""

    exit_code = 2
    kind = "usage"


class NotFound(AprError):
    """The path does not exist, or is not what the verb works on."""

    exit_code = 3
    kind = "not_found"


class InvalidFormat(AprError):
    """The bytes are not a valid file of the format they claim to be."""

    exit_code = 4
    kind = "invalid_format"


class CorruptFile(InvalidFormat):
    """The file was valid once: a checksum, a bound or an order no longer holds."""

    kind = "corrupt_file"


class GateFailed(AprError):
    """Something was measured or judged, and it does not hold."""

    exit_code = 5
    kind = "gate_failed"


class ModelLoadError(AprError):
    """The file is readable, but no model can be made of it (missing tensors, sizes that differ)."""

    exit_code = 6
    kind = "model_load"


class StorageError(AprError):
    """Reading or writing failed: disk full, read-only, permission, existing output."""

    exit_code = 7
    kind = "input_output"


class InferenceError(AprError):
    """The model could not be run."""

    exit_code = 8
    kind = "inference"


class FeatureUnavailable(AprError):
    """What was asked for exists, but not on this machine or in this build."""

    exit_code = 9
    kind = "feature_unavailable"


class NetworkError(AprError):
    """A network resource could not be reached."""

    exit_code = 10
    kind = "network"


class TrainingDiverged(AprError):
    """The loss became non-finite or left every plausible range; nothing better was written."""

    exit_code = 11
    kind = "training_diverged"


class Interrupted(AprError):
    """The run was stopped by the user and saved; the hint is the command that resumes it.

    Args:
        where: as of any error.
        what: as of any error.
        hint: as of any error.
        document: what there was, for programs; it stands beside the error in its JSON.
    """

    exit_code = 130
    kind = "interrupted"

    def __init__(
        self, where: StrPath, what: str, hint: str = "", document: dict[str, object] | None = None
    ) -> None:
        super().__init__(where, what, hint)
        self.document = document or {}

    def as_json(self) -> dict[str, object]:
        """The message for programs, and what there was."""
        return {**self.document, **super().as_json()}
