"""The gates that compare with evidence from outside: the trainer's record, and a second file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt

from apr.errors import AprError
from apr.qa import samples
from apr.qa.report import Finding, Skip
from apr.qa.subject import Subject, relative_difference, storage_kind

if TYPE_CHECKING:
    from apr.engine import Engine

Limits = Mapping[str, Any]


def negative_log_likelihood(engine: Engine, ids: Sequence[int]) -> float:
    """Mean negative log-likelihood of `ids[1:]` given what is before each, nats per token."""
    logits = engine.logits(ids[:-1]).astype(np.float64)
    top = logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
    chosen = logits[np.arange(len(ids) - 1), np.asarray(ids[1:])]
    return float((log_sum - chosen).mean())


def training_record(subject: Subject) -> Mapping[str, Any]:
    """The training record.

    Raises:
        Skip: there is none, or nothing was trained.
    """
    record = subject.require_model().training
    if not isinstance(record, Mapping):
        raise Skip("no training record in the file: whether and how it was trained is unknown")
    if not record.get("step"):
        raise Skip("the model is untrained (step 0 in its training record)")
    return record


def training_probe(subject: Subject, limits: Limits) -> Finding:
    """The loss on the record's held-out ids, computed again.

    Exact evidence: permuted rows, another rotary pairing, a zeroed layer, or weights from another
    step all move it.
    """
    record = training_record(subject)
    probe = record.get("probe")
    if not isinstance(probe, Mapping):
        raise Skip("the training record holds no probe (held-out ids with their loss)")
    ids, stated = probe.get("ids"), probe.get("loss")
    if not _is_ids(ids) or not isinstance(stated, int | float) or not math.isfinite(stated):
        return Finding(False, "the probe in the training record is malformed: ids or loss")
    model = subject.require_model()
    table = limits["max_difference"]
    kind = storage_kind(model.tensors, table)
    kind = _coarser(kind, subject.engine.plan.arithmetic, probe.get("dtype", record.get("dtype")))
    loss = negative_log_likelihood(subject.engine, ids)
    difference = abs(loss - stated)
    return Finding(
        difference <= table[kind],
        f"loss {loss:.4f} on {len(ids)} held-out tokens, the trainer measured {stated:.4f}"
        f" ({kind} weights)",
        difference if math.isfinite(difference) else str(difference),
        float(table[kind]),
        {"loss": loss if math.isfinite(loss) else str(loss), "recorded": stated},
    )


def format_parity(subject: Subject, other: Subject, limits: Limits) -> Finding:
    """Teacher-forced logits of both files at every step, and the token ids of real text."""
    model, second = subject.require_model(), other.model
    if second is None:
        raise other.defect or AprError(other.path, "does not open")
    rows = model.architecture.vocab_size, second.architecture.vocab_size
    if rows[0] != rows[1]:
        return Finding(
            False, f"vocabularies differ: {rows[0]} and {rows[1]} rows", rows[1], rows[0]
        )
    ids, tokens = _common_ids(subject, other, int(limits["steps"]))
    if isinstance(ids, Finding):
        return ids
    table = limits["by_storage"]
    kinds = [storage_kind(m.tensors, table) for m in (model, second)]
    kind = _coarser(*kinds, subject.engine.plan.arithmetic)
    bound = table[kind]
    a, b = subject.engine.logits(ids), other.engine.logits(ids)
    difference = relative_difference(a, b)
    cosine = _least_cosine(a, b)
    top1 = float((a.argmax(-1) == b.argmax(-1)).mean())
    passed = (
        difference <= bound["max_difference"]
        and cosine >= bound["cosine"]
        and _top1_agreement(a, b, bound["max_difference"]) >= bound["top1"]
    )
    return Finding(
        passed,
        f"{len(ids)} steps: top-1 equal in {top1:.1%}, largest difference {difference:.2g} "
        f"(relative), least cosine {cosine:.6f}; {tokens} [{kinds[0]} against {kinds[1]}]",
        difference if math.isfinite(difference) else str(difference),
        float(bound["max_difference"]),
        {"top1": top1, "cosine": cosine, "steps": len(ids), "thresholds": dict(bound)},
    )


def _common_ids(subject: Subject, other: Subject, steps: int) -> tuple[Any, str]:
    """Ids to force on both, or the finding that they tokenize differently; what was compared."""
    context = min(s.require_model().architecture.max_position_embeddings for s in (subject, other))
    steps = min(steps, context)
    try:
        first, second = subject.tokenizer(), other.tokenizer()
    except AprError:
        return subject.random_ids(steps, seed=7), "tokenizers not compared: one is missing"
    compared = 0
    for name, text in samples.texts(65536).items():
        a, b = first.encode(text), second.encode(text)
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
            at = min(len(a), len(b)) if at is None else at
            text = (
                f"token ids of {name} differ at token {at}: {a[at : at + 4]} and {b[at : at + 4]}"
            )
            return Finding(False, text, at, None), ""
        compared += len(a)
    ids = first.encode(samples.python_source(4096) or samples.SCRIPTS)[:steps]
    return ids, f"{compared} token ids equal"


def _least_cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    if not norms.all():
        return 0.0
    value = float(((x * y).sum(-1) / norms).min())
    return value if math.isfinite(value) else 0.0


def _top1_agreement(a: npt.NDArray[Any], b: npt.NDArray[Any], tolerance: float) -> float:
    """Share of steps with the same most likely token; a tie within the tolerance counts as same."""
    best = a.max(-1)
    chosen = a[np.arange(len(a)), b.argmax(-1)]
    return float((best - chosen <= 2 * tolerance * np.abs(a).max()).mean())


def _coarser(*kinds: object) -> str:
    """The coarsest of storage types and torch dtypes (by name), as a key of a threshold table."""
    order = ["F32", "F16", "BF16", "Q8_0", "other"]
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "Q8_0"}
    known = [names.get(str(kind), str(kind)) for kind in kinds if kind is not None]
    return max((k if k in order else "other" for k in known), key=order.index)


def _is_ids(ids: object) -> TypeGuard[list[int]]:
    return isinstance(ids, list) and len(ids) > 1 and all(type(i) is int for i in ids)
