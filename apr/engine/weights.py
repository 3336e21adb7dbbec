"""From an opened model's lazy tensors to a decoder that computes, one tensor at a time.

The decoder is laid out on the meta device (no memory), then each parameter is assigned: where type
and device allow it, as a view of the file's own pages. So there is never a second copy of a model.
"""

from __future__ import annotations

import torch
from torch import nn

from apr.errors import InferenceError, ModelLoadError
from apr.formats.opened import OpenedModel
from apr.model.decoder import Decoder


def build(model: OpenedModel, device: torch.device, dtype: torch.dtype) -> tuple[Decoder, int]:
    """The decoder with the file's weights in `dtype` on `device`, and the bytes left mapped.

    Raises:
        ModelLoadError: tensors are missing, unexpected, of another shape, or hold no numbers.
        InferenceError: they do not fit into memory.
    """
    model.check_tensors()
    architecture = model.architecture
    with torch.device("meta"):
        decoder = Decoder(architecture)
    mapped = 0
    for name, tensor in model.tensors.items():
        if not (tensor.dtype.is_float or tensor.dtype.is_block):
            raise ModelLoadError(
                model.path, f"tensor {name} is stored as {tensor.dtype.name}, which is no weight"
            )
        source = tensor.torch()
        try:
            # A rounded correction bias would send tokens to other experts; transformers keeps it.
            exact = name.endswith(".e_score_correction_bias")
            weight = source.to(device=device, dtype=torch.float32 if exact else dtype)
        except (MemoryError, RuntimeError) as error:
            first = (str(error).splitlines() or ["out of memory"])[0]
            raise InferenceError(
                model.path,
                f"tensor {name} cannot be placed on {device} as {dtype}: {first}",
                "use a smaller dtype or another device",
            ) from error
        if weight is source and not tensor.dtype.is_block:
            mapped += weight.numel() * weight.element_size()
        assign(decoder, name, weight)
    if architecture.tie_word_embeddings:
        decoder.lm_head.weight = decoder.model.embed_tokens.weight
    left = [name for name, parameter in decoder.named_parameters() if parameter.is_meta]
    if left:
        raise ModelLoadError(model.path, f"no weights for {', '.join(left[:10])}")
    return decoder.eval(), mapped


def needed_bytes(model: OpenedModel, dtype: torch.dtype) -> int:
    """Bytes of the weights in `dtype`; pages of the file count where they are used."""
    return sum(tensor.num_elements * dtype.itemsize for tensor in model.tensors.values())


def assign(module: nn.Module, name: str, weight: torch.Tensor) -> None:
    """Make a tensor the parameter of that name."""
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, nn.Parameter(weight, requires_grad=False))
