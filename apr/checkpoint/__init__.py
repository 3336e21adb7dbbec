"""The `.apr` file: reading, writing and verifying it. The format: docs/spec/apr-format.md."""

from __future__ import annotations

from apr.checkpoint.complete import write_checkpoint
from apr.checkpoint.layout import Flag
from apr.checkpoint.reader import AprFile
from apr.checkpoint.verify import Verification, verify, verify_bytes
from apr.checkpoint.writer import Written, write_apr

__all__ = [
    "AprFile",
    "Flag",
    "Verification",
    "Written",
    "verify",
    "verify_bytes",
    "write_apr",
    "write_checkpoint",
]
