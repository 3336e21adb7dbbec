"""The receipt: what ran, where, on what. Stands with every figure and in every checkpoint.

Cheap: imports torch only if it is already loaded, asks git only inside a checkout of apr.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What changes speed without standing on the command line.
_THREADING = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def apr_version() -> str:
    """The installed version."""
    try:
        return version("apr")
    except PackageNotFoundError:
        return "unknown"


@cache
def commit() -> str | None:
    """The git commit of the running code, `-dirty` if it was changed; None when installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def command_line() -> str:
    """The command as the user could type it again."""
    program = Path(sys.argv[0])
    module = program.name == "__main__.py" and program.parent == Path(__file__).parent
    return shlex.join(["apr" if module else program.name, *sys.argv[1:]])  # python -m apr


@cache
def cpu_name() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def now() -> str:
    """The time, UTC, ISO 8601, seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; of a folder, over the sorted lines `sha256  name` of its files."""
    if path.is_dir():
        lines = [
            f"{file_sha256(p)}  {p.name}\n"
            for p in sorted(path.iterdir())
            if p.is_file() and not p.name.startswith(".")
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def receipt(device: str | None = None) -> dict[str, Any]:
    """Command, versions, commit, hardware and threads, as JSON-ready values.

    Args:
        device: the device that really ran, as torch names it (`cpu`, `cuda:0`).
    """
    out: dict[str, Any] = {
        "command": command_line(),
        "apr_version": apr_version(),
        "commit": commit(),
        "timestamp": now(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        out["torch"] = torch.__version__
        out["threads"] = torch.get_num_threads()
    threading = {k: os.environ[k] for k in _THREADING if k in os.environ}
    if threading:
        out["environment"] = threading
    if device is not None:
        out["device"] = device
        if device.startswith("cuda") and torch is not None:
            out["gpu"] = torch.cuda.get_device_name(device)
    return out
