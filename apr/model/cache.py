"""The KV cache: keys and values of the positions already computed, grown in place.

Buffers double when they are full, up to the model's context, so that a short generation in a long
context never allocates the whole of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from apr.architecture import Architecture
from apr.errors import InferenceError


class KVCache:
    """Keys and values of every layer, `[batch, num_kv_heads, length, head_dim]` each; for MLA one
    latent with its rotary key, `[batch, 1, length, latent_size]`, and no values.
    """

    def __init__(
        self,
        architecture: Architecture,
        batch: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        capacity: int = 256,
    ) -> None:
        self.limit = architecture.max_position_embeddings
        self.length = 0
        capacity = min(capacity, self.limit)
        shape = (batch, architecture.num_kv_heads, capacity, architecture.head_dim)
        if architecture.is_mla:
            shape = (batch, 1, capacity, architecture.latent_size)
        self.keys = [
            torch.empty(shape, device=device, dtype=dtype) for _ in range(architecture.num_layers)
        ]
        self.values = [] if architecture.is_mla else [torch.empty_like(k) for k in self.keys]

    @property
    def capacity(self) -> int:
        """Positions that fit before the buffers grow."""
        return self.keys[0].shape[2]

    def reserve(self, count: int) -> None:
        """Make room for `count` further positions.

        Raises:
            InferenceError: the model's context would be exceeded.
        """
        needed = self.length + count
        if needed > self.limit:
            raise InferenceError(
                "context",
                f"{needed} positions do not fit into the model's context of {self.limit}",
                "use a shorter prompt or generate fewer tokens",
            )
        if needed <= self.capacity:
            return
        capacity = min(self.limit, max(needed, 2 * self.capacity))
        for buffers in (self.keys, self.values):
            for layer, old in enumerate(buffers):
                new = old.new_empty((*old.shape[:2], capacity, old.shape[3]))
                new[:, :, : self.length] = old[:, :, : self.length]
                buffers[layer] = new

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store `k`, `v` `[batch, num_kv_heads, new, head_dim]` after the `length` stored ones.

        Returns all keys and values so far. `length` itself moves on in `advance`, once a step,
        after the last layer.
        """
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def append_latent(self, layer: int, latent: Tensor) -> Tensor:
        """Store `latent` `[batch, 1, new, latent_size]`, as `append` does; all latents so far."""
        end = self.length + latent.shape[2]
        self.keys[layer][:, :, self.length : end] = latent
        return self.keys[layer][:, :, :end]

    def advance(self, count: int) -> None:
        """Count `count` further positions as stored."""
        self.length += count


class CacheRows:
    """The caches of several sequences that go on by one token each, in one step.

    Projections see all rows at once; attention sees each row with its own keys, so that lengths
    may differ and no row sees another.
    """

    def __init__(self, rows: Sequence[KVCache]) -> None:
        self.rows = list(rows)

    def reserve(self, count: int) -> None:
        """Make room for `count` further positions of each; errors as `KVCache.reserve`."""
        for row in self.rows:
            row.reserve(count)

    def advance(self, count: int) -> None:
        """Count `count` further positions of each as stored."""
        for row in self.rows:
            row.advance(count)


def positions(cache: KVCache | CacheRows | None, new: int, device: torch.device) -> Tensor:
    """The positions of `new` further tokens, `[new]`; of rows, `[rows, new]`."""
    if isinstance(cache, CacheRows):
        past = torch.tensor([[row.length] for row in cache.rows], device=device)
        return past + torch.arange(new, device=device)
    start = 0 if cache is None else cache.length
    return torch.arange(start, start + new, device=device)
