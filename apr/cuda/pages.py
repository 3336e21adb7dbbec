"""The KV cache in pages of 64 positions, taken as sequences grow and given back when they end.

Purpose: memory for many sequences of any length without a copy when one grows, and without knowing
lengths beforehand. Promise: a page never moves; layers with a window give back what no later token
sees. A page holds 64 positions of all layers of its kind (whole context, or window), keys and then
values by layer and head; kernels find it by its distance, in elements, from the first one made.
"""

from __future__ import annotations

import itertools
import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor

from apr.architecture import Architecture
from apr.errors import InferenceError

PAGE = 64
_CHUNK_BYTES = 64 << 20  # taken from the device at once, at least a page
# Positions behind a window that are kept, for sequences that are rewound.
KEPT = 4 * PAGE


@dataclass
class Pool:
    """Pages for the layers of one kind.

    `slots`: by layer, its place among them, or -1.
    """

    slots: list[int]
    window: int | None
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    base: Tensor | None = None
    _chunks: list[Tensor] = field(default_factory=list)
    _free: list[int] = field(default_factory=list)

    @property
    def layer(self) -> int:
        """Elements of a layer's keys (or values) in a page."""
        return self.kv_heads * PAGE * self.head_dim

    @property
    def page(self) -> int:
        """Elements of a page."""
        return 2 * self.layer * sum(slot >= 0 for slot in self.slots)

    @property
    def nbytes(self) -> int:
        """Bytes taken so far."""
        return sum(c.numel() * c.element_size() for c in self._chunks)

    def take(self) -> int:
        """A page that nobody has.

        Raises:
            InferenceError: the device has no memory left for it.
        """
        if not self._free:
            size = self.dtype.itemsize
            count = max(1, min(_CHUNK_BYTES // max(1, self.page * size), 64))
            try:
                chunk = torch.empty(count * self.page, dtype=self.dtype, device=self.device)
            except RuntimeError as error:
                raise InferenceError(
                    "cache",
                    f"{self.page * count * size / 1e6:.0f} MB for {count * PAGE} further positions "
                    f"cannot be had beside {self.nbytes / 1e6:.0f} MB",
                    "use shorter or fewer sequences",
                ) from error
            if self.base is None:
                self.base = chunk
            self._chunks.append(chunk)
            first = (chunk.data_ptr() - self.base.data_ptr()) // size
            self._free = [first + self.page * n for n in reversed(range(count))]
        return self._free.pop()

    def give(self, pages: list[int]) -> None:
        """Take pages back."""
        self._free += pages


def pools(arch: Architecture, dtype: torch.dtype, device: torch.device) -> list[Pool]:
    """A pool for the layers that see everything, one for those with a window; by `kinds`."""
    out = []
    for window in sorted({arch.window(layer) or 0 for layer in range(arch.num_layers)}):
        slots, used = [], 0
        for layer in range(arch.num_layers):
            here = (arch.window(layer) or 0) == window
            slots.append(used if here else -1)
            used += here
        out.append(Pool(slots, window or None, arch.num_kv_heads, arch.head_dim, dtype, device))
    return out


class Held:
    """A sequence's pages in one pool, in order; those before `first` were given back."""

    _serials = itertools.count()

    def __init__(self, pool: Pool) -> None:
        self.pool, self.first = pool, 0
        self.pages: list[int] = []
        self.version = next(self._serials)  # another one for every state of any sequence
        weakref.finalize(self, pool.give, self.pages)

    def restart(self) -> None:
        """Give all pages back."""
        self.pool.give(self.pages)
        self.pages.clear()
        self.first, self.version = 0, next(self._serials)

    def reach(self, total: int, past: int) -> None:
        """Have pages for `total` positions, of which `past` are stored."""
        if self.pool.window is not None:
            seen = max(0, past - self.pool.window + 1 - KEPT) // PAGE
            if seen > self.first:
                count = min(seen - self.first, len(self.pages))
                self.pool.give(self.pages[:count])
                del self.pages[:count]
                self.first += count
                self.version = next(self._serials)
        while (self.first + len(self.pages)) * PAGE < total:
            self.pages.append(self.pool.take())
            self.version = next(self._serials)

    def holds(self, length: int) -> bool:
        """Whether all that position `length` sees is still there."""
        window = self.pool.window
        first = 0 if window is None else max(0, length - window + 1)
        return first // PAGE >= self.first
