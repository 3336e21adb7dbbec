"""From a program's operations to what the GPU does: fewer and larger steps over device memory.

Purpose: reuse `apr.native.program`'s description of every family. Promise: the same operations in
the same order; products that read the same activation become one, a norm joins the product behind
it, and every weight gets its place on the device once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from apr.architecture import Architecture
from apr.cuda import stored
from apr.cuda.launches import Heads, Norm
from apr.cuda.pages import Pool
from apr.cuda.stored import Planes
from apr.native import program as kinds
from apr.native.program import LOGITS, Part, Program
from apr.tensors import Tensor as Stored

Fill = Callable[[Planes, Stored, int], None]


@dataclass(frozen=True)
class Place:
    """Columns of a buffer: several that are written together lie in one."""

    buffer: int
    column: int
    width: int


@dataclass(frozen=True)
class Embed:
    """The stream's beginning."""

    table: Planes
    positions: Planes | None
    factor: float


@dataclass(frozen=True)
class Source:
    """What a product reads: a buffer, through a norm, and only the last tokens for the head."""

    place: Place
    norm: Norm | None
    last: bool


@dataclass(frozen=True)
class Product:
    """A product into a buffer, or (None) into the logits."""

    source: Source
    weight: Planes
    target: Place | None
    bias: Tensor | None
    add: bool


@dataclass(frozen=True)
class Gated:
    """`act(gate x) * (up x)`."""

    source: Source
    gate: Planes
    up: Planes
    both: Planes | None  # gate and up in one, where they are of one type
    target: Place
    side: Place
    biases: tuple[Tensor | None, Tensor | None]
    act: int


@dataclass(frozen=True)
class Normalise:
    """A norm into a buffer."""

    source: Place
    norm: Norm
    target: Place
    add: bool


@dataclass(frozen=True)
class Attend:
    """Rotation, cache, attention of a layer. `angles`: 0 none, 1 full, 2 sliding."""

    q: Place
    k: Place
    v: Place
    out: Place
    heads: Heads
    angles: int
    pool: int


@dataclass(frozen=True)
class Act:
    """A function of every element."""

    place: Place
    act: int


@dataclass(frozen=True)
class Softcap:
    """`cap * tanh(logits / cap)`."""

    cap: float


Step = Embed | Product | Gated | Normalise | Attend | Act | Softcap


@dataclass
class Planner:
    """Makes the steps of a model and places its weights."""

    architecture: Architecture
    tensors: Mapping[str, Stored]
    device: torch.device
    pools: Sequence[Pool]
    fill: Fill
    weight_bytes: int = 0
    widths: list[int] = field(default_factory=list)
    _parts: list[Part] = field(default_factory=list)
    _planes: dict[int, Planes] = field(default_factory=dict)
    _joined: dict[tuple[int, ...], Planes] = field(default_factory=dict)
    _vectors: list[Tensor] = field(default_factory=list)
    _places: dict[int, Place] = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)

    def build(self) -> list[Step]:
        """The steps of a pass; `widths` are then those of the buffers, elements a token."""
        program = Program(self.architecture, self._weight, self._vector, self.tensors)
        program.build()
        self._numbers = {number: width for (_, width), number in program.buffers.items()}
        ops = [(kind, a, f) for kind, _, a, f in program.ops]
        self._lay_out(ops)
        steps: list[Step] = []
        source, at = Source(Place(0, 0, 0), None, False), 0
        while at < len(ops):
            kind, a, f = ops[at]
            taken = 1
            if kind == kinds.EMBED:
                positions = None if a[2] < 0 else self._plane(a[2])
                steps.append(Embed(self._plane(a[1]), positions, f[0] or 1.0))
            elif kind == kinds.PREPARE:
                source = Source(self._places[a[0]], self._norm(a[1], a[2], a[4], f[0]), bool(a[8]))
            elif kind == kinds.MATMUL:
                taken = self._together(ops, at)
                steps.append(self._product(source, [a for _, a, _ in ops[at : at + taken]]))
            elif kind == kinds.GATED:
                steps.append(self._gated(source, a))
            elif kind == kinds.NORM:
                norm = self._norm(a[1], a[2], a[4], f[0])
                assert norm is not None and a[7] == 1
                steps.append(Normalise(self._places[a[0]], norm, self._places[a[5]], bool(a[6])))
            elif kind == kinds.STORE:
                taken = 2
                steps.append(self._attend(a, f, *ops[at + 1][1:]))
            elif kind == kinds.ACT:
                assert a[0] == a[1]
                steps.append(Act(self._places[a[0]], a[2]))
            elif kind == kinds.SOFTCAP:
                steps.append(Softcap(f[0]))
            else:
                raise AssertionError(f"operation {kind} should have been refused")
            at += taken
        return steps

    def _weight(self, part: Part) -> int:
        self._parts.append(part)
        return len(self._parts) - 1

    def _vector(self, values: npt.NDArray[Any]) -> int:
        data = torch.from_numpy(np.array(values, dtype=np.float32)).to(self.device)
        self._vectors.append(data)
        return len(self._vectors) - 1

    def _lay_out(self, ops: list[tuple[int, list[int], list[float]]]) -> None:
        """Buffers that neighbouring products fill lie side by side in one."""
        at = 0
        while at < len(ops):
            end = at
            while end < len(ops) and self._joins(ops[end]):
                end += 1
            targets = [ops[i][1][1] for i in range(at, end)]
            if len(targets) > 1 and not any(t in self._places for t in targets):
                width = 0
                for target in targets:
                    size = self._numbers[target]
                    self._places[target] = Place(len(self.widths), width, size)
                    width += size
                self.widths.append(width)
            at = max(end, at + 1)
        for number, width in self._numbers.items():
            if number not in self._places:
                self._places[number] = Place(len(self.widths), 0, width)
                self.widths.append(width)

    def _joins(self, op: tuple[int, list[int], list[float]]) -> bool:
        """Whether it is a product that fills a buffer whole and anew."""
        kind, a, _ = op
        if kind != kinds.MATMUL or a[1] == LOGITS or a[2] or a[4]:
            return False
        return self._parts[a[0]].rows == self._numbers[a[1]]

    def _together(self, ops: list[tuple[int, list[int], list[float]]], at: int) -> int:
        """How many products from here on are one: of one type, into columns side by side."""
        if not self._joins(ops[at]):
            return 1
        count = 1
        _, first, _ = ops[at]
        place = self._places[first[1]]
        while at + count < len(ops) and self._joins(ops[at + count]):
            _, a, _ = ops[at + count]
            following = self._places[a[1]]
            beside = place.buffer == following.buffer and place.column + place.width
            same = self._alike(first[0], a[0]) and (a[3] < 0) == (first[3] < 0)
            if not same or beside is False or beside != following.column:
                break
            place, count = following, count + 1
        return count

    def _alike(self, one: int, other: int) -> bool:
        first, second = self._parts[one].tensor, self._parts[other].tensor
        return first.dtype == second.dtype and first.shape[1] == second.shape[1]

    def _plane(self, *numbers: int) -> Planes:
        """Weights on the device, below each other in one."""
        key = tuple(numbers)
        if key in self._joined:
            return self._joined[key]
        if len(key) == 1 and key[0] in self._planes:
            return self._planes[key[0]]
        parts = [self._parts[number] for number in numbers]
        dtype, columns = parts[0].tensor.dtype, parts[0].tensor.shape[1]
        total = sum(part.rows for part in parts)
        whole, first = stored.empty(dtype, total, columns, self.device), 0
        for number, part in zip(numbers, parts, strict=True):
            place = whole.cut(first, part.rows)
            self.fill(place, part.tensor, part.first)
            self._planes[number] = place
            first += part.rows
        self._joined[key] = whole
        self.weight_bytes += whole.nbytes
        return whole

    def _bias(self, numbers: list[int]) -> Tensor | None:
        if numbers[0] < 0:
            return None
        return torch.cat([self._vectors[number] for number in numbers])

    def _norm(self, gain: int, shift: int, kind: int, eps: float) -> Norm | None:
        if kind == 0:
            return None
        found = self._vectors[shift] if shift >= 0 else None
        return Norm(self._vectors[gain], found, eps, kind == 2)

    def _product(self, source: Source, fields: list[list[int]]) -> Product:
        weight = self._plane(*[a[0] for a in fields])
        target = None
        if fields[0][1] != LOGITS:
            places = [self._places[a[1]] for a in fields]
            target = Place(places[0].buffer, places[0].column, sum(p.width for p in places))
        return Product(
            source, weight, target, self._bias([a[3] for a in fields]), bool(fields[0][4])
        )

    def _gated(self, source: Source, a: list[int]) -> Gated:
        both = self._plane(a[0], a[1]) if self._alike(a[0], a[1]) else None
        biases = tuple(None if n < 0 else self._vectors[n] for n in (a[4], a[5]))
        return Gated(
            source, self._plane(a[0]), self._plane(a[1]), both, self._places[a[2]],
            self._places[a[6]], (biases[0], biases[1]), a[3],
        )  # fmt: skip

    def _attend(self, a: list[int], f: list[float], b: list[int], g: list[float]) -> Attend:
        layer = a[3]
        number = next(n for n, pool in enumerate(self.pools) if pool.slots[layer] >= 0)
        norms = [None if n < 0 else self._vectors[n] for n in (a[4], a[5])]
        heads = Heads(
            heads=a[8], layer=layer, pool=self.pools[number], half=a[10], pairs=bool(a[7]),
            q_norm=norms[0], k_norm=norms[1], eps=f[0], scale=g[0], cap=g[1],
            sinks=None if b[4] < 0 else self._vectors[b[4]],
        )  # fmt: skip
        q, k, v = (self._places[n] for n in a[:3])
        return Attend(q, k, v, self._places[b[1]], heads, a[6], number)
