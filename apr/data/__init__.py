"""Sources -> documents -> tokens -> shards with a manifest; batches from them; the data budget."""

from __future__ import annotations

from apr.data.batches import (
    Batches,
    DataExhausted,
    check_enough,
    validation_batches,
    validation_windows,
)
from apr.data.budget import Budget, judge
from apr.data.dataset import TokenDataset, build_dataset, check_vocabulary, open_dataset
from apr.data.manifest import Manifest
from apr.data.report import SourceReport
from apr.data.shards import TokenArray
from apr.data.sources import Document, iter_documents

__all__ = [
    "Batches",
    "Budget",
    "DataExhausted",
    "Document",
    "Manifest",
    "SourceReport",
    "TokenArray",
    "TokenDataset",
    "build_dataset",
    "check_enough",
    "check_vocabulary",
    "iter_documents",
    "judge",
    "open_dataset",
    "validation_batches",
    "validation_windows",
]
