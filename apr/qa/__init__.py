"""The judge: gates that a checkpoint passes, fails, or is not subject to, with figures.

Works on `.apr`, GGUF and Hugging Face folders alike, and also on broken ones: what cannot be opened
as a model is opened piece by piece, so that the defect is named by the gate that it belongs to.
Gates and thresholds are data: `contracts/gates.yaml`.
"""

from __future__ import annotations

from apr.qa.report import GateResult, Report
from apr.qa.runner import gate_names, run

__all__ = ["GateResult", "Report", "gate_names", "run"]
