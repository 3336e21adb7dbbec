"""What both writers share: which type each tensor gets, and writing it with flat memory.

A tensor is converted piece by piece while it is written, and the pages of the source that were read
on the way are given back at once, so the resident size does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import BinaryIO

from apr.dtypes import DTYPES, DType
from apr.errors import InvalidFormat, UsageError
from apr.formats.opened import FormatName
from apr.mapped import release
from apr.tensors import Bytes, Tensor

# What --quantize may say, and the storage type that it means.
QUANTIZE: dict[str, str] = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
_RELEASE_EVERY = 32 << 20  # bytes
Progress = Callable[[int], None]  # called with the bytes written since the last call


class Sources:
    """Remembers the arrays that tensors were read from, to give their pages back."""

    def __init__(self) -> None:
        self._held: list[Bytes] = []

    def watch(self, tensor: Tensor) -> Tensor:
        """The same tensor, its loads remembered."""

        def load() -> Bytes:
            array = tensor.load()
            self._held.append(array)
            return array

        return replace(tensor, load=load)

    def release(self, *, forget: bool = False) -> None:
        """Give back the pages read so far; `forget` also the arrays (the tensor is done)."""
        for array in self._held:
            release(array)
        if forget:
            self._held.clear()


def write_tensor(
    file: BinaryIO, tensor: Tensor, sources: Sources, progress: Progress | None = None
) -> None:
    """Write a tensor's bytes in pieces.

    Raises:
        InvalidFormat: the tensor's stream is not as long as its type and shape say, or a value is
            beyond the type.
    """
    pending = written = 0
    for chunk in tensor.chunks():
        file.write(chunk.data)
        written += chunk.size
        pending += chunk.size
        if progress is not None:
            progress(chunk.size)
        if pending >= _RELEASE_EVERY:
            sources.release()
            pending = 0
    sources.release(forget=True)
    if written != tensor.nbytes:
        raise InvalidFormat(tensor.name, f"gave {written} bytes, it has {tensor.nbytes}")


def requested_dtype(quantize: str | None, target: FormatName) -> DType | None:
    """The type that `--quantize` names; None where each tensor keeps its own.

    Raises:
        UsageError: unknown, or not storable in the target format.
    """
    if quantize is None:
        return None
    if quantize not in QUANTIZE:
        raise UsageError("--quantize", f"{quantize!r} is unknown", f"write {', '.join(QUANTIZE)}")
    if target == "hf" and quantize == "q8_0":
        raise UsageError(
            "--quantize",
            "q8_0 is a GGUF type, which safetensors cannot hold",
            "write --quantize f32, f16 or bf16, or --format gguf",
        )
    return DTYPES[QUANTIZE[quantize]]


def storable(tensor: Tensor, target: FormatName) -> bool:
    """Whether the tensor's own type can stand in the target and be computed with there."""
    if target == "hf":
        return tensor.dtype.name in ("F32", "F16", "BF16")
    return tensor.dtype.ggml_id is not None and (
        tensor.dtype.name in ("F32", "F16", "BF16") or tensor.dtype.is_block
    )


def chosen_dtype(tensor: Tensor, asked: DType | None, target: FormatName) -> DType:
    """The type in which a tensor is written.

    Raises:
        UsageError: its own type cannot stand there and no other was asked for, or its rows are no
            whole number of blocks of the type asked for.
    """
    if target == "gguf" and len(tensor.shape) == 1:
        return DTYPES["F32"]  # norms and biases: ggml adds and multiplies them in f32 only
    if asked is None:
        if storable(tensor, target):
            return tensor.dtype
        choices = [q for q in QUANTIZE if target == "gguf" or q != "q8_0"]
        raise UsageError(
            "--quantize",
            f"tensor {tensor.name} is {tensor.dtype.name}, which the output cannot hold as it is",
            f"say which type it shall have: {', '.join(choices)}",
        )
    if asked.is_block and tensor.shape[-1] % asked.block_size:
        raise UsageError(
            "--quantize",
            f"tensor {tensor.name} has rows of {tensor.shape[-1]}, no multiple of the "
            f"{asked.block_size} that a block of {asked.name} takes",
            "write f16 or bf16",
        )
    return asked
