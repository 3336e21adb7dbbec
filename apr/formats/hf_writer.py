"""Writing a Hugging Face folder that `AutoModelForCausalLM` and `AutoTokenizer` load as it is.

Own safetensors writer: the header is known before the first weight, so the file streams in one go.
Over a shard's size it becomes several files with an index, as transformers names them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apr import families
from apr.atomic import atomic_directory
from apr.dtypes import DTYPES, DType
from apr.errors import AprError, InvalidFormat, StrPath, UsageError
from apr.families import TensorSpec
from apr.formats import recipes
from apr.formats.hf_reader import CONFIG, GENERATION, INDEX, SINGLE, TRAINING
from apr.formats.opened import OpenedModel
from apr.formats.streaming import Progress, Sources, chosen_dtype, requested_dtype, write_tensor
from apr.quant import encode, error_figures
from apr.tensors import Tensor

SHARD_BYTES = 5 * 10**9  # transformers' own default
_AS_THEY_ARE = ".mlp.gate.e_score_correction_bias"
_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# What config.json has no place for, kept beside it so that the folder opens again as it was.
_KEPT = ("name", "description", "author", "license", "version", "source", "data_source",
         "data_license", "training")  # fmt: skip


def write_hf(
    path: StrPath,
    model: OpenedModel,
    *,
    quantize: str | None = None,
    name: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
) -> None:
    """Write a model as a Hugging Face folder, atomically; `apr.export.export` also proves it.

    Args:
        path: the folder to make.
        model: the source.
        quantize: f32, f16 or bf16; None keeps each tensor's own type.
        name: the model's name; the source's own by default.
        shard_bytes: weights beyond this go into several files.
        force: replace an existing folder.

    Raises:
        UsageError: a type that safetensors cannot hold.
        ModelLoadError: the source lacks tokenizer or tensors, or has tensors of other shapes.
        StorageError: `path` exists (and not `force`), or cannot be written.
    """
    with atomic_directory(path, force=force) as temporary:
        write_hf_into(temporary, model, quantize=quantize, name=name, shard_bytes=shard_bytes)


def write_hf_into(
    path: Path,
    model: OpenedModel,
    *,
    quantize: str | None = None,
    name: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """As `write_hf`, straight into the existing folder `path`."""
    if shard_bytes < 1:
        raise UsageError("--shard-size", f"{shard_bytes} bytes hold no tensor", "write 5GB or more")
    model.check_tensors()
    tokenizer = model.fitting_tokenizer()
    sources = Sources()
    tensors, dtype = hf_tensors(model, quantize, sources)
    config = hf_config(model, dtype)
    _write_json(path / CONFIG, config)
    token_ids = {k: v for k, v in config.items() if k.endswith("_token_id")}
    # Settings of the source; where it had none, transformers may derive them from config.json.
    generation = model.metadata.get("generation_config") or {"_from_model_config": True}
    _write_json(path / GENERATION, {**generation, **token_ids})
    kept = {k: model.metadata[k] for k in _KEPT if model.metadata.get(k) is not None}
    kept["name"] = name or kept.get("name") or model.path.stem
    _write_json(path / TRAINING, kept)
    tokenizer.write_directory(path)
    write_shards(path, tensors, shard_bytes, sources, progress)


def hf_config(model: OpenedModel, dtype: DType) -> dict[str, Any]:
    """The whole config.json: the family's fields, token ids, and the type of the weights.

    `torch_dtype` is transformers 4's spelling of it, `dtype` transformers 5's.
    """
    tokenizer = model.require_tokenizer()
    family = families.by_name(model.architecture.family, model.path)
    eos = tokenizer.eos_token_ids
    kept = model.metadata.get("hf_config") or {}
    own = family.to_hf(model.architecture)
    # The source's own words, as long as they still describe this model.
    fields = {**own, **kept}
    try:
        same = family.from_hf(fields, model.path) == model.architecture
    except AprError:
        same = False
    return {
        "use_cache": True,
        **(fields if same else {**kept, **own}),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos) or None,
        "pad_token_id": tokenizer.pad_token_id,
        "torch_dtype": _TORCH_NAMES[dtype.name],
        "dtype": _TORCH_NAMES[dtype.name],
    }


def hf_tensors(
    model: OpenedModel, quantize: str | None, sources: Sources | None = None
) -> tuple[list[Tensor], DType]:
    """The tensors as they will stand in the files, still lazy, and config.json's type for them.

    transformers loads the whole model in that one type. Where none is asked for, matrices keep
    their own; norms and biases follow if that loses nothing (f32 norms beside bf16 matrices, as
    GGUF has them), otherwise everything is to be loaded as f32.

    Raises:
        UsageError: see `chosen_dtype`.
    """
    asked = requested_dtype(quantize, "hf")
    specs = families.tensor_specs(model.architecture)
    held = {spec.name: model.tensors[spec.name] for spec in specs}
    types = {name: chosen_dtype(tensor, asked, "hf") for name, tensor in held.items()}
    matrices = {types[name].name for name, tensor in held.items() if len(tensor.shape) > 1}
    common = DTYPES[matrices.pop()] if len(matrices) == 1 else DTYPES["F32"]
    # transformers loads these as they are whatever the model's type: rounded, they would send
    # tokens to other experts.
    kept = {name for name in held if name.endswith(_AS_THEY_ARE)}
    types |= {name: chosen_dtype(held[name], None, "hf") for name in kept}
    small = [t for name, t in held.items() if len(t.shape) == 1 and name not in kept]
    if asked is None and not all(_fits(tensor, common) for tensor in small):
        common = DTYPES["F32"]
    if sources:
        held = {name: sources.watch(tensor) for name, tensor in held.items()}

    def choose(tensor: Tensor, spec: TensorSpec) -> DType:
        small = asked is None and len(spec.shape) == 1 and spec.name not in kept
        return common if small else types[spec.name]

    return recipes.write("hf", specs, held, model.architecture, choose), common


def _fits(tensor: Tensor, dtype: DType) -> bool:
    """Whether every value of a small tensor is the same in another type."""
    if tensor.dtype == dtype or dtype.name == "F32":
        return True
    values = tensor.float32()
    try:
        return error_figures(values, dtype, encode(dtype, values)).exact
    except InvalidFormat:  # beyond the type's range
        return False


def write_shards(
    path: Path,
    tensors: Sequence[Tensor],
    shard_bytes: int = SHARD_BYTES,
    sources: Sources | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write tensors as `model.safetensors`, or as shards of at most `shard_bytes` with an index.

    A single tensor larger than that has a shard of its own.
    """
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    if len(shards) == 1:
        names = [SINGLE]
    else:
        names = [
            f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
        ]
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in tensors)},
            "weight_map": {
                t.name: name for name, shard in zip(names, shards, strict=True) for t in shard
            },
        }
        _write_json(path / INDEX, index)
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(path / name, shard, sources, progress)
    return [path / name for name in names]


def write_safetensors(
    path: Path,
    tensors: Sequence[Tensor],
    sources: Sources | None = None,
    progress: Progress | None = None,
) -> None:
    """One safetensors file, streaming.

    Wider types come first, so that every tensor begins at a multiple of its element's size.
    """
    order = sorted(tensors, key=lambda t: (-t.dtype.block_bytes, t.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in order:
        header[tensor.name] = {
            "dtype": tensor.dtype.safetensors,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in order:
            write_tensor(file, tensor, sources or Sources(), progress)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    def plain(value: Any) -> Any:
        return value.item() if isinstance(value, np.generic) else dict(value)

    text = json.dumps(data, indent=2, ensure_ascii=False, default=plain)
    path.write_text(text + "\n", encoding="utf-8")
