"""What `apr inspect` shows: borderless sections on stdout, names escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from apr.inspect.facts import VERBS, Facts
from apr.inspect.special import costs, special

_INDENT = "    "
Row = tuple[str, str]


def escaped(text: object) -> str:
    r"""A text from a file, safe for a terminal: what does not print is written as \x1b."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


def show(facts: Facts, *, tensors: bool, as_json: bool) -> None:
    """Print the facts."""
    if as_json:
        out = facts.to_json()
        if tensors:
            out["tensors"] = [
                {
                    "name": name,
                    "dtype": t.dtype.name,
                    "shape": list(t.shape),
                    "size_bytes": t.nbytes,
                    "role": facts.roles.get(name),
                }
                for name, t in facts.tensors.items()
            ]
        print(json.dumps(out))
        return
    sections: list[tuple[str, list[Row]]] = [
        ("File", _file(facts)),
        ("Architecture", _architecture(facts)),
        ("Parameters", _parameters(facts)),
        ("Tokenizer", _tokenizer(facts)),
        ("Training", _training(facts)),
    ]
    for title, rows in sections:
        _section(title, rows)
    _ready(facts)
    if facts.quality is not None:
        _quality(facts.quality)
    if tensors:
        _tensors(facts)


def _section(title: str, rows: Iterable[Row]) -> None:
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    print(f"  {title}")
    for name, value in rows:
        print(f"{_INDENT}{name:<{width}}  {escaped(value)}".rstrip())
    print()


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def _count(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.2f}{unit} ({number:,})"
    return str(number)


def _file(facts: Facts) -> list[Row]:
    dtypes = ", ".join(
        f"{name} ({entry['tensors']} tensors, {_size(entry['bytes'])})"
        for name, entry in facts.dtypes.items()
    )
    checksum = (
        facts.verification
        if facts.checksum is None or facts.verified
        else (f"{facts.checksum} stated, {facts.verification}")
    )
    rows = [
        ("path", str(facts.path)),
        ("format", facts.format_name),
        ("size", f"{_size(facts.size_bytes)} ({facts.size_bytes:,} bytes)"),
        ("tensors", f"{len(facts.tensors)}: {dtypes}" if facts.tensors else "none"),
        ("checksum", checksum),
    ]
    rows += [(k, str(facts.metadata[k])) for k in ("name", "license", "created_at", "source")
             if facts.metadata.get(k)]  # fmt: skip
    flags = [name for name, is_set in facts.flags.items() if is_set]
    return [*rows, ("flags", ", ".join(flags))] if facts.flags else rows


def _architecture(facts: Facts) -> list[Row]:
    stated: Mapping[str, Any] = (
        facts.architecture.to_metadata() if facts.architecture else facts.stated
    )
    keys = {
        "architecture": "architecture",
        "num_layers": "layers",
        "hidden_size": "hidden",
        "intermediate_size": "feed-forward",
        "num_heads": "heads",
        "num_kv_heads": "kv heads",
        "head_dim": "head width",
        "vocab_size": "vocabulary",
        "max_position_embeddings": "context",
        "rope_theta": "rope theta",
        "rms_norm_eps": "norm epsilon",
        "tie_word_embeddings": "tied head",
    }
    names = {True: "yes", False: "no"}
    out = []
    for key, title in keys.items():
        value = stated.get(key)
        text = "MISSING" if value is None else names[value] if isinstance(value, bool) else value
        # What a whole architecture does not have, it does not need (a rotary base).
        if value is not None or not (key == "tie_word_embeddings" or facts.architecture):
            out.append((title, str(text)))
    if facts.architecture is not None:
        out += special(facts.architecture)
        cache = costs(facts.architecture)["cache_bytes_per_token"]
        out.append(("cache", f"{cache:,} bytes per token at 16 bits"))
    return out


def _parameters(facts: Facts) -> list[Row]:
    total = max(facts.parameters, 1)
    rows = [("total", _count(facts.parameters))]
    if facts.architecture is not None and facts.architecture.num_experts:
        rows.append(("active", _count(costs(facts.architecture)["active_parameters"])))
    rows += [
        (role, f"{_count(count)}  {100 * count / total:.1f} %")
        for role, count in facts.groups.items()
    ]
    stored = sum(entry["bytes"] for entry in facts.dtypes.values())
    return [*rows, ("bits each", f"{8 * stored / total:.2f}")]


def _tokenizer(facts: Facts) -> list[Row]:
    found = facts.tokenizer
    if found is None:
        return [("none", "")]
    ids = found.special_ids
    eos = ", ".join(map(str, ids.get("eos") or [])) or "none"
    bos, pad = ("none" if ids.get(k) is None else str(ids[k]) for k in ("bos", "pad"))
    return [
        ("model", found.model or "unstated"),
        (
            "pre-tokenizer",
            found.pre or ("none that llama.cpp knows" if found.model == "gpt2" else "none"),
        ),
        ("tokens", f"{found.listed:,}" + (f", {found.fillers} fillers" if found.fillers else "")),
        ("merges", "unstated" if found.merges is None else f"{found.merges:,}"),
        ("bos, eos, pad", f"{bos}; {eos}; {pad}"),
        ("chat template", "yes" if found.chat_template else "no"),
    ]


def _training(facts: Facts) -> list[Row]:
    record = facts.training
    if record is None:
        return [("none", "")]

    def number(key: str) -> str:
        value = record.get(key)
        if isinstance(value, float):
            return f"{value:.4f}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    rows = [
        (title, number(key))
        for key, title in (
            ("preset", "preset"), ("step", "step"), ("epoch", "epoch"),
            ("tokens_seen", "tokens seen"), ("unique_tokens", "unique tokens"),
            ("train_loss", "training loss"), ("validation_loss", "validation loss"),
            ("bits_per_byte", "bits per byte"), ("seed", "seed"), ("dtype", "dtype"),
            ("device", "device"), ("init", "init"),
        )
        if record.get(key) is not None
    ]  # fmt: skip
    for i, (title, value) in enumerate(rows):
        if title == "validation loss" and isinstance(record.get("validation_loss_se"), float):
            rows[i] = (title, f"{value} +/- {record['validation_loss_se']:.4f}")
    budget = record.get("budget")
    if isinstance(budget, Mapping):
        bypassed = budget.get("bypassed")
        text = str(budget.get("verdict", "unstated"))
        rows.append(("budget", f"{text}, BYPASSED: {bypassed}" if bypassed else text))
    data = record.get("data")
    if isinstance(data, Mapping):
        shown = [f"{k} {v:,}" for k, v in data.items() if isinstance(v, int)]
        rows.append(("data", ", ".join(shown[:6]) or "recorded"))
    receipt = record.get("receipt")
    if isinstance(receipt, Mapping):
        rows.append(("made by", str(receipt.get("command", "unstated"))))
    return rows


def _ready(facts: Facts) -> None:
    print("  Ready for")
    for verb in VERBS:
        missing = facts.missing_for(verb)
        print(f"{_INDENT}{verb:<6}  {'ready' if not missing else 'NOT READY'}")
        for problem in missing:
            print(f"{_INDENT}        - {escaped(problem.what)}")
            if problem.mend:
                print(f"{_INDENT}          {escaped(problem.mend)}")
    print()


def _quality(quality: Mapping[str, Any]) -> None:
    verdict = "ready to ship" if quality["ready"] else f"not ready (from {quality['ready_from']})"
    print(f"  Quality  {quality['score']} of 100, {verdict}")
    for section in quality["sections"]:
        print(f"{_INDENT}{section['id']:<12} {section['earned']:>3} of {section['points']}")
        for check in section["checks"]:
            if not check["earned"]:
                print(f"{_INDENT}    -{check['points']:<2} {check['why']} [{check['id']}]")
    print()


def _tensors(facts: Facts) -> None:
    print("  Tensors")
    width = max((len(escaped(name)) for name in facts.tensors), default=0)
    for name, tensor in facts.tensors.items():
        shape = " x ".join(map(str, tensor.shape))
        print(
            f"{_INDENT}{escaped(name):<{width}}  {tensor.dtype.name:<6}  "
            f"{shape:<16}  {_size(tensor.nbytes)}"
        )
    print()
