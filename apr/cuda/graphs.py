"""CUDA graphs of decode steps: recorded once for each shape of a step, then replayed.

Purpose: the one place where a step on a GPU and a step on a CPU differ. Promise: the first step of
a shape runs as it is (Triton compiles what is new), the second is recorded, later ones are one
launch. On a CPU every step runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch


class Graphs:
    """Recorded steps by their shape; they share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._records = device.type == "cuda"
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.replays = 0

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Do the step of this shape. `step` reads and writes the same memory each time, and may be
        run more than once for one call.
        """
        graph = self._graphs.get(key)
        if (graph is None and key not in self._seen) or not self._records:
            self._seen.add(key)
            step()
            return
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self._graphs.values())).pool() if self._graphs else None
            # A capture waits for the device first, and computes nothing.
            with torch.cuda.graph(graph, pool=pool):
                step()
            self._graphs[key] = graph
        graph.replay()
        self.replays += 1

    def forget(self) -> None:
        """Drop all: memory that they read has moved."""
        self._graphs.clear()
        self._seen.clear()
