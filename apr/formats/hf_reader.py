"""A Hugging Face folder as an `OpenedModel`: config.json, safetensors, tokenizer.

Everything that is missing is an error by name. Pickled weights (`pytorch_model.bin`) are refused:
reading them runs code that stands in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr import architecture as arch
from apr import families
from apr.architecture import Architecture
from apr.errors import CorruptFile, InvalidFormat, ModelLoadError, NotFound
from apr.formats import recipes
from apr.formats.opened import OpenedModel
from apr.formats.safetensors_file import SafetensorsFile
from apr.mapped import same_stored, unreadable
from apr.tensors import Tensor

if TYPE_CHECKING:
    from apr.tokenizer import Tokenizer

CONFIG = "config.json"
SINGLE = "model.safetensors"
GENERATION = "generation_config.json"
INDEX = "model.safetensors.index.json"
TRAINING = "apr-training.json"  # ours: name, licence and training record, which config.json lacks
MAX_JSON = 256 << 20  # bytes; a config or index beyond this is no config
HEAD = "lm_head.weight"
# Entries of config.json that are stated anew when a folder is written, or that mean nothing in
# another folder: ids come from the tokenizer, types from the tensors, code is not carried along.
_STATED = frozenset({
    "model_type", "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype",
    "dtype", "transformers_version", "_name_or_path", "rope_scaling", "rope_parameters", "auto_map",
    "quantization_config",
})  # fmt: skip
# Buffers that old transformers saved and computes anew on loading; they hold nothing learned.
_COMPUTED = ("rotary_emb.inv_freq", "attn.masked_bias")


@dataclass(frozen=True)
class Weights:
    """The safetensors files of a folder together, under the folder's own tensor names."""

    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]
    size_bytes: int
    metadata: Mapping[str, str]


def open_hf(path: Path) -> OpenedModel:
    """Open a Hugging Face folder.

    Raises:
        NotFound: the folder is not a model folder; the message says what is there instead.
        InvalidFormat, CorruptFile: a file of it is damaged, missing or not supported.
        ModelLoadError: head and embedding differ although the config ties them.
    """
    config = read_config(path)
    architecture = read_architecture(path, config)
    weights = read_weights(path)
    if architecture.tie_word_embeddings:
        require_same_head(path, weights, architecture)
    return OpenedModel(
        path=path,
        format="hf",
        architecture=architecture,
        tensors=canonical_tensors(weights, architecture),
        metadata={**read_metadata(path, config), **_further(path, config, architecture)},
        load_tokenizer=lambda: read_tokenizer(path),
        size_bytes=weights.size_bytes,
    )


def canonical_tensors(weights: Weights, architecture: Architecture) -> dict[str, Tensor]:
    """The learned tensors under canonical names: without computed buffers, without what the family
    does not use, and without the second copy of a tied head.
    """
    names = families.hf_names(architecture, weights.tensors)
    held = {
        names[name]: tensor
        for name, tensor in weights.tensors.items()
        if not name.endswith(_COMPUTED)
        and not (name == HEAD and architecture.tie_word_embeddings)
        and not families.ignored_hf_tensor(architecture, name)
    }
    return recipes.canonical("hf", families.tensor_specs(architecture), held, architecture)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object.

    Raises:
        NotFound: it is not there.
        InvalidFormat: it is no JSON object, or too large to be one of a model's.
        StorageError: it cannot be read.
    """
    if not path.is_file():
        raise NotFound(path, "does not exist")
    try:
        if path.stat().st_size > MAX_JSON:
            raise InvalidFormat(path, f"has {path.stat().st_size} bytes, too many for its purpose")
        data = json.loads(
            path.read_bytes(),
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=lambda text: int(text) if len(text) < 300 else int(_finite(text)),
        )
    except OSError as error:
        raise unreadable(error, path) from error
    except (ValueError, RecursionError) as error:
        raise InvalidFormat(path, f"is no valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise InvalidFormat(path, f"holds a JSON {type(data).__name__}, not an object")
    return data


def _finite(text: str) -> float:
    """Python reads NaN, Infinity and 1e999, which are no values and could not be written again."""
    if not isfinite(value := float(text)):
        raise ValueError(f"{text} stands where a number belongs")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        NotFound: there is none; the message says what the folder holds instead.
        InvalidFormat: it is damaged, or only config.json is missing from a model folder.
    """
    if (path / CONFIG).is_file():
        return read_json(path / CONFIG)
    run = next((p for p in (path / "model.apr", path / "ckpt") if p.exists()), None)
    if run is not None:
        file = run if run.suffix == ".apr" else run / "epoch-NNN.apr"
        raise NotFound(path, "is the folder of a run, not a model", f"give the file {file}")
    if next(path.glob("*.safetensors"), None) is not None:
        raise InvalidFormat(path, "holds safetensors files, but config.json is missing")
    one = next((p for kind in ("*.apr", "*.gguf") for p in sorted(path.glob(kind))), None)
    if one is not None:
        raise NotFound(path, "is a folder without config.json", f"give a file, such as {one}")
    raise NotFound(
        path,
        "is a folder without config.json and without safetensors files, so no model",
        "give an .apr file, a .gguf file or a Hugging Face folder",
    )


def read_architecture(path: Path, config: Mapping[str, Any]) -> Architecture:
    """The architecture that a config describes.

    Raises:
        InvalidFormat: unknown model_type, or fields missing.
    """
    where = path / CONFIG
    if config.get("model_type") is None:
        raise InvalidFormat(where, "model_type is missing")
    family = families.by_hf_model_type(config["model_type"], where)
    arch.check_counts(config, where)
    return family.from_hf(config, where)


def read_weights(path: Path) -> Weights:
    """Map the folder's safetensors files.

    Raises:
        InvalidFormat: there are none, or only pickled weights.
        CorruptFile: a file of the index is missing or lacks a tensor that it should hold.
    """
    if (path / SINGLE).is_file():
        files = [path / SINGLE]
        weight_map: dict[str, Any] = {}
    elif (path / INDEX).is_file():
        weight_map = read_json(path / INDEX).get("weight_map", {})
        if not isinstance(weight_map, dict) or not weight_map:
            raise InvalidFormat(path / INDEX, "weight_map is missing or empty")
        files = [
            path / _shard_name(path, name) for name in sorted(set(map(str, weight_map.values())))
        ]
    else:
        from apr.formats.opening import INSTEAD_OF_PICKLE, PICKLES

        pickled = next((p.name for kind in PICKLES for p in sorted(path.glob(f"*{kind}"))), None)
        if pickled:
            raise InvalidFormat(
                path,
                f"has its weights in {pickled}, a Python pickle: reading it would run code from it",
                INSTEAD_OF_PICKLE,
            )
        raise InvalidFormat(path, f"has neither {SINGLE} nor {INDEX}")
    tensors: dict[str, Tensor] = {}
    owner: dict[str, str] = {}
    metadata: dict[str, str] = {}
    size = 0
    for file in files:
        if not file.is_file():
            raise CorruptFile(path, f"{file.name}, named by {INDEX}, is missing", "fetch it again")
        opened = SafetensorsFile.open(file)
        for name, tensor in opened.tensors.items():
            if name in owner:
                raise CorruptFile(path, f"tensor {name!r} stands in {owner[name]} and {file.name}")
            owner[name], tensors[name] = file.name, tensor
        metadata.update(opened.metadata)
        size += opened.size_bytes
    for name, shard in weight_map.items():
        if owner.get(name) != shard:
            found = f"found in {owner[name]}" if name in owner else "found in none of the shards"
            raise CorruptFile(path, f"{INDEX} says tensor {name!r} is in {shard}; it is {found}")
    return Weights(tensors, tuple(files), size, metadata)


def _shard_name(path: Path, name: str) -> str:
    if not name or Path(name).name != name or name.startswith("."):
        raise InvalidFormat(
            path / INDEX, f"names a shard {name!r} that is not a file of the folder"
        )
    return name


def require_same_head(path: Path, weights: Weights, architecture: Architecture) -> None:
    """A tied model may hold its head as a second copy; it must then be the same.

    Raises:
        ModelLoadError: it differs.
    """
    specs = families.tensor_specs(architecture)
    name = next(spec.hf.names[0] for spec in specs if spec.role == "embedding")
    names = families.hf_names(architecture, weights.tensors)
    tensors = {names[held]: tensor for held, tensor in weights.tensors.items()}
    if HEAD not in tensors:
        return
    head, embedding = tensors[HEAD], tensors.get(name)
    if embedding is None:
        raise ModelLoadError(path, f"has lm_head.weight and tied embeddings, but no {name}")
    if not same_stored(head, embedding):
        raise ModelLoadError(
            path,
            "config.json ties the head to the embedding, but lm_head.weight differs from it",
            "set tie_word_embeddings to false if the head is its own, else remove it",
        )


def read_tokenizer(path: Path) -> Tokenizer | None:
    """The folder's tokenizer, or None where it has none at all."""
    if not has_tokenizer(path):
        return None
    from apr.tokenizer import Tokenizer

    return Tokenizer.from_directory(path)


def has_tokenizer(path: Path) -> bool:
    """Whether a tokenizer's file is there; an unreadable kind is then an error, not None."""
    return any(
        (path / name).is_file()
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    )


def read_metadata(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the folder says beside architecture, tokenizer and weights, under `.apr` keys."""
    out: dict[str, Any] = {"original_format": "safetensors"}
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        out["hf_architecture"] = architectures[0]
    out["hf_model_type"] = config.get("model_type")
    if config.get("_name_or_path"):
        out["name"] = config["_name_or_path"]
    if (path / TRAINING).is_file():
        out.update(read_json(path / TRAINING))
    return out


def _further(
    path: Path, config: Mapping[str, Any], architecture: Architecture
) -> Mapping[str, Any]:
    """What transformers reads and the architecture has no place for, to be written again.

    `hf_config` are such entries of config.json (dropout, ...) and those that say the same thing in
    other words (a number of sliding layers where none slides), `generation_config` is the file of
    that name without what the tokenizer states.
    """
    own = families.by_name(architecture.family, path).to_hf(architecture)
    out: dict[str, Any] = {}
    further = {
        key: value
        for key, value in config.items()
        if key not in _STATED and (own[key] != value if key in own else value is not None)
    }
    if further:
        out["hf_config"] = further
    if (path / GENERATION).is_file():
        generation = {
            key: value
            for key, value in read_json(path / GENERATION).items()
            if key not in _STATED and value is not None and key != "_from_model_config"
        }
        if generation:
            out["generation_config"] = generation
    return out
