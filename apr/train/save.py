"""What a run leaves: epoch checkpoints, the best model, and the training record inside them.

Only `apr.checkpoint.write_checkpoint` knows what a file must hold; here stands the record of how
the weights came about (docs/spec/training.md) and the order of publishing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr import families
from apr.atomic import explain
from apr.model.decoder import Decoder
from apr.tensors import from_torch

if TYPE_CHECKING:
    from apr.tokenizer import Tokenizer


def checkpoint_path(run_dir: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch goes."""
    return run_dir / "ckpt" / f"epoch-{epoch:03d}.apr"


def save_checkpoint(
    path: Path, model: Decoder, tokenizer: Tokenizer, record: Mapping[str, Any], name: str
) -> None:
    """Write a self-contained checkpoint and read it back, every byte.

    Raises:
        StorageError: it cannot be written; what was there before is untouched.
        CorruptFile: what was read back is not what was written.
    """
    from apr.checkpoint import verify, write_checkpoint
    from apr.receipt import now

    state = model.canonical_state()
    tensors = [
        from_torch(spec.name, state[spec.name])
        for spec in families.tensor_specs(model.architecture)
    ]
    metadata = {"name": name, "created_at": now(), "training": dict(record)}
    write_checkpoint(
        path,
        architecture=model.architecture,
        tokenizer=tokenizer,
        tensors=tensors,
        metadata=metadata,
        force=True,
    )
    verify(path)


def publish_best(checkpoint: Path, best: Path) -> None:
    """Make `best` the verified `checkpoint`, in one rename; a second name where the disk can.

    Raises:
        StorageError: it cannot be written; the old best is untouched.
    """
    temporary = best.parent / f".{best.name}.tmp-{os.getpid()}"
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(checkpoint, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(checkpoint, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(best)
        # Renaming one name of a file onto another name of the same file does nothing.
        temporary.unlink(missing_ok=True)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise explain(error, best) from error


def remove_old(run_dir: Path, keep: int | None, best_epoch: int) -> None:
    """Drop all but the newest `keep` checkpoints; the best one stays."""
    if keep is None:
        return
    found = sorted((run_dir / "ckpt").glob("epoch-*.apr"))
    for path in found[:-keep]:
        if path != checkpoint_path(run_dir, best_epoch):
            path.unlink(missing_ok=True)


def clean_leftovers(run_dir: Path) -> list[str]:
    """Remove what killed processes left under temporary names; the names removed."""
    removed = []
    for folder in (run_dir, run_dir / "ckpt", run_dir / "state"):
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            if path.name.startswith(".") and (".tmp-" in path.name or ".old-" in path.name):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
                removed.append(path.name)
    return removed
