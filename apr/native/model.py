"""A model in the library's hands: its weights packed, its program set, passes run.

Purpose: the one place that calls the library's C functions on models. Promise: nothing is computed
in another way than the kernel set says; memory that the library reads is kept alive here.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from apr.dtypes import DType
from apr.errors import InferenceError
from apr.native.library import KernelSet, load

Float32 = npt.NDArray[np.float32]

# struct AprOp of native/src/apr_native.h.
OP = np.dtype([("kind", "<i4"), ("sync", "<i4"), ("a", "<i4", 24), ("f", "<f4", 4)])
CACHES = {"float32": 0, "float16": 1, "int8": 2}

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64


def _library() -> ctypes.CDLL:
    library = load()
    if getattr(library, "_typed", False):
        return library
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "apr_model_new": (_POINTER, [_INT, ctypes.c_char_p]),
        "apr_model_free": (None, [_POINTER]),
        "apr_packed_bytes": (_LONG, [_INT, _LONG, _LONG]),
        "apr_pack": (None, [_POINTER, _INT, _INT, _INT, _POINTER, _POINTER]),
        "apr_add_weight": (_INT, [_POINTER, _INT, _INT, _INT, _POINTER]),
        "apr_add_vector": (_INT, [_POINTER, _POINTER]),
        "apr_set_program": (None, [_POINTER, _POINTER, _INT, _POINTER, _INT, _INT]),
        "apr_cache_new": (_POINTER, [_POINTER, _INT, _INT]),
        "apr_cache_free": (None, [_POINTER]),
        "apr_cache_bytes": (_LONG, [_POINTER, _INT, _INT]),
        "apr_run": (
            None,
            [_POINTER, _POINTER, _POINTER, _INT, _LONG, _POINTER, _POINTER, _INT],
        ),
        "apr_run_rows": (
            None,
            [_POINTER, _POINTER, _POINTER, _POINTER, _INT, _POINTER, _POINTER],
        ),
        "apr_unpack_row": (None, [_POINTER, _INT, _INT, _POINTER]),
        "apr_matmul": (None, [_POINTER, _INT, _POINTER, _INT, _POINTER]),
        "apr_read_memory": (ctypes.c_double, [_POINTER, _POINTER, _LONG]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library._typed = True  # type: ignore[attr-defined]
    return library


def address(array: npt.NDArray[Any]) -> int:
    """Where an array's bytes are."""
    return int(array.__array_interface__["data"][0])


def _addresses(tables: Sequence[npt.NDArray[Any] | None]) -> ctypes.Array[ctypes.c_void_p]:
    """Pointers to arrays, NULL for those that are not there."""
    return (ctypes.c_void_p * len(tables))(
        *(None if table is None else address(table) for table in tables)
    )


def packed_bytes(dtype: DType, rows: int, columns: int) -> int | None:
    """Bytes of a weight `[rows, columns]` once packed; 0 where it is used as it is stored; None
    where there is no kernel for the type (or for rows of this length).
    """
    if dtype.ggml_id is None:
        return None
    found = int(_library().apr_packed_bytes(dtype.ggml_id, rows, columns))
    return None if found < 0 else found


class Arena:
    """Memory for packed weights, taken piece by piece, aligned to 64 bytes."""

    def __init__(self, size: int) -> None:
        self.size, self._used = size, 0
        # Private: Python's default is memory to share, which Linux gives no large pages by default.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
        self._map = mmap.mmap(-1, max(size, mmap.PAGESIZE), **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)

    def take(self, count: int) -> npt.NDArray[np.uint8]:
        """The next `count` bytes."""
        start = self._used
        self._used += -(-count // 64) * 64
        return self._bytes[start : start + count]


def cache_bytes(layers: npt.NDArray[np.int32], kind: str) -> int:
    """Bytes of a cache; `layers` as `Cache` takes them."""
    layers = np.ascontiguousarray(layers, dtype=np.int32)
    return int(_library().apr_cache_bytes(address(layers), len(layers), CACHES[kind]))


class Cache:
    """Keys and values of one sequence: memory is reserved at once, and taken as it is used.

    `layers`: kv_heads, key_width, value_width and blocks of 16 positions, for each layer.
    """

    def __init__(self, layers: npt.NDArray[np.int32], kind: str) -> None:
        library = _library()
        self._layers = np.ascontiguousarray(layers, dtype=np.int32)
        self.handle = library.apr_cache_new(address(self._layers), len(self._layers), CACHES[kind])
        if not self.handle:
            size = cache_bytes(self._layers, kind)
            raise InferenceError(
                "cache", f"{size / 1e9:.1f} GB cannot be reserved", "use a shorter context"
            )
        weakref.finalize(self, library.apr_cache_free, self.handle)


class NativeModel:
    """Weights, vectors and a program, on the threads and the kernel set that were asked for."""

    def __init__(self, kernels: KernelSet, threads: int) -> None:
        self._library = _library()
        self.kernels, self.threads = kernels, threads
        self.handle = self._library.apr_model_new(threads, kernels.name.encode())
        if not self.handle:
            raise InferenceError("kernels", f"the set {kernels.name} cannot run here")
        self._one_pass = threading.Lock()  # buffers are shared by all sequences
        self._process = os.getpid()
        self._run = self._library.apr_run
        self._step_token, self._step_angles = ctypes.c_int32(), (ctypes.c_void_p * 4)()
        self._step_at = ctypes.addressof(self._step_token)
        self._alive: list[npt.NDArray[Any]] = []
        self.columns: list[tuple[int, int]] = []
        self.vocab = self.vector_bytes = 0
        weakref.finalize(self, self._library.apr_model_free, self.handle)

    def pack(
        self, dtype: DType, rows: int, columns: int, source: npt.NDArray[np.uint8],
        target: npt.NDArray[np.uint8],
    ) -> None:  # fmt: skip
        """Pack the stored bytes of a weight into `target`, on all threads."""
        assert dtype.ggml_id is not None
        self._library.apr_pack(
            self.handle, dtype.ggml_id, rows, columns, address(source), address(target)
        )

    def add_weight(self, dtype: DType, rows: int, columns: int, data: npt.NDArray[np.uint8]) -> int:
        """A weight as the kernels read it (packed, or plain rows); its number."""
        assert dtype.ggml_id is not None
        self._alive.append(data)
        self.columns.append((rows, columns))
        return int(
            self._library.apr_add_weight(self.handle, dtype.ggml_id, rows, columns, address(data))
        )

    def add_vector(self, values: npt.NDArray[Any]) -> int:
        """A bias, a norm's weights, sinks; its number."""
        data = np.ascontiguousarray(values, dtype=np.float32)
        self._alive.append(data)
        self.vector_bytes += data.nbytes
        return int(self._library.apr_add_vector(self.handle, address(data)))

    def set_program(
        self, ops: npt.NDArray[Any], widths: Sequence[int], most: int, vocab: int
    ) -> None:
        """The operations of a pass, over buffers of `widths` float32 per token."""
        sizes = np.array(widths, dtype=np.int32)
        self.vocab = vocab
        self._library.apr_set_program(
            self.handle, address(ops), len(ops), address(sizes), len(sizes), most
        )

    def run(
        self,
        cache: Cache,
        ids: npt.NDArray[np.int32],
        past: int,
        angles: Sequence[Float32 | None],
        last: int,
    ) -> Float32:
        """Logits after the `last` of `ids`, `[last, vocab]`; the cache holds `past` positions."""
        logits = np.empty((last, self.vocab), dtype=np.float32)
        with self._turn():
            self._library.apr_run(
                self.handle, cache.handle, address(ids), len(ids), past, _addresses(angles),
                address(logits), last,
            )  # fmt: skip
        return logits

    def step(
        self, cache: Cache, token: int, past: int, bases: Sequence[int], stride: int
    ) -> Float32:
        """Logits `[vocab]` after one token, as `run`; the tables of angles begin at `bases` and
        have rows of `stride` bytes. As little Python as can be: when the weights have passed
        through, its code is in none of the processor's caches any more.
        """
        logits = np.empty(self.vocab, dtype=np.float32)
        at, angles = past * stride, self._step_angles
        with self._turn():
            self._step_token.value = token
            for number, base in enumerate(bases):
                if base:
                    angles[number] = base + at
            self._run(self.handle, cache.handle, self._step_at, 1, past, angles, address(logits), 1)
        return logits

    def run_rows(
        self,
        caches: Sequence[Cache],
        positions: npt.NDArray[np.int64],
        ids: npt.NDArray[np.int32],
        angles: Sequence[Float32 | None],
    ) -> Float32:
        """Logits after each of `ids`, `[rows, vocab]`, in one pass: row n is at `positions[n]` of
        the sequence in `caches[n]`, and gets, to the bit, what a pass of its own would give.
        """
        logits = np.empty((len(ids), self.vocab), dtype=np.float32)
        handles = (ctypes.c_void_p * len(caches))(*(cache.handle for cache in caches))
        with self._turn():
            self._library.apr_run_rows(
                self.handle, handles, address(positions), address(ids), len(ids),
                _addresses(angles), address(logits),
            )  # fmt: skip
        return logits

    def _turn(self) -> threading.Lock:
        """One pass at a time. A forked child has a lock of its own: that of its parent may have
        been held by a thread that it does not have.
        """
        if os.getpid() != self._process:
            self._one_pass, self._process = threading.Lock(), os.getpid()
        return self._one_pass

    def unpack_row(self, weight: int, row: int) -> Float32:
        """One row of a weight as the kernels see it, `[columns]`."""
        out = np.empty(self.columns[weight][1], dtype=np.float32)
        self._library.apr_unpack_row(self.handle, weight, row, address(out))
        return out

    def matmul(self, weight: int, x: Float32) -> Float32:
        """`x` `[tokens, columns]` times a weight, `[tokens, rows]`."""
        x = np.ascontiguousarray(x, dtype=np.float32)
        out = np.empty((x.shape[0], self.columns[weight][0]), dtype=np.float32)
        self._library.apr_matmul(self.handle, weight, address(x), x.shape[0], address(out))
        return out

    def read_seconds(self, data: npt.NDArray[np.uint8]) -> float:
        """Seconds that all threads need to read these bytes once."""
        return float(self._library.apr_read_memory(self.handle, address(data), data.nbytes))
