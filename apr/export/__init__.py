"""Writing a model in another format, with the proof that it is still the same model."""

from __future__ import annotations

from apr.export.act import proof_path
from apr.export.report import Check, ExportReport, Outcome
from apr.export.verb import FORMATS, export

__all__ = ["FORMATS", "Check", "ExportReport", "Outcome", "export", "proof_path"]
