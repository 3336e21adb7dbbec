"""Gathering the facts of an `.apr` file, a GGUF file or a Hugging Face folder.

The raw container is opened, not the model: what `open_model` would refuse is shown here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr import architecture as arch
from apr import families
from apr.architecture import Architecture
from apr.errors import AprError, NotFound, StrPath
from apr.formats.gguf_model import canonical_tensors, read_architecture, read_metadata
from apr.formats.gguf_reader import Fields, GgufFile
from apr.formats.hf_reader import TRAINING, read_json, read_weights
from apr.formats.hf_reader import canonical_tensors as canonical_hf_tensors
from apr.formats.hf_reader import read_architecture as read_hf_architecture
from apr.formats.hf_reader import read_config as read_hf_config
from apr.formats.hf_reader import read_metadata as read_hf_metadata
from apr.formats.opening import detect_format
from apr.inspect import judging
from apr.inspect.facts import RUNNING, Facts, Problem, TokenizerFacts, summarised
from apr.tensors import Tensor

# GGUF's keys (without prefix) for the values that every architecture has.
_GGUF_STATED = {
    "embedding_length": "hidden_size",
    "block_count": "num_layers",
    "attention.head_count": "num_heads",
    "attention.head_count_kv": "num_kv_heads",
    "attention.key_length": "head_dim",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
NO_CHECKSUM = "the format has none"
_UNUSED = 5  # llama.cpp's token type of a filler


def gather(path: StrPath) -> Facts:
    """The facts of a file, without reading a weight.

    Raises:
        NotFound: the path does not exist, or is no model.
        InvalidFormat, CorruptFile: the container itself cannot be read.
    """
    target = Path(path)
    kind = detect_format(target)
    return {"apr": _apr, "gguf": _gguf, "hf": _hf}[kind](target)


# -- .apr -------------------------------------------------------------------------------------


def _apr(path: Path) -> Facts:
    from apr.checkpoint import AprFile, Flag

    file = AprFile.open(path)
    metadata = file.metadata
    stated = arch.resolve_aliases(metadata)
    problems: list[Problem] = []
    architecture: Architecture | None = None
    missing = arch.missing_keys(stated)
    family = stated.get("architecture")
    if missing:
        what = "metadata is incomplete: missing " + ", ".join(missing)
        problems.append(Problem(what, judging.AGAIN, RUNNING))
    if family not in families.known():
        problems.append(_unknown_family(family))
    if not problems:
        try:
            architecture = arch.from_metadata(metadata, path)
        except AprError as error:
            problems.append(Problem(error.what, error.hint or judging.AGAIN, RUNNING))
    tokenizer = _apr_tokenizer(metadata)
    rows = stated.get("vocab_size")
    problems += _shared_problems(architecture, file.tensors)
    problems += judging.tokenizer_problems(tokenizer, rows if type(rows) is int else None, "apr")
    version = "{}.{}".format(*file.header.version)
    training = metadata.get("training")
    return Facts(
        path=path,
        format="apr",
        format_name="APR v2",
        version=version,
        size_bytes=file.size_bytes,
        tensors=file.tensors,
        canonical=file.tensors,
        roles=_roles(architecture, file.tensors),
        family=family if isinstance(family, str) else None,
        stated=stated,
        architecture=architecture,
        metadata=metadata,
        summary=summarised(metadata),
        flags={flag.name.lower(): flag in file.flags for flag in Flag if flag.name},
        tokenizer=tokenizer,
        training=training if isinstance(training, Mapping) else None,
        problems=tuple(problems),
        checksum=file.stored_checksum,
    )


def _apr_tokenizer(metadata: Mapping[str, Any]) -> TokenizerFacts | None:
    vocabulary = metadata.get("tokenizer.vocabulary")
    if not isinstance(vocabulary, list) or not vocabulary:
        return None
    layout = metadata.get("tokenizer.layout")
    spans = layout.get("fillers", []) if isinstance(layout, Mapping) else []
    merges = metadata.get("tokenizer.merges")
    eos = metadata.get("tokenizer.eos_token_ids", metadata.get("tokenizer.eos_token_id"))
    return TokenizerFacts(
        model=metadata.get("tokenizer.model", metadata.get("tokenizer.model_type")),
        pre=metadata.get("tokenizer.pre_type"),
        listed=len(vocabulary),
        fillers=sum(stop - start for start, stop in spans),
        merges=len(merges) if isinstance(merges, list) else None,
        special_ids=_special(
            metadata.get("tokenizer.bos_token_id"), eos, metadata.get("tokenizer.pad_token_id")
        ),
        chat_template=bool(metadata.get("chat_template")),
        whole=isinstance(metadata.get("tokenizer.spec"), Mapping),
    )


def _special(bos: Any, eos: Any, pad: Any) -> dict[str, Any]:
    several = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return {"bos": bos, "eos": several, "pad": pad}


# -- GGUF -------------------------------------------------------------------------------------


def _gguf(path: Path) -> Facts:
    file = GgufFile.open(path)
    fields = file.fields
    problems: list[Problem] = []
    architecture: Architecture | None = None
    canonical: Mapping[str, Tensor] = {}
    try:
        architecture = read_architecture(file)
        canonical = canonical_tensors(file, architecture)
    except AprError as error:
        problems.append(Problem(error.what, error.hint or judging.AGAIN, RUNNING))
    metadata: dict[str, Any] = {}
    try:
        metadata = dict(read_metadata(file))
    except AprError as error:
        problems.append(Problem(error.what, error.hint, frozenset({"qa"})))
    tokenizer = _gguf_tokenizer(fields)
    rows = architecture.vocab_size if architecture else None
    problems += _shared_problems(architecture, canonical)
    problems += judging.tokenizer_problems(tokenizer, rows, "gguf")
    names = {spec.name: spec.gguf.names for spec in _specs(architecture)}
    roles = {
        theirs: role
        for ours, role in _roles(architecture, canonical).items()
        for theirs in names.get(ours, (ours,))
    }
    return Facts(
        path=path,
        format="gguf",
        format_name=f"GGUF v{file.version}",
        version=str(file.version),
        size_bytes=file.size_bytes,
        tensors=file.tensors,
        canonical=canonical,
        roles=roles,
        family=str(file.architecture) if file.architecture is not None else None,
        stated=_gguf_stated(file),
        architecture=architecture,
        metadata=metadata,
        summary=_gguf_summary(fields),
        flags={},
        tokenizer=tokenizer,
        training=metadata.get("training"),
        problems=tuple(problems),
        verification=NO_CHECKSUM,
    )


def _gguf_stated(file: GgufFile) -> dict[str, Any]:
    """The usual values under whatever prefix the file has, for a file whose family is unknown."""
    out: dict[str, Any] = {"architecture": file.architecture}
    for key in file.fields:
        name = _GGUF_STATED.get(key.partition(".")[2])
        if name is not None and not file.fields.field(key).is_array:
            out.setdefault(name, file.fields[key])
    return out


def _gguf_summary(fields: Fields) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key in fields:
        field = fields.field(key)
        if field.is_array and field.count > 16:
            out[key] = {"type": field.type_name, "length": field.count}
        else:
            out[key] = summarised(fields[key])
    return out


def _gguf_tokenizer(fields: Fields) -> TokenizerFacts | None:
    prefix = "tokenizer.ggml."
    if prefix + "tokens" not in fields or not fields.field(prefix + "tokens").count:
        return None
    types = fields.get(prefix + "token_type", [])
    merges = prefix + "merges"
    return TokenizerFacts(
        model=fields.get(prefix + "model"),
        pre=fields.get(prefix + "pre"),
        listed=fields.field(prefix + "tokens").count,
        fillers=types.count(_UNUSED) if isinstance(types, list) else 0,
        merges=fields.field(merges).count if merges in fields else None,
        special_ids=_special(
            fields.get(prefix + "bos_token_id"),
            fields.get(prefix + "eos_token_id"),
            fields.get(prefix + "padding_token_id"),
        ),
        chat_template="tokenizer.chat_template" in fields,
        whole=prefix + "model" in fields,
    )


# -- Hugging Face -----------------------------------------------------------------------------


def _hf(path: Path) -> Facts:
    config = read_hf_config(path)
    problems: list[Problem] = []
    architecture: Architecture | None = None
    tensors: Mapping[str, Tensor] = {}
    size = 0
    weights = None
    try:
        architecture = read_hf_architecture(path, config)
    except AprError as error:
        problems.append(Problem(error.what, error.hint or "mend config.json", RUNNING))
    try:
        weights = read_weights(path)
        tensors, size = weights.tensors, weights.size_bytes
    except AprError as error:
        problems.append(Problem(error.what, error.hint or "fetch the folder again", RUNNING))
    metadata: dict[str, Any] = {}
    try:
        metadata = dict(read_hf_metadata(path, config))
    except AprError as error:
        problems.append(Problem(error.what, f"mend or remove {TRAINING}", frozenset({"qa"})))
    tokenizer = None
    try:
        tokenizer = _hf_tokenizer(path, config)
    except AprError as error:
        problems.append(Problem(error.what, error.hint or "mend tokenizer.json", RUNNING))
    rows = architecture.vocab_size if architecture else None
    model, roles = tensors, {}
    if architecture is not None and weights is not None:
        model = canonical_hf_tensors(weights, architecture)
        names = families.hf_names(architecture, tensors)
        by_name = {n: spec.role for spec in _specs(architecture) for n in spec.hf.names}
        roles = {name: by_name[names[name]] for name in tensors if names[name] in by_name}
    if tensors:
        problems += _shared_problems(architecture, model)
    if tokenizer is not None or not (path / "tokenizer.json").is_file():
        problems += judging.tokenizer_problems(tokenizer, rows, "hf")
    training = metadata.get("training")
    return Facts(
        path=path,
        format="hf",
        format_name="Hugging Face folder",
        version=str(config.get("transformers_version", "unstated")),
        size_bytes=size,
        tensors=tensors,
        canonical=model,
        roles=roles,
        family=config.get("model_type"),
        stated=arch.resolve_aliases({**config, "architecture": config.get("model_type")}),
        architecture=architecture,
        metadata=metadata,
        summary=summarised(config),
        flags={},
        tokenizer=tokenizer,
        training=training if isinstance(training, Mapping) else None,
        problems=tuple(problems),
        verification=NO_CHECKSUM,
    )


def _built_tokenizer(path: Path) -> TokenizerFacts:
    """The figures of a SentencePiece file or a unigram, by reading the tokenizer itself."""
    from apr.tokenizer import Tokenizer

    made = Tokenizer.from_directory(path)
    fillers = sum(made.is_filler(id) for id in range(made.vocab_size))
    eos = list(made.eos_token_ids) or None
    return TokenizerFacts(
        model=made.gguf_model,
        pre=made.pre_type,
        listed=made.vocab_size,
        fillers=fillers,
        merges=len(made.merges()) or None,
        special_ids=_special(made.bos_token_id, eos, made.pad_token_id),
        chat_template=made.chat_template is not None,
        whole=True,
    )


def _hf_tokenizer(path: Path, config: Mapping[str, Any]) -> TokenizerFacts | None:
    """The tokenizer's figures, from its JSON alone."""
    from apr.errors import InvalidFormat
    from apr.tokenizer import pretokenizers

    try:
        spec = read_json(path / "tokenizer.json")
    except NotFound:
        return _built_tokenizer(path) if (path / "tokenizer.model").is_file() else None
    if isinstance(spec.get("model"), dict) and spec["model"].get("type") == "Unigram":
        return _built_tokenizer(path)
    settings = _optional(path / "tokenizer_config.json")
    record = _optional(path / "apr-tokenizer.json")
    model = spec.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or set(map(type, vocab.values())) - {int}:
        raise InvalidFormat(path / "tokenizer.json", "has no model.vocab of ids")
    added = [t for t in spec.get("added_tokens") or [] if isinstance(t, dict)]
    by_text = {str(t.get("content")): t.get("id") for t in added}
    known = set(vocab.values()).union(by_text.values())
    listed = max(len(known), int(record.get("vocab_size") or 0))

    def token(name: str) -> Any:
        value = settings.get(f"{name}_token")
        text = value.get("content") if isinstance(value, dict) else value
        stated = config.get(f"{name}_token_id") if f"{name}_token" not in settings else None
        return by_text.get(text, vocab.get(text)) if isinstance(text, str) else stated

    eos = config.get("eos_token_id")
    return TokenizerFacts(
        model="gpt2" if "ByteLevel" in str(spec.get("decoder")) else "llama",
        pre=pretokenizers.recognise(spec),
        listed=listed,
        fillers=listed - len(known),
        merges=len(model.get("merges") or []) if isinstance(model, dict) else None,
        special_ids=_special(
            token("bos"), eos if isinstance(eos, list) else token("eos"), token("pad")
        ),
        chat_template=bool(settings.get("chat_template"))
        or (path / "chat_template.jinja").is_file(),
        whole=True,
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


# -- shared -----------------------------------------------------------------------------------


def _unknown_family(family: object) -> Problem:
    what = (
        "metadata is incomplete: missing architecture"
        if family is None
        else f"unknown architecture {family!r}"
    )
    return Problem(what, f"known are {', '.join(families.known())}", RUNNING)


def _shared_problems(
    architecture: Architecture | None, canonical: Mapping[str, Tensor]
) -> list[Problem]:
    if architecture is None:
        return []
    return [
        *judging.contract_problems(architecture),
        *judging.tensor_problems(architecture, canonical),
    ]


def _specs(architecture: Architecture | None) -> list[families.TensorSpec]:
    return families.tensor_specs(architecture) if architecture else []


def _roles(architecture: Architecture | None, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    roles = {spec.name: spec.role for spec in _specs(architecture)}
    return {name: roles[name] for name in tensors if name in roles}
