"""A model on the device: its weights placed, its steps run over a pass' buffers.

Purpose: walk through the plan's steps: a few tokens by matrix-vector kernels, which graphs record,
many by cuBLAS over the stored matrices. Promise: no step waits for the host, and none allocates
anything that outlives it; what is read is device memory that stays where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from apr.architecture import Architecture
from apr.cuda import launches, plan, stored
from apr.cuda.launches import Norm, Places
from apr.cuda.pages import Pool
from apr.cuda.plan import (
    Act,
    Attend,
    Embed,
    Fill,
    Gated,
    Normalise,
    Place,
    Planner,
    Product,
    Softcap,
)
from apr.cuda.stored import Planes
from apr.tensors import Tensor as Stored

_SCRATCH = 1 << 26  # elements that a block type is unpacked to at once, for cuBLAS

Angles = tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]


@dataclass
class Pass:
    """One walk through the steps: tokens of one or more sequences, and all that they read.

    `places`: for each pool. `angles`: of full and of sliding layers. `few`: by matrix-vector
    kernels. `fresh`: one sequence from its beginning, so that attention needs no cache.
    `buffers`: `[tokens, width]`; `logits`: `[last, vocab]` float32.
    """

    ids: Tensor
    places: Sequence[Places]
    angles: Angles
    buffers: Sequence[Tensor]
    logits: Tensor
    few: bool
    fresh: bool

    def at(self, place: Place) -> Tensor:
        """The columns of a buffer, `[tokens, width]`."""
        buffer = self.buffers[place.buffer]
        return buffer[:, place.column : place.column + place.width]


class CudaModel:
    """Weights and steps. `blocks`: what block types are unpacked to for prompts."""

    def __init__(
        self, architecture: Architecture, tensors: Mapping[str, Stored], device: torch.device,
        pools: Sequence[Pool], *, blocks: torch.dtype = torch.bfloat16, fill: Fill = stored.fill,
    ) -> None:  # fmt: skip
        self.device, self.blocks = device, blocks
        planner = Planner(architecture, tensors, device, pools, fill)
        self.steps = planner.build()
        self.widths, self.weight_bytes = planner.widths, planner.weight_bytes
        # The stream stays float32 in every pass; what else a prompt's buffers hold follows the
        # weights that most products read.
        kinds = [self._computed(s.weight) for s in self.steps if isinstance(s, Product)]
        self.wide = max(kinds, key=kinds.count)
        sizes = [w.rows * w.columns for s in self.steps for w in _weights(s) if w.kind is not None]
        room = min(max(sizes), max(_SCRATCH, *(w.columns for w in self._all()))) if sizes else 0
        self._scratch = torch.empty(room, dtype=blocks, device=device)

    @property
    def scratch_bytes(self) -> int:
        """Bytes that block types are unpacked to."""
        return self._scratch.numel() * self._scratch.element_size()

    def _all(self) -> list[Planes]:
        return [w for step in self.steps for w in _weights(step)]

    def _computed(self, weight: Planes) -> torch.dtype:
        return self.blocks if weight.kind is not None else weight.matrix.dtype

    def buffers(self, tokens: int, *, few: bool) -> list[Tensor]:
        """Room for a pass, `[tokens, width]` each; the first is the stream."""
        return [
            torch.empty(
                (tokens, width), device=self.device,
                dtype=torch.float32 if few or number == self._stream else self.wide,
            )
            for number, width in enumerate(self.widths)
        ]  # fmt: skip

    @property
    def _stream(self) -> int:
        last = self.steps[-1] if isinstance(self.steps[-1], Product) else self.steps[-2]
        assert isinstance(last, Product)
        return last.source.place.buffer

    def run(self, p: Pass) -> None:
        """All steps; the logits are those of the last tokens, as many as `p.logits` has rows."""
        for step in self.steps:
            match step:
                case Product():
                    self._product(p, step)
                case Gated():
                    self._gated(p, step)
                case Attend():
                    self._attend(p, step)
                case Normalise():
                    launches.normalise(
                        p.at(step.source), step.norm, p.at(step.target), add=step.add
                    )
                case Act():
                    launches.gated(p.at(step.place), None, p.at(step.place), step.act)
                case Embed():
                    self._embed(p, step)
                case Softcap():
                    p.logits.div_(step.cap).tanh_().mul_(step.cap)

    def _embed(self, p: Pass, step: Embed) -> None:
        out = p.buffers[self._stream]
        launches.unpack(step.table, out, ids=p.ids, factor=step.factor)
        if step.positions is not None:
            launches.unpack(step.positions, out, ids=p.places[0].positions, add=True)

    def _read(self, p: Pass, source: plan.Source) -> Tensor:
        x = p.at(source.place)
        return x[x.shape[0] - p.logits.shape[0] :] if source.last else x

    def _product(self, p: Pass, step: Product) -> None:
        x = self._read(p, step.source)
        out = p.logits if step.target is None else p.at(step.target)
        # The head for a few tokens reads float32 in any pass: nothing is rounded before sampling.
        if p.few or (step.target is None and x.shape[0] <= launches.FEW):
            self._matvec(x, step.source.norm, step.weight, out, step.bias, step.add)
        else:
            x = self._prepared(x, step.source.norm, self._computed(step.weight))
            self._multiply(x, step.weight, out, step.bias, add=step.add)

    def _matvec(
        self, x: Tensor, norm: Norm | None, weight: Planes, out: Tensor, bias: Tensor | None,
        add: bool,
    ) -> None:  # fmt: skip
        if norm is not None and norm.layer:
            x, norm = self._prepared(x, norm, torch.float32), None
        launches.matvec(x, weight, out, norm=norm, bias=bias, add=add)

    def _gated(self, p: Pass, step: Gated) -> None:
        x, norm = self._read(p, step.source), step.source.norm
        out, side = p.at(step.target), p.at(step.side)
        gate_bias, up_bias = step.biases
        if p.few and step.both is not None:
            if norm is not None and norm.layer:
                x, norm = self._prepared(x, norm, torch.float32), None
            launches.matvec(
                x, step.gate, out, norm=norm, bias=gate_bias, up=step.up, up_bias=up_bias,
                act=step.act,
            )  # fmt: skip
            return
        if p.few:
            self._matvec(x, norm, step.gate, out, gate_bias, False)
            self._matvec(x, norm, step.up, side, up_bias, False)
        elif step.both is not None:
            both = torch.empty((x.shape[0], step.both.rows), dtype=self.wide, device=self.device)
            x = self._prepared(x, norm, self._computed(step.both))
            bias = None
            if gate_bias is not None and up_bias is not None:
                bias = torch.cat((gate_bias, up_bias))
            self._multiply(x, step.both, both, bias)
            launches.gated(both[:, : out.shape[1]], both[:, out.shape[1] :], out, step.act)
            return
        else:
            for weight, bias, target in ((step.gate, gate_bias, out), (step.up, up_bias, side)):
                prepared = self._prepared(x, norm, self._computed(weight))
                self._multiply(prepared, weight, target, bias)
        launches.gated(out, side, out, step.act)

    def _prepared(self, x: Tensor, norm: Norm | None, dtype: torch.dtype) -> Tensor:
        if norm is None:
            return x.to(dtype)
        out = torch.empty(x.shape, dtype=dtype, device=self.device)
        launches.normalise(x, norm, out)
        return out

    def _multiply(
        self, x: Tensor, weight: Planes, out: Tensor, bias: Tensor | None, *, add: bool = False
    ) -> None:
        """A product by cuBLAS; a block type is unpacked some rows at a time."""
        rows, columns = weight.rows, weight.columns
        at_once = rows if weight.kind is None else max(1, self._scratch.numel() // columns)
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            if weight.kind is None:
                matrix = weight.matrix
            else:
                matrix = self._scratch[: count * columns].view(count, columns)
                launches.unpack(weight, matrix, first=first)
            place = out[:, first : first + count]
            if add or bias is not None or place.dtype != x.dtype:
                found = functional.linear(x, matrix)
                if bias is not None:
                    found = found + bias[first : first + count]
                if add:
                    place.add_(found)
                else:
                    place.copy_(found)
            else:
                torch.mm(x, matrix.t(), out=place)

    def _attend(self, p: Pass, step: Attend) -> None:
        q, k, v, out = (p.at(place) for place in (step.q, step.k, step.v, step.out))
        places, heads = p.places[step.pool], step.heads
        angles = p.angles[step.angles - 1] if step.angles else None
        launches.store(q, k, v, heads, places, angles)
        tokens, pool = q.shape[0], heads.pool
        whole = pool.window is None or tokens <= pool.window
        if not (p.fresh and whole and not heads.cap and heads.sinks is None):
            launches.attend(q, out, heads, places)
            return
        # A prompt from its beginning sees only itself. In the cache's type, as later steps see it.
        size, kind = pool.head_dim, pool.dtype
        queries = q.to(kind).reshape(1, tokens, heads.heads, size).transpose(1, 2)
        keys, values = (
            t.to(kind).reshape(1, tokens, pool.kv_heads, size).transpose(1, 2) for t in (k, v)
        )
        found = functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=heads.scale,
            enable_gqa=heads.heads != pool.kv_heads,
        )  # fmt: skip
        out.copy_(found.transpose(1, 2).reshape(tokens, -1))


def _weights(step: plan.Step) -> list[Planes]:
    """Weights that a step multiplies with."""
    match step:
        case Product():
            return [step.weight]
        case Gated():
            return [step.gate, step.up] if step.both is None else [step.both]
    return []
