"""The engine on the CPU kernels: weights as they are stored, a pass in one call.

Purpose: `Engine` over `apr.native`. Promise: no second copy of a weight is kept (what is packed
gives its pages back), and what the kernels do not compute is refused, never done elsewhere quietly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from apr import receipt, rope
from apr.architecture import FULL, SLIDING
from apr.device import require_memory
from apr.dtypes import DTYPES
from apr.engine.engine import Engine
from apr.engine.plan import Plan, stored_types
from apr.engine.session import Logits, Session
from apr.errors import FeatureUnavailable
from apr.formats.opened import OpenedModel
from apr.mapped import release
from apr.model.rotary import Rotary
from apr.native.library import KernelSet, best_set, unavailable
from apr.native.model import Arena, Cache, NativeModel, address, cache_bytes, packed_bytes
from apr.native.program import Part, Program, lacking

_MOST = 256  # tokens of a pass; longer prompts go in pieces
_BLOCK = 16  # positions
_PIECE = 8 << 20  # bytes of the file packed at a time


class NativeSession(Session):
    """One sequence in the kernels' own cache."""

    def __init__(self, engine: NativeEngine) -> None:
        self._engine = self._native = engine
        self._ids: list[int] = []
        self._cache_native = engine.new_cache()
        self._length = 0

    @property
    def length(self) -> int:
        """Tokens processed so far."""
        return self._length

    def prefill(self, ids: Sequence[int]) -> Logits:
        """As `Session.prefill`."""
        logits: Logits = self.feed(ids, 1)[-1]
        return logits

    def decode(self, token_id: int) -> Logits:
        """As `Session.decode`."""
        past = self._length
        logits = self._native.step(self._cache_native, token_id, past)
        if logits is None:
            return self.prefill([token_id])
        self._length = past + 1
        self._ids.append(token_id)
        return logits

    def feed(self, ids: Sequence[int], last: int) -> Logits:
        """Process further tokens; logits after the `last` of them, `[last, vocab]`."""
        engine, pending = self._native, list(ids)
        engine.check(pending, self._length)
        if engine.forgets(self._length, len(pending)):
            pending = self._ids + pending
            self._length = 0
        logits = engine.compute(pending, self._cache_native, self._length, last)
        self._length += len(pending)
        self._ids += ids
        return logits

    def verify(self, ids: Sequence[int]) -> Logits:
        """As `Session.verify`: all of them, in one pass, each with a step's own arithmetic."""
        engine, start = self._native, self._length
        engine.check(ids, start)
        if engine.forgets(start, len(ids)):
            return np.stack([self.decode(id) for id in ids])
        rows = range(start, start + len(ids))
        logits = engine.compute_rows(ids, [self._cache_native] * len(ids), rows)
        self.advance(ids)
        return logits

    def advance(self, ids: Sequence[int]) -> None:
        """These were processed with other sequences' tokens."""
        self._length += len(ids)
        self._ids += ids

    @property
    def cache(self) -> Cache:
        """Its keys and values."""
        return self._cache_native

    def rewind(self, length: int) -> bool:
        """As `Session.rewind`; a layer with a window may have lost what it would have to see."""
        engine = self._native
        if length > self._length or (length and engine.changing_angles()):
            return False
        if length and not engine.holds(length, self._length):
            return False
        self._length = length
        del self._ids[length:]
        return True


class NativeEngine(Engine):
    """A model on the CPU kernels. Made by `apr.engine.load`."""

    def __init__(self, model: OpenedModel, kernels: KernelSet, threads: int, cache: str) -> None:
        self.architecture = model.architecture
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self._model, self._cache_kind = model, cache
        arch = self.architecture
        self._rotary = Rotary(arch) if arch.position_embedding == "rotary" else None
        self._tables: tuple[npt.NDArray[np.float32] | None, ...] = (None,) * 4
        self._known = 0  # positions that the tables cover
        self._ready = 0  # those at which a step needs nothing but them
        # The tables, where they lie, and bytes of a row: one value, so that a step that runs while
        # another thread lets them grow keeps those that it began with.
        self._placed: tuple[Any, tuple[int, ...], int] = (None, (0,) * 4, 0)
        started = time.perf_counter()
        self._native = NativeModel(kernels, threads)
        packed = self._load(model)
        self.plan = Plan(
            engine="apr native",
            kernels=kernels.name,
            device="cpu",
            hardware=receipt.cpu_name(),
            stored=stored_types(model.tensors.values()),
            weights="as stored",
            activations=_activations(model, kernels),
            cache=cache,
            threads=threads,
            weight_bytes=packed + self._mapped + self._native.vector_bytes,
            mapped_bytes=self._mapped,
            reason=f"packed {packed / 1e6:.0f} MB in {time.perf_counter() - started:.2f} s"
            if packed
            else "",
        )
        self._layers = self._cache_layers()

    def _load(self, model: OpenedModel) -> int:
        """Hand over weights and program; bytes of the packed weights."""
        sizes = {
            name: packed_bytes(t.dtype, *t.shape) or 0
            for name, t in model.tensors.items()
            if len(t.shape) == 2
        }
        # A fused matrix is cut into parts, each filled up to 16 rows of its own.
        slack = {
            name: 64 * size // max(1, model.tensors[name].shape[0]) for name, size in sizes.items()
        }
        arena = Arena(sum(size + slack[name] + 192 for name, size in sizes.items() if size))
        native = self._native
        self._mapped = packed_total = decoded = 0

        def weight(part: Part) -> int:
            nonlocal packed_total, decoded
            tensor, columns = part.tensor, part.tensor.shape[1]
            if part.exact:
                values = tensor.float32().reshape(-1).view(np.uint8)
                decoded += values.nbytes
                return native.add_weight(DTYPES["F32"], part.rows, columns, values)
            row = tensor.nbytes // tensor.shape[0]
            raw = tensor.raw()
            stored = raw[part.first * row : (part.first + part.rows) * row]
            size = packed_bytes(tensor.dtype, part.rows, columns)
            if not size:
                self._mapped += stored.nbytes
                return native.add_weight(tensor.dtype, part.rows, columns, stored)
            packed = arena.take(size)
            # Piece by piece: of the file's pages only as many are held at once.
            pieces = max(1, stored.nbytes // _PIECE)
            step = -(-part.rows // pieces // 16) * 16 or part.rows
            for first in range(0, part.rows, step):
                rows = min(step, part.rows - first)
                source = stored[first * row : (first + rows) * row]
                at = first // 16 * (size // -(-part.rows // 16))
                native.pack(tensor.dtype, rows, columns, source, packed[at:])
                release(source)
            packed_total += size
            return native.add_weight(tensor.dtype, part.rows, columns, packed)

        def vector(values: npt.NDArray[np.float32]) -> int:
            # A view of the file's pages would keep the pages around it in memory as well.
            own = np.array(values, dtype=np.float32)
            release(values)
            return native.add_vector(own)

        program = Program(model.architecture, weight, vector, model.tensors)
        ops, widths = program.build()
        self._most = min(_MOST, self.architecture.max_position_embeddings)
        native.set_program(ops, widths, self._most, self.architecture.vocab_size)
        return packed_total + decoded

    def _cache_layers(self) -> npt.NDArray[np.int32]:
        arch = self.architecture
        rows = []
        for layer in range(arch.num_layers):
            window = arch.window(layer)
            seen = self.context if window is None else min(self.context, window + _MOST)
            blocks = -(-seen // _BLOCK) + 1
            if arch.is_mla:
                rows.append((1, arch.latent_size, arch.kv_lora_rank or 0, blocks, 1))
            else:
                rows.append((arch.num_kv_heads, arch.head_dim, arch.head_dim, blocks, 0))
        return np.array(rows, dtype=np.int32)

    def holds(self, length: int, reached: int) -> bool:
        """Whether every layer still holds what position `length` sees, once `reached` positions
        were stored: blocks of a layer with a window are written over in turn.
        """
        for layer, blocks in enumerate(self._layers[:, 3].tolist()):
            window = self.architecture.window(layer)
            first = 0 if window is None else max(0, length - window + 1)
            if (reached - 1) // _BLOCK - first // _BLOCK >= blocks:
                return False
        return True

    def new_cache(self) -> Cache:
        """Room for one sequence of the whole context."""
        return Cache(self._layers, self._cache_kind)

    def session(self) -> NativeSession:
        """A new, empty sequence."""
        return NativeSession(self)

    def logits(self, ids: Sequence[int], *, last: int | None = None) -> Logits:
        """As `Engine.logits`."""
        session = self.session()
        return session.feed(ids, len(ids) if last is None else min(last, len(ids)))

    def decode_batch(self, sessions: Sequence[Session], ids: Sequence[int]) -> Logits:
        """As `Engine.decode_batch`; each row, to the bit, as `Session.decode` gives it."""
        own: list[NativeSession] = []
        positions: list[int] = []
        for session, id in zip(sessions, ids, strict=True):
            assert isinstance(session, NativeSession)
            positions.append(session.length + own.count(session))
            self.check([id], positions[-1])
            own.append(session)
        if any(self.forgets(position, 1) for position in positions):
            return np.stack([s.decode(id) for s, id in zip(own, ids, strict=True)])
        logits = self.compute_rows(ids, [session.cache for session in own], positions)
        for session, id in zip(own, ids, strict=True):
            session.advance([id])
        return logits

    def speculation_refusal(self, *, greedy: bool) -> str:
        """As `Engine.speculation_refusal`; sampling is no reason: the logits are the same bits."""
        return self.changing_angles()

    def forgets(self, past: int, new: int) -> bool:
        """As `Engine.forgets`."""
        return self._rotary is not None and self._rotary.stale(past, past + new)

    @property
    def looked_up_bytes(self) -> int:
        """As `Engine.looked_up_bytes`."""
        if self.architecture.tie_word_embeddings:
            return 0
        table = self._model.tensors["model.embed_tokens.weight"]
        size = packed_bytes(table.dtype, *table.shape) or table.nbytes
        return size - size // table.shape[0]

    @property
    def cache_bytes_per_token(self) -> float:
        """As `Engine.cache_bytes_per_token`."""
        sizes = []
        for blocks in (1, 2):
            layers = self._layers.copy()
            layers[:, 3] = blocks
            sizes.append(cache_bytes(layers, self._cache_kind))
        return (sizes[1] - sizes[0]) / _BLOCK

    def cache_bytes(self, positions: int) -> int:
        """As `Engine.cache_bytes`; a layer with a window holds no more than that."""
        layers = self._layers.copy()
        layers[:, 3] = np.minimum(layers[:, 3], -(-positions // _BLOCK) + 1)
        return cache_bytes(layers, self._cache_kind)

    def synchronize(self) -> None:
        """Nothing to wait for: a pass is over when it returns."""

    def check(self, ids: Sequence[int], past: int) -> None:
        """Refuse ids or lengths that the model does not take."""
        self._check(ids, past)

    def step(self, cache: Cache, token: int, past: int) -> Logits | None:
        """Logits `[vocab]` after one token at position `past`; None where that takes more than the
        tables at hand, or the token is none.
        """
        if past < self._ready and 0 <= token < self.architecture.vocab_size:
            tables, bases, stride = self._placed
            logits = self._native.step(cache, int(token), past, bases, stride)
            del tables  # needed until here
            return logits
        return None

    def compute(self, ids: Sequence[int], cache: Cache, past: int, last: int) -> Logits:
        """Logits after the `last` of `ids`, in passes of at most `_MOST` tokens."""
        numbers = np.array(ids, dtype=np.int32)
        total = len(numbers)
        by_length = (self.architecture.rope_scaling or {}).get("rope_type") in rope.BY_LENGTH
        tables = self._angles(past, total) if by_length else self._grown(past + total)
        offset = 0 if by_length else past
        out = []
        for start in range(0, total, _MOST):
            end = min(start + _MOST, total)
            wanted = max(0, end - max(start, total - last))
            angles = [None if t is None else t[offset + start : offset + end] for t in tables]
            out.append(self._native.run(cache, numbers[start:end], past + start, angles, wanted))
        return out[0] if len(out) == 1 else np.concatenate(out)

    def compute_rows(
        self, ids: Sequence[int], caches: Sequence[Cache], positions: Sequence[int]
    ) -> Logits:
        """Logits after each of `ids`, `[rows, vocab]`: row n at `positions[n]` of its cache."""
        places = np.array(positions, dtype=np.int64)
        if (self.architecture.rope_scaling or {}).get("rope_type") in rope.BY_LENGTH:
            each = [self._angles(place, 1) for place in positions]
            tables = [
                None if any(t is None for t in column) else np.concatenate(column)
                for column in zip(*each, strict=True)
            ]
        else:
            known = self._grown(int(places.max()) + 1)
            tables = [None if t is None else t[places] for t in known]
        numbers = np.array(ids, dtype=np.int32)
        out = []
        for start in range(0, len(numbers), self._most):
            part = slice(start, start + self._most)
            angles = [None if t is None else t[part] for t in tables]
            out.append(self._native.run_rows(caches[part], places[part], numbers[part], angles))
        return out[0] if len(out) == 1 else np.concatenate(out)

    def _grown(self, needed: int) -> tuple[npt.NDArray[np.float32] | None, ...]:
        """Tables from position 0 on, for at least `needed` positions."""
        if needed > self._known:
            self._known = min(self.context, max(needed, 2 * self._known, 512))
            self._tables = self._angles(0, self._known)
            bases = tuple(0 if t is None else address(t) for t in self._tables)
            stride = 0 if self._tables[0] is None else self._tables[0].strides[0]
            self._placed = (self._tables, bases, stride)
            if self._rotary is None or not self._rotary.forgets:
                self._ready = self._known  # last: a step that sees it sees the tables
        return self._tables

    def _angles(self, past: int, count: int) -> tuple[npt.NDArray[np.float32] | None, ...]:
        """Cosines and sines of the full and of the sliding layers, `[count, half]` each."""
        if self._rotary is None:
            return (None,) * 4
        positions = torch.arange(past, past + count)
        tables = self._rotary.tables(positions, torch.float32)
        if not tables:
            return (None,) * 4
        half = self.architecture.rotary_dim // 2
        out = [table[:, :half].contiguous().numpy() for kind in (FULL, SLIDING)
               for table in tables[kind]]  # fmt: skip
        return tuple(out)


def _activations(model: OpenedModel, kernels: KernelSet) -> str:
    """What products are computed in, one token at a time and many."""
    blocks = any(t.dtype.is_block for t in model.tensors.values())
    pairs = kernels.name in ("amx", "avx512")
    if blocks:
        return "int8, prompts bfloat16" if pairs else "int8"
    half = any(t.dtype.name == "BF16" for t in model.tensors.values())
    return "float32, prompts bfloat16" if half and pairs else "float32"


def missing() -> str:
    """Why the CPU kernels cannot be used here; "" if they can."""
    return unavailable()


def load_native(
    model: OpenedModel, name: str | None, threads: int | None, cache: str | None
) -> NativeEngine:
    """The engine on a kernel set: the one named, else the best of this processor.

    Raises:
        FeatureUnavailable: the kernels were not built, the set cannot run here, or there is no
            kernel for the model; the message says which.
        InferenceError: the memory does not suffice.
    """
    chosen = best_set(name)
    lack = lacking(model.architecture, model.tensors)
    if lack:
        raise FeatureUnavailable(
            "native kernels", lack, "ask for PyTorch's by name: --kernels torch"
        )
    main = next(iter(stored_types(model.tensors.values())))
    kind = cache or ("float32" if main == "F32" else "float16")
    require_memory(
        model.path, "its weights need", weight_bytes(model), "quantize the model, or free memory"
    )
    return NativeEngine(model, chosen, threads or torch.get_num_threads(), kind)


def weight_bytes(model: OpenedModel) -> int:
    """Bytes of the weights in memory, packed or as they are mapped."""
    return sum(
        (packed_bytes(t.dtype, *t.shape) if len(t.shape) == 2 else 0) or t.nbytes
        for t in model.tensors.values()
    )
