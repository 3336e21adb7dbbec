"""Measuring: prefill and decode apart, each figure with spread, raw samples and receipt."""

from __future__ import annotations

from apr.bench.record import Comparison, Record, Row
from apr.bench.verb import FORMATS, against_peer, compare, run

__all__ = ["FORMATS", "Comparison", "Record", "Row", "against_peer", "compare", "run"]
