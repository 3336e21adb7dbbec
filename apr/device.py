"""Choosing a device and a dtype: what is asked for is what runs, or it is an error naming both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr.errors import FeatureUnavailable, UsageError

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
