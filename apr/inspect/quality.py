"""`apr inspect --quality`: 100 points for what a file says about itself.

The table is `contracts/quality.yaml`; a function here answers each of its checks with yes or no.
Ready to ship from 90. No weight is read: finite values and dead tensors are what `apr qa` judges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from apr import architecture as arch
from apr import contracts, families
from apr.inspect.facts import Facts

Check = Callable[[Facts], bool]


def judge(facts: Facts) -> dict[str, Any]:
    """Points by section and check: `{score, ready, ready_from, sections: [...]}`."""
    contract = contracts.load("quality")
    sections = []
    for section in contract["sections"]:
        checks = [
            {
                "id": rule["id"],
                "points": rule["points"],
                "earned": rule["points"] if CHECKS[rule["check"]](facts) else 0,
                "why": rule["why"],
            }
            for rule in section["checks"]
        ]
        sections.append(
            {
                "id": section["id"],
                "title": section["title"],
                "points": section["points"],
                "earned": sum(check["earned"] for check in checks),
                "checks": checks,
            }
        )
    score = sum(section["earned"] for section in sections)
    return {
        "score": score,
        "ready": score >= contract["ready_from"],
        "ready_from": contract["ready_from"],
        "sections": sections,
    }


def _specs(facts: Facts) -> dict[str, tuple[int, ...]]:
    if facts.architecture is None:
        return {}
    return {spec.name: spec.shape for spec in families.tensor_specs(facts.architecture)}


def _architecture_complete(facts: Facts) -> bool:
    return facts.architecture is not None


def _contracts_hold(facts: Facts) -> bool:
    return facts.architecture is not None and not arch.violations(facts.architecture)


def _parameter_count_agrees(facts: Facts) -> bool:
    if facts.architecture is None:
        return False
    stated = facts.metadata.get("param_count", families.num_parameters(facts.architecture))
    return bool(stated == sum(t.num_elements for t in facts.canonical.values()))


def _weights_are_numbers(facts: Facts) -> bool:
    return bool(facts.tensors) and all(
        tensor.dtype.is_float or tensor.dtype.is_block for tensor in facts.tensors.values()
    )


def _tensors_present(facts: Facts) -> bool:
    specs = _specs(facts)
    return bool(specs) and specs.keys() <= facts.canonical.keys()


def _shapes_fit(facts: Facts) -> bool:
    specs = _specs(facts)
    present = [name for name in specs if name in facts.canonical]
    return bool(present) and all(facts.canonical[name].shape == specs[name] for name in present)


def _nothing_unexpected(facts: Facts) -> bool:
    specs = _specs(facts)
    return bool(specs) and bool(facts.canonical) and facts.canonical.keys() <= specs.keys()


def _stated(key: str) -> Check:
    return lambda facts: bool(facts.metadata.get(key))


def _within(record: Mapping[str, Any] | None, *keys: str) -> bool:
    return record is not None and all(record.get(key) is not None for key in keys)


def _has_date(facts: Facts) -> bool:
    receipt = (facts.training or {}).get("receipt") or {}
    return bool(facts.metadata.get("created_at") or receipt.get("timestamp"))


def _has_data(facts: Facts) -> bool:
    return bool(facts.metadata.get("data_source") or (facts.training or {}).get("data"))


def _has_receipt(facts: Facts) -> bool:
    receipt = (facts.training or {}).get("receipt")
    return _within(receipt if isinstance(receipt, Mapping) else None, "command", "apr_version")


def _hf_class_agrees(facts: Facts) -> bool:
    if facts.architecture is None:
        return False
    contract = contracts.load(f"families/{facts.architecture.family}")
    if facts.format == "gguf":  # has no such key; its own name for the family stands for it
        return bool(facts.family == contract["gguf_architecture"])
    return bool(
        facts.metadata.get("hf_architecture") == contract["hf_architecture"]
        and facts.metadata.get("hf_model_type") == contract["hf_model_type"]
    )


def _canonical_keys(facts: Facts) -> bool:
    if facts.architecture is None:
        return False
    if facts.format != "apr":
        return True  # their own names are the canonical ones there
    others = {a for names in contracts.load("metadata")["aliases"].values() for a in names}
    return not others & facts.metadata.keys()


def _tokens_match_rows(facts: Facts) -> bool:
    if facts.tokenizer is None or facts.architecture is None:
        return False
    listed, rows = facts.tokenizer.listed, facts.architecture.vocab_size
    return listed == rows or (facts.format == "hf" and listed < rows)


def _special_ids_sound(facts: Facts) -> bool:
    tokenizer = facts.tokenizer
    if tokenizer is None or not tokenizer.special_ids.get("eos"):
        return False
    ids = [*tokenizer.special_ids["eos"], *(tokenizer.special_ids.get(k) for k in ("bos", "pad"))]
    rows = facts.architecture.vocab_size if facts.architecture else tokenizer.listed
    return all(id is None or (isinstance(id, int) and 0 <= id < rows) for id in ids)


CHECKS: dict[str, Check] = {
    "architecture_complete": _architecture_complete,
    "contracts_hold": _contracts_hold,
    "parameter_count_agrees": _parameter_count_agrees,
    "weights_are_numbers": _weights_are_numbers,
    "tensors_present": _tensors_present,
    "shapes_fit": _shapes_fit,
    "nothing_unexpected": _nothing_unexpected,
    "has_name": _stated("name"),
    "has_date": _has_date,
    "has_data": _has_data,
    "has_training_record": lambda f: _within(f.training, "tokens_seen", "validation_loss"),
    "has_receipt": _has_receipt,
    "has_license": _stated("license"),
    "has_data_license": _stated("data_license"),
    "has_author": _stated("author"),
    "family_known": lambda f: f.architecture is not None,
    "hf_class_agrees": _hf_class_agrees,
    "canonical_keys": _canonical_keys,
    "tokenizer_present": lambda f: f.tokenizer is not None,
    "tokenizer_whole": lambda f: f.tokenizer is not None and f.tokenizer.whole,
    "tokens_match_rows": _tokens_match_rows,
    "special_ids_sound": _special_ids_sound,
    "pre_tokenizer_named": lambda f: (
        f.tokenizer is not None
        and (f.tokenizer.pre is not None or f.tokenizer.model in ("llama", "t5"))
    ),
}
