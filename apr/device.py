"""Choosing a device and a dtype: what is asked for is what runs, or it is an error naming both.

Also how much memory there is to be had, so that what cannot fit is refused before it is begun.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from apr.errors import FeatureUnavailable, InferenceError, StrPath, UsageError

if TYPE_CHECKING:
    import torch

DTYPE_NAMES = ("float32", "bfloat16", "float16")


def pick_device(asked: str | None) -> torch.device:
    """The device that will run.

    `None` or `auto`: CUDA if it works here, else the CPU. A name is taken literally, and proven by
    computing on it.

    Raises:
        UsageError: the name is no device.
        FeatureUnavailable: the device does not work here; the message says what torch found.
    """
    import torch

    if asked in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert asked is not None
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UsageError(
            "--device", f"{asked!r} is no device", "write cpu, cuda or cuda:N"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        raise FeatureUnavailable(
            "--device",
            f"{asked} was asked for, but torch {torch.__version__} ({build}) sees no CUDA device",
            "install a CUDA build of torch, or write --device cpu",
        )
    try:
        (torch.ones(2, device=device) + 1).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise FeatureUnavailable("--device", f"{asked} does not work here: {reason}") from None
    return device


def pick_dtype(asked: str | None, default: torch.dtype) -> torch.dtype:
    """The dtype by name (`float32`, `bfloat16`, `float16`, or f32, bf16, f16).

    Raises:
        UsageError: unknown.
    """
    import torch

    table = {
        "float32": torch.float32,
        "f32": torch.float32,
        "bfloat16": torch.bfloat16,
        "bf16": torch.bfloat16,
        "float16": torch.float16,
        "f16": torch.float16,
    }
    if asked in (None, "auto"):
        return default
    assert asked is not None
    if asked not in table:
        raise UsageError("--dtype", f"{asked!r} is unknown", f"write {', '.join(DTYPE_NAMES)}")
    return table[asked]


def available_memory(
    proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that this process can take without swapping: of the machine, or of its control group
    (a container) where that has less; None where the system does not say.
    """
    free = []
    try:
        for line in (proc / "meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
        for line in (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            if line.startswith("0::"):
                group = groups / line[3:].lstrip("/")
                parents = [p for p in group.parents if p.is_relative_to(groups)]
                free += [left for p in (group, *parents) if (left := _left_in(p)) is not None]
    except (OSError, ValueError):
        pass
    return min(free, default=None)


def _left_in(group: Path) -> int | None:
    """What a control group may still take; pages of files count, for they can be given back."""
    try:
        most = (group / "memory.max").read_text(encoding="ascii").strip()
        if most == "max":
            return None
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = dict(
            line.split() for line in (group / "memory.stat").read_text("ascii").splitlines()
        )
        return max(0, int(most) - used + int(stat.get("file", 0)))
    except (OSError, ValueError):
        return None


def require_memory(
    where: StrPath, what: str, need: int, hint: str, device: torch.device | None = None
) -> None:
    """Refuse what `need` bytes do not suffice for, on the CPU or a CUDA device.

    Raises:
        InferenceError: so many bytes are missing.
    """
    if device is not None and device.type == "cuda":
        import torch

        free: int | None = torch.cuda.mem_get_info(device)[0]
        place = f"on {device}"
    else:
        free, place = available_memory(), "of memory"
    if free is not None and need > free:
        raise InferenceError(
            where,
            f"{what} {_size(need)}, {_size(free)} {place} are free: {_size(need - free)} are "
            "missing",
            hint,
        )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
