"""Memory: how much was used at most, and how fast it can be read here.

Bandwidth of the CPU is probed by summing a buffer far larger than any cache, with the threads that
the engine has; that of a GPU is the maker's figure where the model is known, else probed likewise.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from apr.bench.timing import Clock, timed
from apr.model import costs
from apr.native.library import best_set, unavailable
from apr.native.model import Arena, NativeModel

if TYPE_CHECKING:
    import torch

_CPU_BUFFER = 512 << 20  # bytes; above the last-level cache that most servers give to a few cores
_GPU_BUFFER = 1 << 30
_REPEATS = 3


def peak_rss() -> int | None:
    """The most resident memory this process ever had, bytes; mapped weights count once touched."""
    try:
        # Not getrusage on Linux: what a process inherits there is the peak of the one that made it.
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # not POSIX
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident() -> int | None:
    """Resident memory of this process now, bytes; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
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
    """Reads a large buffer; keeps it, so that a probe costs no allocation.

    On a CPU the kernels' reader does it, on as many threads as are measured with; where the
    library is missing, PyTorch's sum. `reader` says which, `held_bytes` what of the process' memory
    is the buffer.
    """

    def __init__(
        self, device: torch.device, clock: Clock = time.perf_counter, threads: int | None = None
    ) -> None:
        self._clock, self._device = clock, device
        self._native: NativeModel | None = None
        size = _GPU_BUFFER if device.type == "cuda" else _buffer_for_cpu()
        self.held_bytes = 0 if device.type == "cuda" else size
        missing = unavailable() if device.type == "cpu" and threads else "not asked for"
        if threads and not missing:
            self._native = NativeModel(best_set(), threads)
            self._bytes = Arena(size).take(size)
            self._bytes.fill(1)
            self.reader = f"read by the CPU kernels, {threads} threads"
        else:
            import torch

            self._buffer = torch.ones(size // 4, dtype=torch.float32, device=device)
            self.reader = "summed by PyTorch"
            if device.type == "cpu" and threads:
                self.reader += f" (the CPU kernels are missing: {missing})"

    def read(self) -> float:
        """Bytes per second of the best of a few reads."""
        if self._native is not None:
            best = min(self._native.read_seconds(self._bytes) for _ in range(_REPEATS))
            return self._bytes.nbytes / best
        return self._buffer.nbytes / min(timed(self._sum, self._clock) for _ in range(_REPEATS))

    def _sum(self) -> None:
        # `.item()` waits for the device.
        self._buffer.sum().item()


def _buffer_for_cpu() -> int:
    """512 MiB, or an eighth of what is free where that is less."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return _CPU_BUFFER
    return max(1 << 20, min(_CPU_BUFFER, free // 8))
