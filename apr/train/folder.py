"""The run's folder: one process at a time, nothing overwritten unasked, nothing foreign removed."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from apr.atomic import explain, write_text
from apr.errors import StorageError
from apr.train import save
from apr.train.config import TrainConfig

if TYPE_CHECKING:
    from apr.tokenizer import Tokenizer

# What a run leaves in its folder, and what --force may therefore remove.
OURS = ("ckpt", "state", "tokenizer", "model.apr", "metrics.jsonl", "loss.png", "config.yaml",
        "summary.json")  # fmt: skip
KEPT = ("data", ".lock")  # shards are reused if they still fit


def refuse_used(run_dir: Path, force: bool) -> None:
    """Refuse a folder that holds a run already; shards alone are no run.

    Raises:
        StorageError: it holds a run (and not `force`), is a file, or cannot be read.
    """
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise StorageError(run_dir, "is a file, not a folder", "choose another --run-dir")
    try:
        found = sorted(p.name for p in run_dir.iterdir())
    except OSError as error:
        raise explain(error, run_dir) from error
    used = [name for name in found if name not in KEPT and not name.startswith(".")]
    if used and not force:
        raise StorageError(
            run_dir,
            f"holds a run already ({', '.join(used[:4])})",
            "add --resume to go on with it, --force to start over, or choose another --run-dir",
        )


def clear(run_dir: Path) -> None:
    """Remove the files of an earlier run by name; whatever else lies there stays."""
    for name in OURS:
        path = run_dir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run's folder: two processes in it would overwrite each other.

    Raises:
        StorageError: another process trains there, or the folder cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / ".lock").open("w")
    except OSError as error:
        raise explain(error, run_dir) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageError(
                run_dir, "another apr pretrain is running here", "wait for it, or stop it"
            ) from None
        save.clean_leftovers(run_dir)
        yield


def write_start(run_dir: Path, config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Write what the run needs beside its state: tokenizer and configuration."""
    import yaml

    tokenizer.write_directory(run_dir / "tokenizer")
    left_out = ("resume", "force", "plan")
    asked = {k: v for k, v in config.asked().items() if k not in left_out}
    write_text(run_dir / "config.yaml", yaml.safe_dump(asked, sort_keys=False), force=True)
