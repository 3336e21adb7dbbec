"""`apr demo`: the whole pipeline on text that every machine has, Python's own standard library.

Text becomes a tokenizer and token shards, the budget is judged, a small Llama trains, the
checkpoint passes qa, is measured, is exported both ways, and llama.cpp and transformers continue
the same text with the same tokens. The sizes are chosen so that the budget gate passes without an
override in about two minutes on two cores.
"""

from __future__ import annotations

import importlib.util
import json
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.atomic import explain, refuse_existing, write_text
from apr.errors import AprError, GateFailed, UsageError
from apr.receipt import receipt

if TYPE_CHECKING:
    from apr.train.display import Display

PRESET = "demo"
VOCAB_SIZE = 1024
PRE_TOKENIZER = "qwen2"
PROMPT = "    def __init__(self"
CONTINUATION = 32
# Tests, vendored parts and tables are left out: not the text to train on first.
LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
    | {"_vendor", "_bundled", "turtledemo", "encodings", "pydoc_data"}
)

Say = Callable[[str, str], None]


@dataclass
class Stage:
    """One step of the demo: the command that does the same, and what came out."""

    name: str
    command: str
    said: str = ""
    seconds: float = 0.0


@dataclass
class Demo:
    """What the demo did; `continuations` maps each program to its text and token ids."""

    out: Path
    stages: list[Stage] = field(default_factory=list)
    continuations: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def agreed(self) -> list[str]:
        """Programs other than apr that continued with exactly apr's tokens."""
        ours = self.continuations["apr"]["ids"]
        return [k for k, v in self.continuations.items() if k != "apr" and v.get("ids") == ours]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: what stands in `summary.json`."""
        return {
            "out": str(self.out),
            "seconds": round(self.seconds, 1),
            "stages": [asdict(stage) for stage in self.stages],
            "prompt": PROMPT,
            "continuations": self.continuations,
            "agreed": self.agreed,
            "receipt": receipt("cpu"),
        }

    def to_markdown(self) -> str:
        """The same for people: what stands in `summary.md`."""
        lines = [f"# apr demo, {self.seconds:.0f} s", ""]
        for stage in self.stages:
            lines += [f"## {stage.name} ({stage.seconds:.1f} s)", "", f"`{stage.command}`", ""]
            lines += [f"    {line}" for line in stage.said.splitlines()] + [""]
        return "\n".join(lines)


def standard_library() -> list[Path]:
    """The sources of the running Python's standard library, sorted.

    Raises:
        UsageError: this Python has none as files (a zipped or stripped installation).
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = sorted(
        path
        for path in root.rglob("*.py")
        if not LEFT_OUT & set(path.relative_to(root).parts) and path.stat().st_size
    )
    if sum(path.stat().st_size for path in found) < 4_000_000:
        raise UsageError(
            str(root),
            f"holds only {len(found)} source files, too little text for the demo",
            "run it with a Python that has its standard library as files",
        )
    return found


def demo(
    out: Path,
    *,
    num_steps: int | None = None,
    force: bool = False,
    say: Say = lambda kind, text: None,
    display: Display | None = None,
) -> Demo:
    """Run the pipeline; leaves `model.apr`, `model.gguf`, `hf/`, `loss.png` and `summary.json`.

    Args:
        out: a new folder.
        num_steps: fewer (or more) training steps than the budget asks for; too few are trained all
            the same, with the gate bypassed for this named reason.
        force: start over in a folder that exists.
        say: told `("stage", name)`, `("command", text)` and `("said", text)`.
        display: where training shows its progress.

    Raises:
        GateFailed: qa failed, or a program continued with other tokens.
        AprError: whatever else stopped a stage.
    """
    refuse_existing(out, force)
    result = Demo(out)
    started = time.perf_counter()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, out) from error
    _tokenize(result, say)
    _pretrain(result, say, display, num_steps, force)
    _qa(result, say)
    _bench(result, say)
    _export(result, say)
    _inspect(result, say)
    _continue(result, say)
    result.seconds = time.perf_counter() - started
    write_text(out / "summary.json", json.dumps(result.to_json(), indent=2) + "\n", force=True)
    write_text(out / "summary.md", result.to_markdown(), force=True)
    differing = [
        k
        for k, v in result.continuations.items()
        if "ids" in v and k not in ("apr", *result.agreed)
    ]
    if differing:
        raise GateFailed(out, f"{', '.join(differing)} continued with other tokens than apr")
    return result


@contextmanager
def _stage(result: Demo, say: Say, name: str, command: str) -> Iterator[Stage]:
    stage = Stage(name, command)
    say("stage", name)
    say("command", command)
    started = time.perf_counter()
    yield stage
    stage.seconds = time.perf_counter() - started
    result.stages.append(stage)
    say("said", stage.said)


def _tokenize(result: Demo, say: Say) -> None:
    from apr.data.vocabulary import learn_tokenizer

    command = f"apr tokenize train --dataset LIB --vocab-size {VOCAB_SIZE} --pre {PRE_TOKENIZER}"
    with _stage(result, say, "tokenizer", f"{command} -o {result.out}/tokenizer") as stage:
        learned = learn_tokenizer(
            [str(path) for path in standard_library()],
            result.out / "tokenizer",
            vocab_size=VOCAB_SIZE,
            pre=PRE_TOKENIZER,
            text_key="text",
            on_bad_record="skip",
            force=True,
        )
        record = learned.tokenizer.record
        stage.said = (
            f"{record['vocab_size']:,} tokens learned from {record['documents']:,} source files "
            f"of Python's standard library, {record['bytes'] / 1e6:.1f} MB"
        )


def _pretrain(
    result: Demo, say: Say, display: Display | None, num_steps: int | None, force: bool
) -> None:
    from apr.train import TrainConfig, pretrain
    from apr.train.save import publish_best

    flags = "" if num_steps is None else f" --num-steps {num_steps}"
    command = f"apr pretrain --dataset LIB --tokenizer {result.out}/tokenizer --preset {PRESET}"
    with _stage(result, say, "pretrain", f"{command} --run-dir {result.out}/run{flags}") as stage:
        trained = pretrain(
            TrainConfig(
                dataset=tuple(str(path) for path in standard_library()),
                tokenizer=str(result.out / "tokenizer"),
                run_dir=str(result.out / "run"),
                preset=PRESET,
                num_steps=num_steps,
                device="cpu",
                allow_under_provisioned=None if num_steps is None else f"apr demo{flags}",
                force=force,
            ),
            display=display,
            announce=lambda prepared: say("budget", _budget_text(prepared)),
        )
        assert trained.model is not None and trained.best is not None
        publish_best(Path(trained.model), result.out / "model.apr")
        publish_best(result.out / "run" / "loss.png", result.out / "loss.png")
        best, speed = trained.best, trained.tokens_per_second or 0.0
        error = best["standard_error"]
        stage.said = (
            f"budget {trained.budget['verdict']}"
            + (f", BYPASSED: {trained.budget['bypassed']}" if trained.budget["bypassed"] else "")
            + f"; {trained.steps:,} steps, {trained.tokens_seen / 1e6:.2f} M tokens "
            f"({trained.unique_tokens / 1e6:.2f} M unique) in {trained.train_seconds:.0f} s, "
            f"{speed:,.0f} tok/s\nvalidation loss {best['loss']:.4f}"
            + (f" ± {error:.4f}" if error is not None else "")
            + f" nats, {best['bits_per_byte']:.3f} bits per byte"
        )


def _budget_text(prepared: Any) -> str:
    rows = [f"{name:<34}{value:>34}   {remark}" for name, value, remark in prepared.budget.rows()]
    return "\n".join([*prepared.notes, "", *rows])


def _qa(result: Demo, say: Say) -> None:
    from apr import qa

    with _stage(result, say, "qa", f"apr qa {result.out}/model.apr") as stage:
        report = qa.run(result.out / "model.apr")
        skipped = [f"{g.name}: {g.reason}" for g in report.gates if g.verdict == "skip"]
        stage.said = "\n".join([report.summary, *(f"skipped {line}" for line in skipped)])
        if not report.passed:
            raise GateFailed(result.out / "model.apr", report.summary)


def _bench(result: Demo, say: Say) -> None:
    from apr.bench import run

    with _stage(result, say, "bench", f"apr bench {result.out}/model.apr") as stage:
        record = run(result.out / "model.apr", device="cpu")
        rows = [
            f"{row.test}: {row.tokens_per_second:,.0f} tok/s, median of {len(row.rates)}, "
            f"spread {row.relative_sd:.1%}"
            for row in record.rows
        ]
        plan = record.plan
        ran = f"{plan['engine']} on {plan['device']}, {plan['weights']}, {plan['threads']} threads"
        stage.said = "\n".join([ran, *rows, *(f"note: {note}" for note in record.notes)])


def _export(result: Demo, say: Say) -> None:
    from apr.export import export

    for format, name in (("gguf", "model.gguf"), ("safetensors", "hf")):
        target = result.out / name
        command = f"apr export {result.out}/model.apr --format {format} -o {target}"
        with _stage(result, say, f"export {format}", command) as stage:
            report = export(result.out / "model.apr", target, format=format, force=True)
            lines = [f"{c.outcome.verdict} {c.id}: {c.outcome.message}" for c in report.checks]
            stage.said = "\n".join([f"{report.size_bytes / 1e6:.2f} MB, proven by:", *lines])


def _inspect(result: Demo, say: Say) -> None:
    from apr.inspect import inspect

    with _stage(result, say, "inspect", f"apr inspect {result.out}/model.apr --verify") as stage:
        facts = inspect(result.out / "model.apr", verify=True)
        missing = {verb: facts.missing_for(verb) for verb in ("qa", "bench", "export")}
        stage.said = (
            f"{facts.format_name}, {facts.size_bytes / 1e6:.2f} MB, {facts.parameters:,} "
            f"parameters in {len(facts.tensors)} tensors, checksum {facts.checksum}\n"
            + "; ".join(f"{verb}: {'not ' * bool(m)}ready" for verb, m in missing.items())
        )


def _continue(result: Demo, say: Say) -> None:
    """Let every program that is installed continue the same prompt, greedily."""
    from apr import engine
    from apr.export import peers

    with _stage(result, say, "the same text, continued", f"prompt {PROMPT!r}, greedy") as stage:
        ours = engine.load(result.out / "model.apr", device="cpu", dtype="float32")
        tokenizer = ours.tokenizer
        assert tokenizer is not None
        prompt = tokenizer.encode(PROMPT)
        ids = list(ours.generate(prompt, CONTINUATION, stop_ids=()).ids)
        result.continuations["apr"] = {"ids": ids, "text": tokenizer.decode(ids)}
        llama = "llama_cpp" if importlib.util.find_spec("llama_cpp") else "xllamacpp"
        for title, peer, file in (
            ("llama.cpp", llama, "model.gguf"),
            ("transformers", "transformers", "hf"),
        ):
            result.continuations[title] = _peer(peers, peer, result.out / file, prompt, tokenizer)
        lines = [PROMPT + result.continuations["apr"]["text"], ""]
        for title, said in result.continuations.items():
            if title == "apr":
                continue
            same = sum(a == b for a, b in zip(said.get("ids", []), ids, strict=False))
            lines.append(
                f"{title}: {said['skipped']}"
                if "skipped" in said
                else f"{title} ({said['file']}): {same} of {len(ids)} tokens are the same"
            )
        stage.said = "\n".join(lines)


def _peer(peers: Any, peer: str, file: Path, prompt: list[int], tokenizer: Any) -> dict[str, Any]:
    if not peers.installed(peer):
        return {"skipped": f"skipped, {peer} is not installed (pip install 'apr[peers]')"}
    try:
        ids = peers.ask(peer, file, prompt=prompt, greedy=CONTINUATION).greedy
    except AprError as error:
        raise GateFailed(file, f"{peer} cannot continue it: {error.line()}") from error
    return {"ids": ids, "text": tokenizer.decode(ids), "file": file.name, "package": peer}
