"""Training: from shards and a configuration to self-contained checkpoints.

`pretrain` is what `apr pretrain` calls. Nothing here imports torch until it runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr.train.config import TrainConfig as TrainConfig
    from apr.train.run import TrainResult as TrainResult
    from apr.train.run import pretrain as pretrain

_LAZY = {
    "TrainConfig": "apr.train.config",
    "TrainResult": "apr.train.run",
    "pretrain": "apr.train.run",
}

__all__ = ["TrainConfig", "TrainResult", "pretrain"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'apr.train' has no attribute {name!r}")
