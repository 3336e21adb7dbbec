"""A tokenizer as a folder: Hugging Face's files, and one record of our own.

`tokenizer.json` or `tokenizer.model` holds the tokenizer, `tokenizer_config.json` the special
tokens and the chat template, `generation_config.json` and `config.json` further end tokens;
`apr-tokenizer.json` holds what none of them can (fillers, the pre-tokenizer's name, scores, how it
was trained). Written so that `AutoTokenizer.from_pretrained` loads it with nothing added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr import atomic
from apr.errors import CorruptFile, InvalidFormat, NotFound, StorageError
from apr.tokenizer import from_model
from apr.tokenizer import spec as specs
from apr.tokenizer.tokenizer import Tokenizer

RECORD = "apr-tokenizer.json"
_FILES = ("tokenizer.json", "tokenizer.model")
_TRAIN = "make one with: apr tokenize train --dataset PATH --vocab-size N --pre qwen2 -o DIR"
# Entries of tokenizer_config.json that `apr` states itself; all others are kept as they are.
_OWN = (
    "bos_token", "eos_token", "pad_token", "unk_token", "chat_template", "added_tokens_decoder",
    "tokenizer_class", "auto_map", "name_or_path", "backend", "is_local",
)  # fmt: skip


def read(path: Path) -> Tokenizer:
    """The tokenizer of a folder; see `Tokenizer.from_directory`."""
    file = _file(path)
    folder = file.parent
    config = _optional(folder / "tokenizer_config.json")
    # Older folders state special tokens there alone; a null in the config still says "none".
    config = {**_optional(folder / "special_tokens_map.json"), **config}
    scores: tuple[float, ...] | None = None
    own: Mapping[str, int] = {}
    if file.suffix == ".model":
        source = from_model.read(file, config, _optional(folder / "added_tokens.json"))
        spec, own, scores = specs.check(source.spec, file), source.ids, source.scores
    else:
        spec = specs.check(read_json(file), file)
    by_text = {text: id for id, text in specs.known_tokens(spec).items()}
    record = _optional(folder / RECORD)
    others = [_optional(folder / name) for name in ("generation_config.json", "config.json")]

    def named(key: str) -> int | None:
        text = _token_text(config.get(key), folder / "tokenizer_config.json", key)
        if text is None:
            return None
        if text not in by_text:
            raise InvalidFormat(
                folder / "tokenizer_config.json", f"its {key} {text!r} is no token of {file.name}"
            )
        return by_text[text]

    ids = {name: named(f"{name}_token") for name in ("bos", "eos", "pad", "unk")}
    for name, id in own.items():
        if f"{name}_token" not in config:
            ids[name] = id
    eos = [] if ids["eos"] is None else [ids["eos"]]
    for other in others:
        eos += _ids(other.get("eos_token_id"), folder)
    for name in ("bos", "pad"):
        # A null in tokenizer_config.json says "none"; only a missing entry is looked up elsewhere.
        if ids[name] is None and f"{name}_token" not in config:
            found = [id for other in others for id in _ids(other.get(f"{name}_token_id"), folder)]
            ids[name] = found[0] if found else None
    stated, size = record.get("scores"), record.get("vocab_size", 0)
    if type(size) is not int:
        raise CorruptFile(folder / RECORD, f"its vocab_size is {size!r}, not a number of tokens")
    tokenizer = Tokenizer(
        spec=spec,
        vocab_size=max(specs.minimum_size(spec), size),
        bos_token_id=ids["bos"],
        eos_token_ids=tuple(dict.fromkeys(id for id in eos if id is not None)),
        pad_token_id=ids["pad"],
        unk_token_id=ids["unk"],
        chat_template=_chat_template(folder, config),
        config={key: value for key, value in config.items() if key not in _OWN},
        record=record.get("training") or {},
        scores=tuple(stated) if isinstance(stated, list) else scores,
        stated_pre=record.get("pre_type"),
    )
    return _with_record(tokenizer, record, folder)


def _file(path: Path) -> Path:
    """The file that holds the tokenizer: tokenizer.json goes before tokenizer.model."""
    if not path.is_dir():
        if path.is_file() and path.name in _FILES:
            return path
        raise NotFound(path, f"is no folder with a {' or '.join(_FILES)}", _TRAIN)
    for name in _FILES:
        if (path / name).is_file():
            return path / name
    raise NotFound(path, f"holds no {' and no '.join(_FILES)}", _TRAIN)


def _with_record(tokenizer: Tokenizer, record: Mapping[str, Any], folder: Path) -> Tokenizer:
    """Compare with our own record, where the folder has one."""
    if record and record.get("fingerprint") != tokenizer.fingerprint:
        raise CorruptFile(
            folder / RECORD,
            f"records the fingerprint {str(record.get('fingerprint'))[:12]}, but tokenizer.json "
            f"and its end token give {tokenizer.fingerprint[:12]}: one of them was changed",
            f"delete {RECORD} to take the folder as it is now",
        )
    return tokenizer


def write(tokenizer: Tokenizer, path: Path) -> None:
    """Write the folder's files; see `Tokenizer.write_directory`."""
    tokens = tokenizer.tokens()

    def text(id: int | None) -> str | None:
        return None if id is None else tokens[id]

    eos = tokenizer.eos_token_ids
    config: dict[str, Any] = {
        "clean_up_tokenization_spaces": False,  # transformers' default would change decoded text
        **tokenizer.config,
        # The class that takes tokenizer.json as it is; a family's own class rebuilds parts of it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text(tokenizer.bos_token_id),
        "eos_token": text(eos[0] if eos else None),
        "pad_token": text(tokenizer.pad_token_id),
        "unk_token": text(tokenizer.unk_token_id),
    }
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    record: dict[str, Any] = {
        "apr_tokenizer": 1,
        "fingerprint": tokenizer.fingerprint,
        "pre_type": tokenizer.pre_type,
        "vocab_size": tokenizer.vocab_size,
        "training": dict(tokenizer.record) or None,
        # tokenizer.json states the order of a BPE's pieces, not their scores.
        "scores": None if tokenizer.scores is None else list(tokenizer.scores),
    }
    files = {
        "tokenizer.json": json.dumps(tokenizer.spec, ensure_ascii=False, indent=1),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2),
        RECORD: json.dumps(record, ensure_ascii=False, indent=2),
    }
    if len(eos) > 1 and not (path / "generation_config.json").exists():
        # The only place where transformers reads more than one end token from.
        listed = {"eos_token_id": list(eos)}
        files["generation_config.json"] = json.dumps(listed, indent=2)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.explain(error, path) from error
    for name, content in files.items():
        atomic.write_text(path / name, content + "\n", force=True)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InvalidFormat: it is not UTF-8, no JSON, or no object.
        StorageError: it cannot be read.
    """
    try:
        text = file.read_bytes().decode("utf-8")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise InvalidFormat(file, f"is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise InvalidFormat(
            file, f"is no JSON: {error.msg} in line {error.lineno}", "fetch or write it again"
        ) from error
    except RecursionError as error:
        raise InvalidFormat(file, "is nested too deeply") from error
    except OSError as error:
        raise StorageError(file, f"cannot be read ({error.strerror})") from error
    if not isinstance(value, dict):
        raise InvalidFormat(file, f"holds a {type(value).__name__}, not a JSON object")
    return value


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _token_text(value: Any, file: Path, key: str) -> str | None:
    """A special token: a string, or an object with the string as `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is not None and type(value) is not str:
        raise InvalidFormat(file, f"its {key} is {value!r}, not a token")
    return value


def _ids(value: Any, folder: Path) -> list[int]:
    """Token ids: none, one, or a list."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(id) is int for id in ids):
        raise InvalidFormat(folder / "config.json", f"holds {value!r} where a token id belongs")
    return list(ids)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template: its own file goes before tokenizer_config.json, as in transformers."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InvalidFormat(file, f"is not UTF-8 (byte {error.start})") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name; the one named default is the model's
        named = {item.get("name"): item.get("template") for item in template}
        if "default" not in named:
            raise InvalidFormat(
                folder / "tokenizer_config.json",
                f"has chat templates {', '.join(map(repr, named))}, but none named 'default'",
            )
        template = named["default"]
    if template is not None and type(template) is not str:
        raise InvalidFormat(folder / "tokenizer_config.json", "its chat_template is no text")
    return template
