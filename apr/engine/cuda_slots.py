"""Device memory that a step's graph reads and writes, filled anew before each replay.

Purpose: tokens, positions, page tables, angles, buffers and logits of one shape of a step. Promise:
they stay where they are as long as the graph; what comes from the host is copied without waiting,
and the logits are the one thing that comes back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from apr.cuda.launches import FEW, Places
from apr.cuda.model import Angles, CudaModel, Pass
from apr.cuda.pages import PAGE, Held

# Beyond, the products of a step are cuBLAS': weights would be read too often by the kernels.
MOST_FEW = 4 * FEW


class Slot:
    """`rows` sequences, `count` tokens each."""

    def __init__(
        self, model: CudaModel, rows: int, count: int, pools: int, context: int, vocab: int,
        half: int,
    ) -> None:  # fmt: skip
        device, tokens = model.device, rows * count
        self.rows, self.count = rows, count
        self.few = tokens <= MOST_FEW
        self._pinned = device.type == "cuda"
        self._host = self._room((2, tokens), torch.int32)
        self._device = torch.zeros((2, tokens), dtype=torch.int32, device=device)
        shape = (pools, rows, -(-context // PAGE))
        self._host_tables = self._room(shape, torch.int64)
        self._tables = torch.zeros(shape, dtype=torch.int64, device=device)
        self._versions: tuple[int, ...] = ()
        self._order = torch.arange(tokens, dtype=torch.int32, device=device)
        self._own = torch.zeros((4, tokens, half), device=device) if half else None
        self.buffers = model.buffers(tokens, few=self.few)
        self.logits = torch.zeros((tokens, vocab), dtype=torch.float32, device=device)
        self._host_logits = self._room((tokens, vocab), torch.float32)

    def _room(self, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=kind, pin_memory=self._pinned)

    def fill(
        self, ids: Sequence[Sequence[int]], past: Sequence[int], held: Sequence[Sequence[Held]]
    ) -> None:
        """Copy a step's tokens, positions and (where they have changed) pages to the device."""
        self._host[0].copy_(torch.tensor(ids, dtype=torch.int32).view(-1))
        starts = torch.tensor(past, dtype=torch.int32)[:, None]
        self._host[1].copy_((starts + torch.arange(self.count, dtype=torch.int32)).view(-1))
        self._device.copy_(self._host, non_blocking=True)
        versions = tuple(one.version for row in held for one in row)
        if versions == self._versions:
            return
        self._versions = versions
        for row, ones in enumerate(held):
            for pool, one in enumerate(ones):
                end = one.first + len(one.pages)
                self._host_tables[pool, row, one.first : end] = torch.tensor(one.pages)
        self._tables.copy_(self._host_tables, non_blocking=True)

    @property
    def positions(self) -> Tensor:
        """Positions of the tokens, `[rows, count]`."""
        return self._device[1].view(self.rows, self.count)

    def own_angles(self, tables: Sequence[Tensor]) -> None:
        """Cosines and sines of just these tokens, where they follow the sequence's length."""
        assert self._own is not None
        for number, table in enumerate(tables):
            self._own[number].copy_(table.reshape(self._own[number].shape))

    def work(self, splits: Sequence[int], angles: Angles, *, fresh: bool = False) -> Pass:
        """The pass over this memory."""
        own = self._own
        if own is not None:
            angles = ((own[0], own[1]), (own[2], own[3]))
        turn = self._device[1] if own is None else self._order
        places = [
            Places(self._device[1], turn, self._tables[pool], self.count, self.rows, split)
            for pool, split in enumerate(splits)
        ]
        return Pass(self._device[0], places, angles, self.buffers, self.logits, self.few, fresh)

    def result(self) -> npt.NDArray[np.float32]:
        """The logits on the host, `[tokens, vocab]`: the one wait of a step."""
        self._host_logits.copy_(self.logits, non_blocking=True)
        if self._pinned:
            torch.cuda.current_stream(self.logits.device).synchronize()
        return np.array(self._host_logits.numpy())
