"""One pass in float32 with weights that are there only while they are needed.

For proofs: the logits of a model of any size, in the memory of one layer's attention or of its
largest other matrix. A module's weights are decoded when the pass reaches it and dropped behind it,
the embedding gives only the rows asked for, the head is applied a few rows at a time, and the
file's pages are given back all along.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from apr.engine.weights import assign
from apr.errors import InferenceError
from apr.formats.opened import OpenedModel
from apr.mapped import release
from apr.model.decoder import Decoder
from apr.quant import decode
from apr.tensors import Tensor

Logits = npt.NDArray[np.float32]
_STEP = 32 << 20  # bytes of float32 of the head that are there at once


def streamed_logits(
    model: OpenedModel, ids: Sequence[int], *, last: int | None = None, threads: int | None = None
) -> Logits:
    """Logits after every token, `[len, vocab]`, computed on the CPU in float32.

    Args:
        model: the opened model.
        ids: token ids within the vocabulary, as many as fit into the context.
        last: only after that many tokens at the end, `[last, vocab]`.
        threads: CPU threads for all of torch in this process; None leaves the setting.

    Raises:
        ModelLoadError: the tensors are not those that the architecture needs.
        InferenceError: a part of it does not fit into memory.
    """
    model.check_tensors()
    if threads is not None:
        torch.set_num_threads(threads)
    with torch.device("meta"):
        decoder = Decoder(model.architecture)
    tensors = dict(model.tensors)
    embedding = tensors.pop("model.embed_tokens.weight")
    head = embedding
    if not model.architecture.tie_word_embeddings:
        head = tensors.pop("lm_head.weight")
    decoder.model.embed_tokens = _Embedding(embedding)  # type: ignore[assignment]
    decoder.lm_head = _Head(head)  # type: ignore[assignment]
    units: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("model.layers."):
            units.setdefault(_unit(name), []).append(tensor)
        else:  # the last norm, learned positions
            assign(decoder, name, _weight(tensor))
    for path, own in units.items():
        inside = [replace(t, name=t.name.removeprefix(path + ".")) for t in own]
        _while_needed(decoder.get_submodule(path), inside)
    with torch.inference_mode():
        try:
            hidden = decoder.eval().hidden(torch.tensor([list(ids)], dtype=torch.int64))
            if last is not None:
                hidden = hidden[:, -last:]
            result: Logits = decoder.logits(hidden)[0].numpy()
        except (RuntimeError, MemoryError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise InferenceError(model.path, f"logits cannot be computed: {first}") from error
    return result


def _weight(tensor: Tensor) -> torch.Tensor:
    raw = tensor.raw()
    values = decode(tensor.dtype, raw, tensor.shape)
    out = torch.from_numpy(values if values.flags.writeable else values.copy())
    release(raw)
    return out


def _unit(name: str) -> str:
    """The module that a parameter comes and goes with: its own, or all of a layer's attention.

    Attention over latents takes a matrix of a module inside it without calling that module.
    """
    head, found, _ = name.partition(".self_attn.")
    return f"{head}.self_attn" if found else name.rpartition(".")[0]


def _while_needed(unit: nn.Module, tensors: list[Tensor]) -> None:
    """Let a module have these weights during its own pass alone."""
    every = dict(unit.named_parameters())
    empty = {tensor.name: every[tensor.name] for tensor in tensors}

    def fill(module: nn.Module, inputs: Any) -> None:
        for tensor in tensors:
            assign(module, tensor.name, _weight(tensor))

    def drop(module: nn.Module, inputs: Any, output: Any) -> None:
        for name, parameter in empty.items():
            assign(module, name, parameter)

    unit.register_forward_pre_hook(fill)
    unit.register_forward_hook(drop)


class _Embedding(nn.Module):
    """An embedding of which only the rows that are asked for are decoded."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows `[..., hidden]` of ids `[...]`."""
        wanted, places = torch.unique(ids, return_inverse=True)
        if not _sliceable(self.tensor):
            return F.embedding(ids, _weight(self.tensor))
        raw = self.tensor.raw()
        rows = raw.reshape(self.tensor.shape[0], -1)[wanted.numpy()]
        release(raw)
        shape = (len(wanted), self.tensor.shape[1])
        table = torch.from_numpy(decode(self.tensor.dtype, rows.reshape(-1), shape))
        return F.embedding(places, table)


class _Head(nn.Module):
    """A linear map to the vocabulary, some of its rows at a time."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `[..., vocab]` of states `[..., hidden]`."""
        return torch.cat([F.linear(hidden, part) for part in self._parts()], dim=-1)

    def _parts(self) -> Iterator[torch.Tensor]:
        if not _sliceable(self.tensor):
            yield _weight(self.tensor)
            return
        rows, width = self.tensor.shape
        raw = self.tensor.raw()
        stored = raw.reshape(rows, -1)
        step = max(1, _STEP // (4 * width))
        for start in range(0, rows, step):
            piece = stored[start : start + step]
            values = decode(self.tensor.dtype, piece.reshape(-1), (len(piece), width))
            yield torch.from_numpy(values if values.flags.writeable else values.copy())
            release(piece)


def _sliceable(tensor: Tensor) -> bool:
    """Whether each row has bytes of its own."""
    return not tensor.dtype.header_bytes and tensor.dtype.name != "APR_Q4"
