"""Code that a model writes: HumanEval (does it pass the tests) and Python validity (does it parse).

Each problem's prompt is continued up to a stop string, the end-of-text token or the limit of
tokens; then the completion is judged by `apr.eval.confined`. The prompt is given as it stands,
with the tokenizer's bos and without a chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apr.errors import InferenceError, StrPath, UsageError
from apr.eval import passing, problems
from apr.eval.code_record import CodeRecord, Sample
from apr.eval.confined import Limits, Outcome, check_harness, judge
from apr.eval.loading import Loaded, Progress, load
from apr.eval.problems import Problem
from apr.receipt import file_sha256, receipt

if TYPE_CHECKING:
    from apr.engine import Generation

TASKS = {"humaneval": problems.TESTED, "python-validity": problems.UNTESTED}
_CUT = ("length", "context")  # stop reasons of a completion that did not come to its end


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn: `samples` of each problem, up to `max_tokens` each."""

    samples: int = 1
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Refuse what gives no independent samples.

        Raises:
            UsageError: naming the flag.
        """
        for flag, value in (("--samples", self.samples), ("--max-tokens", self.max_tokens)):
            if value < 1:
                raise UsageError(flag, f"{value} is less than 1", "write 1 or more")
        if self.samples > 1 and self.temperature == 0:
            raise UsageError(
                "--temperature",
                f"0 gives the same completion {self.samples} times",
                "write --temperature 0.8, say, or --samples 1",
            )
        from apr.engine import Sampler

        Sampler(self.temperature, 0, self.top_p, self.seed)


def evaluate(
    path: StrPath,
    datasets: Sequence[str],
    task: str,
    *,
    sampling: Sampling | None = None,
    ks: Sequence[int] = (),
    most_problems: int | None = None,
    limits: Limits | None = None,
    weak: bool = False,
    floor: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> CodeRecord:
    """Let a model write code, and judge it.

    Args:
        path: an `.apr` file, a GGUF file or a Hugging Face folder.
        datasets: the one `.jsonl` or `.jsonl.gz` file of problems.
        task: one of `TASKS`.
        sampling: default: one greedy completion of each problem.
        ks: the k of pass@k; empty: those of 1, 10, 100 that the samples allow.
        most_problems: the first so many; None takes all.
        limits: of each program that is judged.
        weak: judge also where the kernel cannot confine; see `check_harness`.
        floor: the share (pass@1) to hold, between 0 and 1.
        device: as in `apr.engine.load`.
        dtype: likewise.
        threads: likewise.
        progress: called with a line before each step.

    Raises:
        UsageError: a setting that cannot be.
        InvalidFormat: the data set is empty or broken.
        InferenceError: no prompt fits into the context; the harness does not judge rightly.
        FeatureUnavailable: code cannot be confined here.
        NotFound, ModelLoadError: the model could not be loaded.
    """
    sampling, limits = sampling or Sampling(), limits or Limits()
    if task not in TASKS:
        raise UsageError(
            "--task", f"{task!r} is unknown", f"write perplexity, {' or '.join(TASKS)}"
        )
    if floor is not None and not 0 < floor <= 1:
        raise UsageError("--floor", f"{floor:g} is no share", "write 0.3 for 30 %, say")
    if len(datasets) != 1:
        raise UsageError(
            "--dataset",
            f"{task} takes one file of problems, {len(datasets)} were given",
            "write --dataset HumanEval.jsonl.gz, say",
        )
    dataset = datasets[0]
    sampling.check()
    limits.check()
    wanted = passing.check_ks(ks, sampling.samples)
    chosen = problems.choose(problems.read_problems(dataset, TASKS[task]), most_problems)
    # What is only parsed does nothing, so that limits alone suffice.
    held = check_harness(limits, weak=weak or task != "humaneval")
    loaded = load(path, device, dtype, threads, progress)
    results, notes = _all(loaded, chosen, task, sampling, limits, progress)
    return CodeRecord(
        task=task,
        model=loaded.to_json(),
        dataset=dataset,
        dataset_sha256=file_sha256(Path(dataset)),
        problems=len(chosen),
        samples=results,
        ks=wanted,
        settings={**asdict(sampling), "stop_strings": list(problems.STOP_STRINGS)},
        limits=asdict(limits),
        confinement=held,
        receipt=receipt(loaded.engine.plan.device),
        floor=floor,
        notes=tuple(notes),
    )


def _all(
    loaded: Loaded,
    chosen: Sequence[Problem],
    task: str,
    sampling: Sampling,
    limits: Limits,
    progress: Progress | None,
) -> tuple[tuple[Sample, ...], list[str]]:
    before = loaded.tokenizer.added_around[0]
    prompts = [
        [*before, *loaded.tokenizer.encode(problem.prompt, parse_special=False)]
        for problem in chosen
    ]
    notes, context = [], loaded.engine.context
    too_long = sum(len(ids) > context for ids in prompts)
    if too_long == len(prompts):
        raise InferenceError(
            str(loaded.model.path),
            f"has a context of {context} tokens, the shortest prompt has {min(map(len, prompts))}",
            "use a model with a longer context",
        )
    if too_long:
        notes.append(
            f"{too_long} of {len(prompts)} prompts do not fit into the context of {context} "
            "tokens: counted as not passed"
        )
    out: list[Sample] = []
    for number, (problem, ids) in enumerate(zip(chosen, prompts, strict=True)):
        for sample in range(sampling.samples):
            if progress is not None:
                passed = sum(one.passed for one in out)
                progress(f"{problem.task_id}, sample {sample + 1}: {passed} of {len(out)} passed")
            if len(ids) > context:
                out.append(Sample(problem.task_id, "", "prompt too long", f"{len(ids)} tokens"))
                continue
            made = _generate(loaded, ids, sampling, _seed(sampling.seed, number, sample))
            out.append(_judged(task, problem, made, limits))
    return tuple(out), notes


def _seed(seed: int, problem: int, sample: int) -> int:
    """A seed of each sample's own, so that samples are independent and can be drawn again."""
    return int(np.random.SeedSequence([seed, problem, sample]).generate_state(1, np.uint64)[0])


def _generate(loaded: Loaded, ids: list[int], sampling: Sampling, seed: int) -> Generation:
    from apr.engine import TextStream

    room = loaded.engine.context - len(ids) + 1  # the last token is not fed back
    stream = TextStream(loaded.tokenizer, stop_strings=problems.STOP_STRINGS)
    made = loaded.engine.generate(
        ids,
        min(sampling.max_tokens, room),
        stream=stream,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
    )
    if made.stop_reason == "length" and room <= sampling.max_tokens:
        return replace(made, stop_reason="context")
    return made


def _judged(task: str, problem: Problem, made: Generation, limits: Limits) -> Sample:
    completion = made.text or ""
    sample = partial(
        Sample,
        problem.task_id,
        completion,
        stop_reason=made.stop_reason,
        tokens=len(made.ids),
        generate_seconds=made.prefill_seconds + made.decode_seconds,
    )
    if task == "humaneval":
        return _said(sample, judge(problem.program(completion), limits))
    whole = completion
    if made.stop_reason in _CUT:  # the line that the limit cut says nothing about the model
        whole = completion[: completion.rfind("\n") + 1]
    if not any(line.strip() and not line.strip().startswith("#") for line in whole.split("\n")):
        return sample(verdict="empty", detail="no whole line of code")
    return _said(sample, judge(problem.prompt + whole, limits, parse_only=True))


def _said(sample: partial[Sample], outcome: Outcome) -> Sample:
    return sample(
        verdict=outcome.verdict, detail=outcome.detail, judge_seconds=round(outcome.seconds, 4)
    )
