"""Memory: how much was used at most, and how fast it can be read here.

Bandwidth of the CPU is probed by summing a buffer far larger than any cache, with the threads that
the engine has; that of a GPU is the maker's figure where the model is known, else probed likewise.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from apr.bench.timing import Clock, timed
from apr.model import costs

if TYPE_CHECKING:
    import torch

_CPU_BUFFER = 256 << 20  # bytes; well above the last-level cache of any server core pair
_GPU_BUFFER = 1 << 30
_REPEATS = 3


def peak_rss() -> int | None:
    """The most resident memory this process ever had, bytes; mapped weights count once touched."""
    try:
        import resource
    except ImportError:  # not POSIX
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident() -> int | None:
    """Resident memory of this process now, bytes; None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def peak_cuda(device: torch.device) -> int | None:
    """The most memory torch ever had allocated on a GPU, bytes; None on the CPU."""
    if device.type != "cuda":
        return None
    import torch

    return int(torch.cuda.max_memory_allocated(device))


def known_bandwidth(device: torch.device, hardware: str) -> float | None:
    """The maker's bandwidth of a GPU, bytes/s; None where it is not in the table."""
    found = costs.peaks(hardware) if device.type == "cuda" else None
    return found[1] if found else None


class Probe:
    """Reads a large buffer; keeps it, so that a probe costs no allocation."""

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter) -> None:
        import torch

        size = _GPU_BUFFER if device.type == "cuda" else _buffer_for_cpu()
        self._clock = clock
        self._device = device
        self._buffer = torch.ones(size // 4, dtype=torch.float32, device=device)

    def read(self) -> float:
        """Bytes per second of the best of a few reads."""
        return self._buffer.nbytes / min(timed(self._sum, self._clock) for _ in range(_REPEATS))

    def _sum(self) -> None:
        # `.item()` waits for the device.
        self._buffer.sum().item()


def _buffer_for_cpu() -> int:
    """256 MiB, or an eighth of what is free where that is less."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return _CPU_BUFFER
    return max(1 << 20, min(_CPU_BUFFER, free // 8))
