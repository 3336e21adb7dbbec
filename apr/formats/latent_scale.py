"""MLA's latents in GGUF: their projections times a power of two, for the sake of one epsilon.

transformers' norms of the latents have an epsilon of 1e-6, whatever rms_norm_eps says; llama.cpp's
have the model's (GLM-4.7-Flash: 1e-5). A norm of c x with epsilon e is one of x with e / c^2. So
the rows that give the latents are multiplied by the power of two whose square comes nearest, which
is exact in every float type, and `apr.latent_scale` states its exponent for the way back. What
remains (6.25e-7 instead of 1e-6) is measured in docs/spec/families.md. Other readers need not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from apr import families
from apr.architecture import Architecture
from apr.dtypes import DTYPES
from apr.errors import InvalidFormat, StrPath
from apr.families import latent_gguf
from apr.formats.recipes import Choose
from apr.mapped import release
from apr.tensors import Bytes, Tensor

KEY = "apr.latent_scale"
_Q_A, _KV_A = ".self_attn.q_a_proj.", ".self_attn.kv_a_proj_with_mqa."
_MOST = 24  # exponent; beyond it no epsilon makes sense


def exponent(
    architecture: Architecture,
    tensors: Mapping[str, Tensor],
    choose: Choose,
) -> int:
    """The exponent for a file, 0 for none: none is needed, or a type would not take it exactly.

    Args:
        architecture: of the model.
        tensors: the canonical ones, by name.
        choose: the type in which a tensor is to stand in the file.
    """
    if not architecture.is_mla:
        return 0
    for spec in families.tensor_specs(architecture):
        if _rows(spec.name, architecture):
            source, target = tensors[spec.name].dtype, choose(tensors[spec.name], spec)
            # Blocks round more than the epsilon matters; half precision has few small numbers.
            if source.is_block or target.is_block or (target.name == "F16" and source != target):
                return 0
    return latent_gguf.latent_scale(architecture)


def stated(fields: Mapping[str, object], where: StrPath) -> int:
    """The exponent that a file states, 0 where it states none.

    Raises:
        InvalidFormat: it is of no use.
    """
    value = fields.get(KEY, 0)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _MOST:
        raise InvalidFormat(where, f"{KEY} is {value!r}, not a small whole number")
    return value


def scaled(
    tensors: Mapping[str, Tensor], architecture: Architecture, power: int
) -> dict[str, Tensor]:
    """The tensors, those rows of theirs that give the latents times 2 to this power, lazily.

    Raises:
        InvalidFormat: on loading, a number that becomes too large for its type.
    """
    if not power or not architecture.is_mla:
        return dict(tensors)
    return {
        name: _times(tensor, rows, power) if (rows := _rows(name, architecture)) else tensor
        for name, tensor in tensors.items()
    }


def _rows(name: str, architecture: Architecture) -> int:
    """How many of a tensor's first rows give a latent."""
    if _Q_A in name:
        return architecture.q_lora_rank or 0
    return architecture.kv_lora_rank or 0 if _KV_A in name else 0


def _times(tensor: Tensor, rows: int, power: int) -> Tensor:
    kind = DTYPES["F32"] if tensor.dtype.is_block else tensor.dtype

    def load() -> Bytes:
        stored = tensor.raw()
        wide = tensor.float32().copy()
        wide[:rows] *= np.float32(2.0**power)
        release(stored)
        if kind.name == "F32":
            return wide.reshape(-1).view(np.uint8)
        if kind.name == "BF16":
            return (wide.view(np.uint32) >> 16).astype("<u2").reshape(-1).view(np.uint8)
        with np.errstate(over="ignore"):
            half = wide.astype("<f2")
        if not np.isfinite(half).all():
            raise InvalidFormat(
                tensor.name,
                f"has numbers that times {2**power} are too large for F16",
                "write --quantize f32 or bf16",
            )
        return half.reshape(-1).view(np.uint8)

    return replace(tensor, dtype=kind, load=load, stream=None)
