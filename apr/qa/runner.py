"""Runs the gates of `contracts/gates.yaml` in order and makes the report.

A gate that raises fails with the message; nothing but a file that is no model at all, or a wrong
setting, stops the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apr import contracts
from apr.errors import AprError, StrPath, UsageError
from apr.qa import behaviour, contents, output, parity, weights
from apr.qa.report import Finding, GateResult, Report, Skip
from apr.qa.subject import Settings, Subject
from apr.receipt import now, receipt

Gate = Callable[[Subject, Mapping[str, Any]], Finding]

_GATES: dict[str, Gate] = {
    "integrity": contents.integrity,
    "metadata": contents.metadata,
    "tensor_contract": weights.tensor_contract,
    "tokenizer": contents.tokenizer,
    "determinism": behaviour.determinism,
    "prefill_equals_steps": behaviour.prefill_equals_steps,
    "cache_equals_recompute": behaviour.cache_equals_recompute,
    "stream_equals_whole": behaviour.stream_equals_whole,
    "isolation": behaviour.isolation,
    "output_not_degenerate": output.output_not_degenerate,
    "training_probe": parity.training_probe,
    "export_readiness": contents.export_readiness,
}
_NEEDS_SECOND_FILE = "format_parity"


def gate_names() -> list[str]:
    """The gates in the order in which they run."""
    return [gate["name"] for gate in contracts.load("gates")["gates"]]


def run(
    path: StrPath,
    *,
    against: StrPath | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    kernels: str | None = None,
    cache: str | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    min_executed: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Judge a file.

    Args:
        path: an `.apr` file, a GGUF file or a Hugging Face folder.
        against: a second file for the gate `format_parity`.
        device: as in `apr.engine.load`.
        dtype: what the gates compute in. None is float32 (on torch), which keeps the thresholds
            sharp whatever is stored; `auto`, and CPU kernels asked for, follow the file.
        threads: CPU threads; None leaves torch's setting.
        kernels: as in `apr.engine.load`.
        cache: likewise.
        only: gates to run, by name or id; empty: all.
        skip: gates to leave out, by name or id.
        min_executed: gates that must run for the report to pass; None: the contract's number, or
            all that were chosen if these are fewer.
        progress: called with each gate's name before it runs.

    Raises:
        NotFound, InvalidFormat: a file does not exist or cannot be read as its format.
        UsageError, FeatureUnavailable: a gate, device or dtype that does not exist here.
    """
    contract = contracts.load("gates")
    chosen = _choose(only, skip, against)
    if min_executed is None:
        min_executed = min(int(contract["min_executed"]), len(chosen))
    if dtype is None and kernels in (None, "torch") and cache is None:
        dtype = "float32"
    settings = Settings(device, dtype, threads, kernels, cache)
    _check_settings(settings)
    started = time.perf_counter()
    subject = Subject.open(path, settings)
    other = Subject.open(against, settings) if against is not None else None
    results: list[GateResult] = []
    for gate in contract["gates"]:
        name = gate["name"]
        if only and name not in chosen:
            continue
        if progress is not None:
            progress(name)
        begun = time.perf_counter()
        verdict: Any
        if name in chosen:
            reason = _blocked(gate, results)
            verdict, finding, reason = (
                ("skip", Finding(False, reason), reason)
                if reason
                else _judge(gate, subject, other, results)
            )
        else:
            verdict, finding, reason = "skip", Finding(False, "left out by --skip"), "--skip"
        results.append(
            GateResult(
                id=gate["id"],
                name=name,
                verdict=verdict,
                message=finding.message,
                value=finding.value,
                threshold=finding.threshold,
                duration_ms=1000 * (time.perf_counter() - begun),
                reason=reason,
                details=finding.details,
            )
        )
    engine = vars(subject).get("engine")
    return Report(
        model=str(path),
        format=subject.format,
        gates=tuple(results),
        min_executed=min_executed,
        duration_ms=1000 * (time.perf_counter() - started),
        timestamp=now(),
        system=receipt(engine.plan.device if engine else None),
        plan=engine.plan.to_json() if engine else None,
        against=str(against) if against is not None else None,
    )


def _judge(
    gate: Mapping[str, Any], subject: Subject, other: Subject | None, before: list[GateResult]
) -> tuple[str, Finding, str | None]:
    name, limits = gate["name"], gate["limits"]
    try:
        if name == _NEEDS_SECOND_FILE:
            if other is None:
                raise Skip("no second file was given (--against)")
            finding = parity.format_parity(subject, other, limits)
        else:
            finding = _GATES[name](subject, limits)
    except Skip as skipped:
        return "skip", Finding(False, str(skipped)), str(skipped)
    except AprError as error:
        text = f"{error.what}; {error.hint}" if error.hint else error.what
        failed = [g.name for g in before if g.verdict == "fail"]
        if "tensor_contract" in failed and "engine" not in vars(subject) and _runs(name):
            reason = f"the model does not load, see tensor_contract: {text[:120]}"
            return "skip", Finding(False, reason), reason
        return "fail", Finding(False, text), None
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        text = (str(error).splitlines() or ["no message"])[0]
        return (
            "fail",
            Finding(False, f"the gate itself failed: {type(error).__name__}: {text}"),
            None,
        )
    return ("pass" if finding.passed else "fail"), finding, None


def _runs(name: str) -> bool:
    """Whether a gate computes with the model."""
    return name not in ("integrity", "metadata", "tensor_contract", "tokenizer", "export_readiness")


def _blocked(gate: Mapping[str, Any], before: Sequence[GateResult]) -> str | None:
    for needed in gate["needs"]:
        found = next((g for g in before if g.name == needed), None)
        if found is not None and found.verdict == "fail":
            return f"needs {needed}, which failed"
    return None


def _choose(only: Sequence[str], skip: Sequence[str], against: StrPath | None) -> set[str]:
    gates = contracts.load("gates")["gates"]
    names = {key: g["name"] for g in gates for key in (g["name"], g["id"])}
    for flag, asked in (("--gate", only), ("--skip", skip)):
        for name in asked:
            if name not in names:
                known = ", ".join(g["name"] for g in gates)
                raise UsageError(flag, f"there is no gate {name!r}", f"write one of {known}")
    chosen = {names[n] for n in only} or set(names.values())
    chosen -= {names[n] for n in skip}
    if not chosen:
        raise UsageError("--skip", "leaves no gate to run", "skip fewer")
    if only and _NEEDS_SECOND_FILE in chosen and against is None:
        raise UsageError("--gate format_parity", "needs a second file", "add --against FILE")
    return chosen


def _check_settings(settings: Settings) -> None:
    """A wrong setting is the user's error, not a failed gate."""
    import torch

    from apr.device import pick_device, pick_dtype
    from apr.engine import check_kernels

    place = pick_device(settings.device)
    pick_dtype(settings.dtype, torch.float32)
    check_kernels(settings.kernels, place, settings.dtype, settings.cache)
    if settings.threads is not None and settings.threads < 1:
        raise UsageError("--threads", f"{settings.threads} is less than 1", "write 1 or more")
