"""A GGUF file as an `OpenedModel`: canonical names, canonical row order, one architecture.

What the file does not say is never guessed: the vocabulary's size is that of the embedding and must
be that of the token list, biases and a separate head are there if their tensors are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apr import architecture as arch
from apr import contracts, families, rope
from apr.architecture import Architecture
from apr.errors import InvalidFormat, ModelLoadError
from apr.families import rotary_gguf
from apr.formats import latent_scale, recipes
from apr.formats.gguf_reader import GgufFile
from apr.formats.gguf_statement import ARCHITECTURE, PlannedGguf, applied
from apr.formats.opened import OpenedModel
from apr.mapped import same_stored
from apr.tensors import Tensor

if TYPE_CHECKING:
    from apr.tokenizer import Tokenizer

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
TOKENS = "tokenizer.ggml.tokens"
TRAINING = "apr.training"  # our own key: the training record, as JSON
INEXACT = "apr.inexact"  # ours: what an export with --allow-inexact left out, as JSON
EXACT = "apr.exact."  # ours: then a tensor's name; the values that its sum with one has rounded
ROPE_SCALING = rotary_gguf.OWN_KEY  # ours too, as JSON
NAME = "apr.name"  # ours: a name that llama.cpp would take for more than that
# GGUF's general keys that have a name of their own in `.apr` metadata.
GENERAL = {
    "general.name": "name",
    "general.description": "description",
    "general.author": "author",
    "general.license": "license",
    "general.version": "version",
    "general.source.url": "source",
}


# Keys of an architecture that hold a number; others may hold texts or lists.
_NUMBER = re.compile(
    r".*(_length|_count\w*|_rank|_layers|_norm|_scale|_func|_epsilon|_softcapping|freq_base\w*|"
    r"(?<!_)factor|scale_linear|sliding_window|original_context_length|_multiplier)"
)


def open_gguf(path: Path) -> OpenedModel:
    """Open a GGUF file.

    Raises:
        NotFound, InvalidFormat, CorruptFile: see `GgufFile.open`; an unknown architecture or
            missing keys, by name.
        ModelLoadError: embedding and token list do not agree.
    """
    file = GgufFile.open(path)
    architecture = read_architecture(file)
    return OpenedModel(
        path=path,
        format="gguf",
        architecture=architecture,
        tensors=canonical_tensors(file, architecture),
        metadata=read_metadata(file),
        load_tokenizer=lambda: read_tokenizer(file),
        size_bytes=file.size_bytes,
    )


def read_tokenizer(file: GgufFile) -> Tokenizer | None:
    """The tokenizer of a GGUF file, or None where it has none."""
    from apr.tokenizer import Tokenizer

    return Tokenizer.from_gguf(file.fields) if TOKENS in file.fields else None


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 9.99999974e-06 was 1e-05 when written."""
    return float(str(np.float32(value)))


def family_fields(file: GgufFile | PlannedGguf) -> dict[str, Any]:
    """The architecture's keys without their prefix, and what only the tensors say."""
    prefix = f"{file.architecture}."
    fields: dict[str, Any] = {}
    for key in file.fields:
        if key.startswith(prefix):
            value = file.fields[key]
            fields[key.removeprefix(prefix)] = (
                shortest(value) if isinstance(value, float) else value
            )
    embedding = file.tensors.get(EMBEDDING)
    if embedding is not None and len(embedding.shape) == 2:
        fields["vocab_size"] = embedding.shape[0]
    elif TOKENS in file.fields:
        fields.setdefault("vocab_size", len(file.fields[TOKENS]))
    fields["tensors"] = frozenset(file.tensors)  # names, for what only they can tell
    fields["tie_word_embeddings"] = HEAD not in file.tensors
    fields["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    fields["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    if ROPE_SCALING in file.fields:
        fields["rope_scaling"] = _json_object(file, ROPE_SCALING)
    fields["rotary_tensors"] = {
        name: [shortest(value) for value in file.tensors[name].float32().ravel().tolist()]
        for name in (rope.TENSOR, rope.LONG, rope.SHORT)
        if name in file.tensors
    }
    return fields


def _json_object(file: GgufFile | PlannedGguf, key: str) -> dict[str, Any]:
    try:
        value = json.loads(file.fields[key])
    except (TypeError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise InvalidFormat(file.path, f"{key} holds no valid JSON object")
    return value


def check_token_list(file: GgufFile) -> None:
    """Compare the token list with the embedding.

    Raises:
        ModelLoadError: the token list is not as long as the embedding has rows.
    """
    embedding = file.tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2 or TOKENS not in file.fields:
        return
    rows, listed = embedding.shape[0], file.fields.field(TOKENS).count
    if listed != rows:
        raise ModelLoadError(
            file.path,
            f"{TOKENS} lists {listed} tokens, token_embd.weight has {rows} rows",
            "pad the token list with unused tokens up to the embedding's rows",
        )


def read_architecture(file: GgufFile, *, check_tokens: bool = True) -> Architecture:
    """The architecture that a GGUF file describes.

    Raises:
        InvalidFormat: unknown architecture, or missing keys.
        ModelLoadError: see `check_token_list`, which `check_tokens` may leave to the caller.
    """
    name = file.architecture
    if not isinstance(name, str):
        raise InvalidFormat(file.path, "metadata is incomplete: missing general.architecture")
    known = {contracts.load(f"families/{f}")["hf_architecture"]: f for f in families.known()}
    if name in known:
        right = contracts.load(f"families/{known[name]}")["gguf_architecture"]
        raise InvalidFormat(
            file.path,
            f"unknown GGUF architecture {name!r}: that is the name of a Hugging Face class",
            f"general.architecture must be {right!r} for llama.cpp; export the model again",
        )
    if check_tokens:
        families.by_gguf_architecture(name, file.path)  # unknown: said before anything else
        check_token_list(file)
    by_keys = architecture_by_keys(file)
    if ARCHITECTURE not in file.fields:
        return by_keys
    stated = _json_object(file, ARCHITECTURE)
    found = applied(by_keys, stated, family_fields(file), file.path)
    if families.writes_tied_head(found) and not _head_is_a_copy(file):
        return replace(found, tie_word_embeddings=False)  # llama.cpp computes with this head
    return found


def _head_is_a_copy(file: GgufFile) -> bool:
    """Whether the head is the embedding once more (a quantizer may have treated it otherwise)."""
    head, embedding = file.tensors.get(HEAD), file.tensors.get(EMBEDDING)
    return head is not None and embedding is not None and same_stored(head, embedding)


def architecture_by_keys(file: GgufFile | PlannedGguf) -> Architecture:
    """The architecture that llama.cpp's keys and the tensors describe, without our own statement.

    Raises:
        InvalidFormat: unknown architecture, or missing keys.
    """
    fields = family_fields(file)
    wrong = [
        f"{file.architecture}.{key} is {value!r}"
        for key, value in fields.items()
        if _NUMBER.fullmatch(key)
        and (isinstance(value, str | list) or (isinstance(value, float) and not isfinite(value)))
    ]
    if wrong:
        raise InvalidFormat(file.path, f"{' and '.join(wrong)}, not a number")
    arch.check_counts(fields, file.path)
    family = families.by_gguf_architecture(file.architecture, file.path, fields)
    return family.from_gguf(fields, file.path)


def canonical_tensors(file: GgufFile, architecture: Architecture) -> dict[str, Tensor]:
    """The tensors under canonical names and in canonical row order; unknown ones keep their name,
    so that `check_tensors` reports them. Rotary divisors are no weights: they are compared with
    what the architecture's scaling gives, and left out.

    Raises:
        InvalidFormat: the divisors are missing or are others.
    """
    _check_divisors(file, architecture)
    follows = set(rotary_gguf.gguf_tensors(architecture))
    if architecture.rope_scaling is None:
        follows = {rope.TENSOR}  # divisors of one, or the file would not have been opened
    if families.writes_tied_head(architecture):
        follows.add(HEAD)
    held = {
        name: tensor
        for name, tensor in file.tensors.items()
        if name not in follows and not families.ignored_gguf_tensor(architecture, name)
    }
    specs = families.tensor_specs(architecture)
    found = recipes.canonical("gguf", specs, held, architecture, lambda n: _exact(file, n))
    power = latent_scale.stated(file.fields, file.path)
    return latent_scale.scaled(found, architecture, -power)


def _exact(file: GgufFile, name: str) -> list[float] | None:
    values = file.fields.get(EXACT + name)
    return values if isinstance(values, list) else None


def _check_divisors(file: GgufFile, architecture: Architecture) -> None:
    for name, expected in rotary_gguf.gguf_tensors(architecture).items():
        tensor = file.tensors.get(name)
        if tensor is None:
            raise InvalidFormat(
                file.path, f"{ROPE_SCALING} states a scaling, but tensor {name} is missing"
            )
        if tensor.shape != (len(expected),) or not np.allclose(
            tensor.float32(), expected, rtol=1e-5, atol=0.0
        ):
            raise InvalidFormat(
                file.path,
                f"tensor {name} does not hold the divisors that {ROPE_SCALING} gives",
                "one of the two was changed; export the model again",
            )


def read_metadata(file: GgufFile) -> Mapping[str, Any]:
    """What the file says beside architecture, tokenizer and weights, under `.apr` keys."""
    out: dict[str, Any] = {"original_format": "gguf"}
    for key, name in GENERAL.items():
        if isinstance(file.fields.get(key), str):
            out[name] = file.fields[key]
    ours = file.fields.get(NAME)
    if isinstance(ours, str) and harmless_name(ours) == out.get("name"):
        out["name"] = ours
    record = file.fields.get(TRAINING)
    if isinstance(record, str):
        try:
            training = json.loads(record)
        except ValueError:
            raise InvalidFormat(file.path, f"{TRAINING} holds no valid JSON") from None
        if isinstance(training, dict):
            out["training"] = training
    return out


def harmless_name(name: str) -> str:
    """A model's name without `phi3` and `phi-3` in it.

    By these llama.cpp knows Phi-3's tokenizer, looks up its four special tokens, and does not load
    a file that lacks one (`llama-vocab.cpp`).
    """
    return re.sub(r"(?i)(phi)-?(?=3)", r"\1 ", name)
