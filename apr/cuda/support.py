"""Which models the CUDA kernels compute, and what memory their weights take. Needs no Triton."""

from __future__ import annotations

from collections.abc import Mapping

from apr.architecture import Architecture
from apr.cuda import stored
from apr.native.program import ACTS
from apr.tensors import Tensor

_WIDEST_HEAD = 256


def lacking(architecture: Architecture, tensors: Mapping[str, Tensor]) -> str:
    """What of this model the CUDA kernels do not compute, or ""."""
    arch = architecture
    if arch.is_mla:
        return f"no kernel for latent attention ({arch.family})"
    if arch.num_experts:
        return f"no kernel for experts ({arch.family})"
    if arch.hidden_act not in ACTS or arch.swiglu_limit is not None:
        return f"no kernel for {arch.hidden_act}" + (" with a limit" if arch.swiglu_limit else "")
    if arch.head_dim > _WIDEST_HEAD:
        return f"no kernel for heads of {arch.head_dim} (at most {_WIDEST_HEAD})"
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and not stored.known(tensor.dtype, tensor.shape[1]):
            return f"no kernel for {tensor.dtype.name} ({name})"
    return ""


def weight_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all matrices on the device."""
    return sum(stored.nbytes(t.dtype, *t.shape) for t in tensors.values() if len(t.shape) == 2)
