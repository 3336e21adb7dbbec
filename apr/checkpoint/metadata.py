"""The metadata of an `.apr` file: one JSON object, in the key order of the Rust struct.

What is written is canonical: no alias of a canonical key, no NaN, no lone surrogate, nothing unset
except the three provenance keys. What is read may be sloppier, as long as it is JSON. Facts:
docs/spec/apr-format.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from apr import contracts
from apr.errors import CorruptFile, InvalidFormat, StrPath

# The Rust struct's fields in their order; other keys follow as they come.
KEYS = (
    "model_type",
    "name",
    "description",
    "author",
    "license",
    "data_source",
    "data_license",
    "version",
    "source",
    "original_format",
    "created_at",
    "total_size",
    "param_count",
    "quantization",
    "sharding",
    "chat_template",
    "chat_format",
    "special_tokens",
    "architecture",
    "hf_architecture",
    "hf_model_type",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "vocab_size",
    "intermediate_size",
    "max_position_embeddings",
    "rope_theta",
    "rope_type",
    "rms_norm_eps",
    "head_dim",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
)
NULL_WHEN_UNSET = ("license", "data_source", "data_license")
_ALWAYS: dict[str, Any] = {"model_type": "", "total_size": 0, "param_count": 0}

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def serialize(path: StrPath, metadata: Mapping[str, Any], *, unset_as_null: bool = False) -> bytes:
    """The metadata as compact UTF-8 JSON.

    Args:
        path: named in errors.
        metadata: values that are None count as unset.
        unset_as_null: write every unset key of the Rust struct as null, as its older versions did.

    Raises:
        InvalidFormat: an alias of a canonical key, a key that is no string, or a value that JSON
            or UTF-8 cannot hold; the message names the key.
    """
    aliases = {
        alias: canonical
        for canonical, others in contracts.load("metadata")["aliases"].items()
        for alias in others
    }
    for key in metadata:
        if not isinstance(key, str):
            raise InvalidFormat(path, f"metadata key {key!r} is no string")
        if key in aliases:
            raise InvalidFormat(
                path,
                f"metadata key {key!r} is an alias of {aliases[key]!r}: beside it, the Rust "
                "reader drops all metadata",
                f"write {aliases[key]!r} only",
            )
    ordered: dict[str, Any] = {}
    for key in KEYS:
        value = metadata.get(key)
        if value is None:
            value = _ALWAYS.get(key)
        if value is not None or unset_as_null or key in NULL_WHEN_UNSET:
            ordered[key] = value
    ordered.update(
        (key, value) for key, value in metadata.items() if key not in ordered and value is not None
    )
    return b"{" + b",".join(_pair(path, *item) for item in ordered.items()) + b"}"


def _pair(path: StrPath, key: str, value: Any) -> bytes:
    try:
        return _encode(key) + b":" + _encode(value)
    except (ValueError, TypeError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        reason = "is not valid Unicode" if isinstance(error, UnicodeError) else str(error)
        raise InvalidFormat(path, f"metadata key {key!r} cannot be written: {reason}") from error


def _encode(value: Any) -> bytes:
    def plain(other: Any) -> Any:
        if isinstance(other, Mapping):
            return dict(other)
        raise TypeError(f"a {type(other).__name__} is not JSON")

    text = json.dumps(
        value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=plain
    )
    return text.encode()


def parse(path: StrPath, raw: bytes) -> dict[str, Any]:
    """The metadata's object. Of a key that occurs twice, the last one counts.

    Raises:
        CorruptFile: not UTF-8, not JSON, or not an object.
    """
    hint = "the file is damaged, or was written by a broken tool"
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise CorruptFile(
            path, f"metadata is not UTF-8 at byte {error.start} of {len(raw)}", hint
        ) from None
    try:
        value = json.loads(text, parse_constant=_no_constant)
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode()  # pairs are fine, lone halves are not
    except UnicodeEncodeError:
        raise CorruptFile(path, "metadata holds half a surrogate pair", hint) from None
    except RecursionError:
        raise CorruptFile(path, "metadata is nested too deeply", hint) from None
    except ValueError as error:
        raise CorruptFile(path, f"metadata is not JSON: {error}", hint) from None
    if not isinstance(value, dict):
        raise CorruptFile(path, f"metadata is a JSON {type(value).__name__}, not an object", hint)
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
