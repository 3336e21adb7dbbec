"""The engine on the CUDA kernels: weights as they are stored, a decode step in one graph.

Purpose: `Engine` over `apr.cuda`. Promise: no second copy of a weight, no wait for the device
within a step, one copy of the logits after it; what the kernels do not compute is refused, never
done elsewhere quietly. Sequences share the pages of one cache, so that a batch is one step.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from apr import cuda, receipt, rope
from apr.architecture import FULL, SLIDING
from apr.cuda import support
from apr.cuda.graphs import Graphs
from apr.cuda.pages import KEPT, PAGE, Held, pools
from apr.device import require_memory
from apr.engine.engine import Engine
from apr.engine.plan import Plan, stored_types
from apr.engine.session import Logits, Session
from apr.errors import AprError, FeatureUnavailable, InferenceError
from apr.formats.opened import OpenedModel
from apr.model.rotary import Rotary

if TYPE_CHECKING:
    from apr.cuda.model import Angles
    from apr.cuda.plan import Fill
    from apr.engine.cuda_slots import Slot

_MOST = 2048  # tokens of a pass; longer prompts go in pieces
_FEW = 8  # tokens of a sequence that are a step, not a prompt
_FIRST_ANGLES = 4096
_MOST_SPLITS = 64
_OLDEST = (8, 0)  # compute capability: bfloat16 products
_CACHES = {"float32": torch.float32, "float16": torch.float16}


class CudaSession(Session):
    """One sequence: its pages of the engine's cache."""

    def __init__(self, engine: CudaEngine) -> None:
        self._engine = self._cuda = engine
        self._ids: list[int] = []
        self.held = [Held(pool) for pool in engine.pools]
        self._length = 0

    @property
    def length(self) -> int:
        """Tokens processed so far."""
        return self._length

    def prefill(self, ids: Sequence[int]) -> Logits:
        """As `Session.prefill`."""
        last: Logits = self.feed(ids, 1)[-1]
        return last

    def feed(self, ids: Sequence[int], last: int) -> Logits:
        """Process further tokens; logits after the `last` of them, `[last, vocab]`."""
        engine, pending = self._cuda, list(ids)
        engine.check(pending, self._length)
        if engine.forgets(self._length, len(pending)):
            pending = self._ids + pending
            self._length = 0
            for held in self.held:
                held.restart()
        logits = engine.compute(pending, self, last)
        self.advance(ids, len(pending))
        return logits

    def decode(self, token_id: int) -> Logits:
        """As `Session.decode`."""
        return self.prefill([token_id])

    def _all(self, ids: Sequence[int]) -> Logits:
        # In steps: a prompt's pass rounds to 16 bits.
        pieces = [ids[start : start + _FEW] for start in range(0, len(ids), _FEW)]
        return np.concatenate([self.feed(piece, len(piece)) for piece in pieces])

    def reset(self) -> None:
        """As `Session.reset`."""
        for held in self.held:
            held.restart()
        self._length, self._ids = 0, []

    def advance(self, ids: Sequence[int], count: int) -> None:
        """Note what has been computed."""
        self._length += count
        self._ids += ids

    def rewind(self, length: int) -> bool:
        """As `Session.rewind`; a layer with a window may have lost what it would have to see."""
        if length > self._length or (length and self._cuda.changing_angles()):
            return False
        if not length:
            self.reset()
            return True
        if not all(held.holds(length) for held in self.held):
            return False
        self._length = length
        del self._ids[length:]
        return True


class CudaEngine(Engine):
    """A model on the CUDA kernels. Made by `apr.engine.load`.

    On a CPU device it runs through Triton's interpreter, for tests alone. `blocks`: what block
    types are unpacked to for prompts. `fill` puts weights in their places.
    """

    def __init__(
        self, model: OpenedModel, device: torch.device, cache: str, *,
        blocks: torch.dtype = torch.bfloat16, fill: Fill | None = None,
    ) -> None:  # fmt: skip
        from apr.cuda import stored
        from apr.cuda.model import CudaModel

        self.architecture = arch = model.architecture
        self.device, self.dtype = device, torch.float32
        self._model = model
        self._rotary = Rotary(arch) if arch.position_embedding == "rotary" else None
        self._by_length = (arch.rope_scaling or {}).get("rope_type") in rope.BY_LENGTH
        self.pools = pools(arch, _CACHES[cache], device)
        self.graphs = Graphs(device)
        self._slots: dict[tuple[int, int], Slot] = {}
        self._one_pass = threading.Lock()  # buffers are shared by all sequences
        self._known = 0  # positions that the angles cover
        self._angles: Angles = (None, None)
        self.least_pages = 4  # of a split: fewer are not worth a program
        self._processors = 132
        if device.type == "cuda":
            self._processors = torch.cuda.get_device_properties(device).multi_processor_count
        started = time.perf_counter()
        with self._working():
            self._cuda = CudaModel(
                arch, model.tensors, device, self.pools, blocks=blocks, fill=fill or stored.fill
            )
        self.synchronize()
        self.plan = self._describe(model, cache, time.perf_counter() - started)

    def _describe(self, model: OpenedModel, cache: str, seconds: float) -> Plan:
        import triton

        cuda_device = self.device.type == "cuda"
        how = "" if cuda_device else ", interpreted on the CPU"
        name = {torch.float32: "float32"}.get(self._cuda.wide)
        wide = str(self._cuda.wide).removeprefix("torch.")
        return Plan(
            engine="apr cuda",
            kernels=f"cuda (triton {triton.__version__}{how})",
            device=str(self.device),
            hardware=torch.cuda.get_device_name(self.device) if cuda_device else receipt.cpu_name(),
            stored=stored_types(model.tensors.values()),
            weights="as stored",
            activations=name or f"float32, prompts {wide}",
            cache=cache,
            threads=torch.get_num_threads(),
            weight_bytes=self._cuda.weight_bytes,
            mapped_bytes=0,
            reason=f"placed {self._cuda.weight_bytes / 1e6:.0f} MB in {seconds:.2f} s, "
            f"{self._cuda.scratch_bytes / 1e6:.0f} MB to unpack into",
        )

    def session(self) -> CudaSession:
        """A new, empty sequence."""
        return CudaSession(self)

    def logits(self, ids: Sequence[int], *, last: int | None = None) -> Logits:
        """As `Engine.logits`."""
        return self.session().feed(ids, len(ids) if last is None else min(last, len(ids)))

    def decode_batch(self, sessions: Sequence[Session], ids: Sequence[int]) -> Logits:
        """As `Engine.decode_batch`: one step, one graph."""
        rows = [session for session in sessions if isinstance(session, CudaSession)]
        for session, id in zip(rows, ids, strict=True):
            self._check([id], session.length)
        if any(self.forgets(session.length, 1) for session in rows):
            return np.stack([s.decode(id) for s, id in zip(rows, ids, strict=True)])
        logits = self._step(rows, [[id] for id in ids])
        for session, id in zip(rows, ids, strict=True):
            session.advance([id], 1)
        return logits

    def speculation_refusal(self, *, greedy: bool) -> str:
        """As `Engine.speculation_refusal`: a step of several tokens sums in another order."""
        if not greedy:
            return "with sampling or penalties it needs the CPU kernels"
        return self.changing_angles()

    def cache_bytes(self, positions: int) -> int:
        """As `Engine.cache_bytes`; a layer with a window holds little more than that."""
        total = 0
        for pool in self.pools:
            most = positions if pool.window is None else pool.window + KEPT + _MOST
            pages = -(-min(positions, most) // PAGE)
            total += pages * pool.page * pool.dtype.itemsize
        return total

    def forgets(self, past: int, new: int) -> bool:
        """As `Engine.forgets`."""
        return self._rotary is not None and self._rotary.stale(past, past + new)

    @property
    def looked_up_bytes(self) -> int:
        """As `Engine.looked_up_bytes`."""
        if self.architecture.tie_word_embeddings:
            return 0
        table = self._model.tensors["model.embed_tokens.weight"]
        return table.nbytes - table.nbytes // table.shape[0]

    @property
    def cache_bytes_per_token(self) -> float:
        """As `Engine.cache_bytes_per_token`."""
        return sum(pool.page * pool.dtype.itemsize for pool in self.pools) / PAGE

    def check(self, ids: Sequence[int], past: int) -> None:
        """Refuse ids or lengths that the model does not take."""
        self._check(ids, past)

    def compute(self, ids: Sequence[int], session: CudaSession, last: int) -> Logits:
        """Logits after the `last` of `ids`: a step if they are few, else passes of a prompt."""
        if len(ids) <= _FEW:
            return self._step([session], [list(ids)])[-last:]
        with self._working():
            past, total, out = session.length, len(ids), []
            own = self._own_angles(torch.arange(past, past + total, device=self.device))
            if own is None:
                self._know(past + total)
            for start in range(0, total, _MOST):
                end = min(start + _MOST, total)
                wanted = max(0, end - max(start, total - last))
                angles = None if own is None else [table[start:end] for table in own]
                out.append(self._pass(ids[start:end], session, past + start, wanted, angles))
        return out[0] if len(out) == 1 else np.concatenate(out)

    def _pass(
        self, ids: Sequence[int], session: CudaSession, past: int, last: int,
        own: list[Tensor] | None,
    ) -> Logits:  # fmt: skip
        """One piece of a prompt."""
        from apr.cuda.launches import Places
        from apr.cuda.model import Pass

        count, device = len(ids), self.device
        for held in session.held:
            held.reach(past + count, past)
        numbers = torch.tensor(ids, dtype=torch.int32).to(device)
        positions = torch.arange(past, past + count, dtype=torch.int32, device=device)
        order = torch.arange(count, dtype=torch.int32, device=device)
        places = []
        for held in session.held:
            table = torch.tensor([[0] * held.first + held.pages], dtype=torch.int64).to(device)
            turn = positions if own is None else order
            places.append(Places(positions, turn, table, count, 1, 1))
        angles: Angles = self._angles
        if own is not None:
            angles = ((own[0], own[1]), (own[2], own[3]))
        logits = torch.empty((last, self.architecture.vocab_size), device=device)
        buffers = self._cuda.buffers(count, few=False)
        self._cuda.run(Pass(numbers, places, angles, buffers, logits, False, past == 0))
        result: Logits = logits.cpu().numpy()
        return result

    def _step(self, sessions: Sequence[CudaSession], ids: Sequence[Sequence[int]]) -> Logits:
        """Logits after each of a few tokens of each session, `[sessions * tokens, vocab]`."""
        with self._working():
            rows, count = len(sessions), len(ids[0])
            reached = max(session.length for session in sessions) + count
            if not self._by_length:
                self._know(reached)
            for session in sessions:
                for held in session.held:
                    held.reach(session.length + count, session.length)
            slot = self._slot(rows, count)
            slot.fill(ids, [s.length for s in sessions], [s.held for s in sessions])
            own = self._own_angles(slot.positions)
            if own is not None:
                slot.own_angles(own)
            splits = tuple(
                self._splits(rows * pool.kv_heads, min(reached, pool.window or reached))
                for pool in self.pools
            )
            work = slot.work(splits, self._angles)
            self.graphs.run((rows, count, splits), lambda: self._cuda.run(work))
            return slot.result()

    def _slot(self, rows: int, count: int) -> Slot:
        from apr.engine.cuda_slots import Slot

        found = self._slots.get((rows, count))
        if found is None:
            arch = self.architecture
            half = arch.rotary_dim // 2 if self._by_length else 0
            found = Slot(
                self._cuda, rows, count, len(self.pools), self.context, arch.vocab_size, half
            )
            self._slots[rows, count] = found
        return found

    def _splits(self, programs: int, seen: int) -> int:
        """Parts of the context: enough programs for the processors, each with pages enough."""
        wanted = min(2 * self._processors // programs, -(-seen // PAGE) // self.least_pages)
        splits = 1
        while splits * 2 <= min(wanted, _MOST_SPLITS):
            splits *= 2
        return splits

    def _know(self, positions: int) -> None:
        """Have cosines and sines of the first `positions`; where they move, graphs are void."""
        if positions <= self._known or self._rotary is None:
            return
        self._known = min(self.context, max(positions, 2 * self._known, _FIRST_ANGLES))
        tables = self._tables(torch.arange(self._known, device=self.device))
        if tables is not None:
            self._angles = ((tables[0], tables[1]), (tables[2], tables[3]))
        self.graphs.forget()

    def _own_angles(self, positions: Tensor) -> list[Tensor] | None:
        return self._tables(positions) if self._by_length else None

    def _tables(self, positions: Tensor) -> list[Tensor] | None:
        """Cosines and sines of the full, then of the sliding layers, `[..., half]` each."""
        assert self._rotary is not None
        found = self._rotary.tables(positions, torch.float32)
        if not found:
            return None
        half = self.architecture.rotary_dim // 2
        return [t[..., :half].contiguous() for kind in (FULL, SLIDING) for t in found[kind]]

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """One pass at a time, on the engine's device; its errors in one line."""
        place = (
            torch.cuda.device(self.device)
            if self.device.type == "cuda"
            else contextlib.nullcontext()
        )
        with self._one_pass, place, torch.inference_mode():
            try:
                yield
            except AprError:
                raise
            except (RuntimeError, MemoryError) as error:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise InferenceError(
                    "inference", f"{first} [{self.device}, cuda kernels]"
                ) from error


def why_not(model: OpenedModel, device: torch.device) -> str:
    """Why the CUDA kernels cannot run this model on this device; "" if they can."""
    if device.type == "cuda":
        found = torch.cuda.get_device_capability(device)
        if found < _OLDEST:
            number, least = (f"{major}.{minor}" for major, minor in (found, _OLDEST))
            return f"no kernels for compute capability {number} (at least {least})"
    return cuda.unavailable() or support.lacking(model.architecture, model.tensors)


def load_cuda(model: OpenedModel, device: torch.device, cache: str | None) -> CudaEngine:
    """The engine on the CUDA kernels.

    Raises:
        FeatureUnavailable: Triton is missing, or there is no kernel for the model or the cache.
        InferenceError: the memory of the device does not suffice.
    """
    missing = why_not(model, device)
    if missing:
        raise FeatureUnavailable(
            "cuda kernels", missing, "ask for PyTorch's by name: --kernels torch"
        )
    main = next(iter(stored_types(model.tensors.values())))
    kind = cache or ("float32" if main == "F32" else "float16")
    if kind not in _CACHES:
        raise FeatureUnavailable(
            "cache", f"the cuda kernels have none of {kind}", f"write {' or '.join(_CACHES)}"
        )
    require_memory(
        model.path,
        "its weights need",
        support.weight_bytes(model.tensors),
        "quantize the model, or write --device cpu",
        device,
    )
    return CudaEngine(model, device, kind)
