"""The gates that read the file and compute nothing: integrity, metadata, tokenizer, export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apr import architecture as arch
from apr import contracts, families
from apr.errors import AprError
from apr.qa import samples
from apr.qa.report import Finding
from apr.qa.subject import Subject
from apr.tokenizer.expectations import special_token_problems

if TYPE_CHECKING:
    from apr.formats.opened import OpenedModel
    from apr.tokenizer import Tokenizer

Limits = Mapping[str, Any]


def integrity(subject: Subject, limits: Limits) -> Finding:
    """Every byte of an `.apr` file against its checksums; bounds of what has no checksum."""
    if subject.format == "apr":
        from apr.checkpoint import verify

        verified = verify(subject.path)
        return Finding(
            True,
            f"all {verified.size_bytes:,} bytes read, CRC-32 {verified.checksum}",
            verified.checksum,
            verified.checksum,
            {"checks": list(verified.checks)},
        )
    if subject.format == "gguf":
        from apr.formats.gguf_reader import GgufFile

        file = GgufFile.open(subject.path)
        tensors, size, kind = file.tensors, file.size_bytes, "GGUF"
    else:
        from apr.formats.hf_reader import read_weights

        weights = read_weights(subject.path)
        tensors, size, kind = weights.tensors, weights.size_bytes, "safetensors"
    if not tensors:
        return Finding(False, "the file holds no tensors", 0, 1)
    short = [name for name, tensor in tensors.items() if tensor.raw().nbytes != tensor.nbytes]
    return Finding(
        not short,
        f"{len(short)} tensors are cut short: {', '.join(short[:5])}"
        if short
        else f"bounds, order and sizes of {len(tensors)} tensors in {size:,} bytes hold; "
        f"{kind} has no checksum, so the bytes themselves are not proven",
        len(short),
        0,
    )


def metadata(subject: Subject, limits: Limits) -> Finding:
    """Complete, within the contracts' bounds, each key stated once."""
    if subject.model is None:
        assert subject.defect is not None
        return Finding(False, _sentence(subject.defect))
    architecture = subject.model.architecture
    problems = [f"[{v.rule}] {v.message}" for v in arch.violations(architecture)]
    if subject.format == "apr":
        problems += _stated_twice(subject.raw_metadata)
        problems += _parameter_count(subject.model)
    return Finding(
        not problems,
        "; ".join(problems)
        or f"{architecture.family}: {architecture.num_layers} layers, "
        f"hidden {architecture.hidden_size}, vocabulary {architecture.vocab_size}, "
        f"context {architecture.max_position_embeddings}",
        len(problems),
        0,
        architecture.to_metadata(),
    )


def tokenizer(subject: Subject, limits: Limits) -> Finding:
    """Round trip, ids inside the vocabulary, special tokens, as many tokens as embedding rows."""
    found = subject.tokenizer()
    problems = []
    if subject.model is not None:
        problems += _sizes(subject.model, found)
    problems += [f"[{rule}] {sentence}" for rule, sentence in special_token_problems(found)]
    special = {
        "bos": found.bos_token_id,
        "pad": found.pad_token_id,
        "unk": found.unk_token_id,
        **{f"eos[{i}]": id for i, id in enumerate(found.eos_token_ids)},
    }
    problems += [p for name, id in special.items() if (p := _special(found, name, id))]
    tokens, highest, errors = 0, -1, 0
    for name, text in samples.texts(int(limits["sample_bytes"])).items():
        ids = found.encode(text)
        tokens += len(ids)
        highest = max(highest, *ids) if ids else highest
        back = found.decode(ids)
        if back != text:
            errors += 1
            problems.append(f"{name} does not survive encode and decode: {_where(text, back)}")
    if highest >= found.vocab_size:
        problems.append(f"id {highest} comes out, the vocabulary has {found.vocab_size}")
    return Finding(
        not problems,
        "; ".join(problems)
        or f"{found.vocab_size} tokens, {tokens} ids of real text round-trip, {_splitting(found)}",
        errors,
        int(limits["round_trip_errors"]),
        {"vocab_size": found.vocab_size, "highest_id": highest, "special": special},
    )


def _splitting(tokenizer: Tokenizer) -> str:
    if tokenizer.gguf_model != "gpt2":
        return "SentencePiece, no pre-tokenizer"
    return f"pre-tokenizer {tokenizer.pre_type or 'not one that llama.cpp knows'}"


def export_readiness(subject: Subject, limits: Limits) -> Finding:
    """What the writers of GGUF and Hugging Face folders will ask for."""
    model = subject.require_model()
    missing: list[str] = []
    try:
        found = subject.tokenizer()
    except AprError as error:
        missing.append(_sentence(error))
    else:
        if found.gguf_model == "gpt2" and not found.pre_type:
            missing.append("a pre-tokenizer that llama.cpp knows (tokenizer.pre_type)")
        if not found.eos_token_ids:
            missing.append("an end-of-text token")
        missing += _attempt("GGUF tokenizer", lambda: _gguf_tokenizer(model, found))
    family = families.by_name(model.architecture.family, model.path)
    contract = contracts.load(f"families/{model.architecture.family}")
    for key in ("gguf_architecture", "hf_architecture", "hf_model_type"):
        if not contract.get(key):
            missing.append(f"{key} of family {model.architecture.family}")
    # In a config.json null says "none", as of a window; GGUF has no such value.
    family.to_hf(model.architecture)
    for key, value in family.to_gguf(model.architecture).items():
        if value is None:
            missing.append(f"GGUF key {key}")
    specs = families.tensor_specs(model.architecture)
    missing += [f"tensor {s.name}" for s in specs if s.name not in model.tensors]
    # A property that llama.cpp lacks is no fault of the model: the folder can still be written.
    obstacles = [o.text for o in families.gguf_obstacles(model.architecture)]
    caveat = f"; only as a Hugging Face folder: {'; '.join(obstacles)}" if obstacles else ""
    return Finding(
        not missing,
        "missing: " + "; ".join(missing)
        if missing
        else f"GGUF architecture {contract['gguf_architecture']}, "
        f"{contract['hf_architecture']}, {len(specs)} tensors, tokenizer{caveat}",
        len(missing),
        int(limits["missing"]),
        {"gguf_obstacles": obstacles},
    )


def _sentence(error: AprError) -> str:
    return f"{error.what}; {error.hint}" if error.hint else error.what


def _attempt(what: str, check: Any) -> list[str]:
    try:
        return list(check())
    except AprError as error:
        return [f"{what}: {_sentence(error)}"]


def _gguf_tokenizer(model: OpenedModel, found: Tokenizer) -> list[str]:
    fields = found.to_gguf(model.architecture.vocab_size)
    tokens = fields.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, list | tuple) else 0
    if count != model.architecture.vocab_size:
        return [
            f"a token list as long as the embedding ({count} tokens, "
            f"{model.architecture.vocab_size} rows)"
        ]
    return []


def _stated_twice(raw: Mapping[str, Any]) -> list[str]:
    """The Rust loader drops all metadata when a key stands beside its alias."""
    out = []
    for key, others in contracts.load("metadata")["aliases"].items():
        beside = [other for other in others if other in raw]
        if key in raw and beside:
            out.append(f"{key} stands beside its other name {', '.join(beside)}: write it once")
    return out


def _parameter_count(model: OpenedModel) -> list[str]:
    stated = model.metadata.get("param_count")
    counted = sum(t.num_elements for t in model.tensors.values())
    if stated in (None, 0) or stated == counted:
        return []
    return [f"param_count says {stated:,}, the tensors hold {counted:,}"]


def _sizes(model: OpenedModel, found: Tokenizer) -> list[str]:
    rows = model.tensors.get("model.embed_tokens.weight")
    sizes = {
        "vocab_size": model.architecture.vocab_size,
        "token list": found.vocab_size,
        "embedding rows": rows.shape[0] if rows is not None and rows.shape else None,
    }
    if len({size for size in sizes.values() if size is not None}) > 1:
        return ["sizes differ: " + ", ".join(f"{name} {size}" for name, size in sizes.items())]
    return []


def _special(found: Tokenizer, name: str, id: int | None) -> str | None:
    if id is None:
        return None
    if not 0 <= id < found.vocab_size:
        return f"{name} is id {id}, outside the vocabulary of {found.vocab_size}"
    text = found.tokens()[id]
    if found.encode(text) != [id]:
        return f"{name} is {text!r}, which encodes to {found.encode(text)[:8]}, not to id {id}"
    return None


def _where(text: str, back: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), None)
    at = min(len(text), len(back)) if at is None else at
    return f"at character {at}, {text[at : at + 12]!r} comes back as {back[at : at + 12]!r}"
