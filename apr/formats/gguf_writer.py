"""A model as GGUF: everything that llama.cpp's loader wants.

Key names: gguf's constants; types: what llama.cpp's loader asks for. The bytes are
`gguf_container`'s.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from apr import contracts, families
from apr.architecture import Architecture
from apr.atomic import atomic_file
from apr.dtypes import DTYPES, DType
from apr.errors import GateFailed, StrPath
from apr.families import TensorSpec, rotary_gguf
from apr.formats import latent_scale, recipes
from apr.formats.gguf_container import write_container
from apr.formats.gguf_model import (
    EXACT,
    GENERAL,
    HEAD,
    INEXACT,
    NAME,
    ROPE_SCALING,
    TRAINING,
    architecture_by_keys,
    harmless_name,
)
from apr.formats.gguf_statement import PlannedGguf, statement
from apr.formats.opened import OpenedModel
from apr.formats.streaming import Progress, Sources, chosen_dtype, requested_dtype
from apr.tensors import Tensor, from_array

# What llama.cpp takes for granted where the name says Phi-3; see `harmless_name`.
_PHI3_TOKENS = {"</s>", "<unk>", "<s>", "<|endoftext|>"}
TOKENIZER = "tokenizer"  # the property of an inexact export whose text llama.cpp cuts otherwise
QUANTIZATION_VERSION = 2  # GGML_QUANT_VERSION: the layout of the block types that we write
# general.file_type by the type that most weights have (llama.h: enum llama_ftype).
FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 12,
    "Q4_K": 15,
    "Q5_K": 17,
    "Q6_K": 18,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "IQ3_XXS": 23,
    "IQ1_S": 24,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ2_S": 28,
    "IQ4_XS": 30,
    "IQ1_M": 31,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "MXFP4": 38,
    "NVFP4": 39,
}


def write_gguf(
    path: StrPath,
    model: OpenedModel,
    *,
    quantize: str | None = None,
    name: str | None = None,
    force: bool = False,
) -> None:
    """Write a model as GGUF, atomically; `apr.export.export` does the same and proves it.

    Args:
        path: the file to write.
        model: the source.
        quantize: f32, f16, bf16 or q8_0; None keeps each tensor's own type.
        name: `general.name`; the source's own by default.
        force: overwrite.

    Raises:
        UsageError: a type that cannot be written.
        ModelLoadError: the source lacks tokenizer or tensors, or has tensors of other shapes.
        GateFailed: llama.cpp would compute something else from any GGUF of this model.
        StorageError: `path` exists (and not `force`), or cannot be written.
    """
    with atomic_file(path, force=force) as temporary:
        write_gguf_into(temporary, model, quantize=quantize, name=name)


def write_gguf_into(
    path: Path,
    model: OpenedModel,
    *,
    quantize: str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> None:
    """As `write_gguf`, straight into `path`."""
    model.check_tensors()
    sources = Sources()
    tensors = gguf_tensors(model, quantize, sources)
    fields = gguf_fields(model, [t.dtype for t in tensors if len(t.shape) > 1], name)
    planned = PlannedGguf(path, fields, {tensor.name: tensor for tensor in tensors})
    fields |= statement(model.architecture, architecture_by_keys(planned))
    fields |= _latent_scale(model, quantize)
    with path.open("wb") as file:
        write_container(file, fields, tensors, sources, progress)


def gguf_tensors(
    model: OpenedModel, quantize: str | None, sources: Sources | None = None
) -> list[Tensor]:
    """The tensors as they will stand in the file: GGUF's names, rows and types, still lazy.

    Raises:
        UsageError: see `chosen_dtype`.
        GateFailed: llama.cpp would compute something else from any GGUF of this model.
    """
    obstacles = families.gguf_obstacles(model.architecture)
    if obstacles:
        raise GateFailed(
            model.path,
            "cannot be exported to GGUF exactly: " + "; ".join(map(str, obstacles)),
            "write --format safetensors instead, which keeps it",
        )
    architecture, choose = model.architecture, _choice(quantize)
    specs = families.tensor_specs(architecture)
    held = {s.name: model.tensors[s.name] for s in specs}
    if sources:
        held = {name: sources.watch(tensor) for name, tensor in held.items()}

    power = latent_scale.exponent(architecture, held, choose)
    held = latent_scale.scaled(held, architecture, power)
    out = recipes.write("gguf", specs, held, architecture, choose)
    if families.writes_tied_head(architecture):
        out.append(replace(out[0], name=HEAD))  # the contract's first tensor is the embedding
    return out + _rotary_divisors(architecture)


def _choice(quantize: str | None) -> recipes.Choose:
    """The type in which each tensor is to stand in the file."""
    asked = requested_dtype(quantize, "gguf")

    def choose(tensor: Tensor, spec: TensorSpec) -> DType:
        if spec.role in ("router", "positions") and asked is not None and asked.is_block:
            # A rounded router would send tokens to other experts; positions are few.
            return DTYPES["F32"]
        return chosen_dtype(tensor, asked, "gguf")

    return choose


def _latent_scale(model: OpenedModel, quantize: str | None) -> dict[str, int]:
    """Our own key for what `gguf_tensors` did to the latents, if it did."""
    power = latent_scale.exponent(model.architecture, model.tensors, _choice(quantize))
    return {latent_scale.KEY: power} if power else {}


def _rotary_divisors(architecture: Architecture) -> list[Tensor]:
    """The tensors that stand for a scaling which llama.cpp has no keys for, if there are any."""
    return [
        from_array(name, np.array(values, dtype=np.float32))
        for name, values in rotary_gguf.gguf_tensors(architecture).items()
    ]


def tokens_differ(model: OpenedModel) -> bool:
    """Whether the export was allowed to write the nearest tokenizer that llama.cpp has."""
    found = model.metadata.get("inexact") or []
    return any(entry["property"] == TOKENIZER for entry in found)


def gguf_fields(
    model: OpenedModel, weight_types: Sequence[DType], name: str | None = None
) -> dict[str, Any]:
    """The key-values that llama.cpp's loader wants, and what else is known about the model.

    Raises:
        ModelLoadError: no tokenizer, one that does not fit the embedding, or one whose
            pre-tokenizer GGUF has no name for.
    """
    architecture = model.architecture
    prefix = contracts.load(f"families/{architecture.family}")["gguf_architecture"]
    known = {**model.metadata, "name": name or model.metadata.get("name") or model.path.stem}
    out: dict[str, Any] = {"general.architecture": prefix, "general.type": "model"}
    for key, canonical in GENERAL.items():
        if isinstance(known.get(canonical), str) and known[canonical]:
            out[key] = known[canonical]
    most = Counter(t.name for t in weight_types).most_common(1)[0][0]
    out["general.file_type"] = FILE_TYPES[most]
    out["general.quantization_version"] = QUANTIZATION_VERSION
    family = families.by_name(architecture.family, model.path)
    for key, value in family.to_gguf(architecture).items():
        out[f"{prefix}.{key}"] = value
    scaling = rotary_gguf.own_statement(architecture)
    if scaling is not None:
        out[ROPE_SCALING] = json.dumps(scaling, separators=(",", ":"))
    lost = recipes.lost_by_adding(families.tensor_specs(architecture), model.tensors)
    out.update((EXACT + name, values) for name, values in lost.items())
    if model.metadata.get("inexact"):
        out[INEXACT] = json.dumps(model.metadata["inexact"], ensure_ascii=False)
    if model.training is not None:
        out[TRAINING] = json.dumps(model.training, ensure_ascii=False, separators=(",", ":"))
    tokenizer = model.fitting_tokenizer()
    out.update(tokenizer.to_gguf(architecture.vocab_size, allow_inexact=tokens_differ(model)))
    shown = out.get("general.name")
    if shown and not _PHI3_TOKENS.issubset(tokenizer.tokens()) and harmless_name(shown) != shown:
        out |= {"general.name": harmless_name(shown), NAME: shown}
    return out
