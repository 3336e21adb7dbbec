"""Tasks of code: what counts, what is recorded, and HumanEval's own solutions."""

import gzip
import json

import pytest

from apr.errors import InferenceError, UsageError
from apr.eval import Limits, Sampling, code, evaluate
from apr.eval.problems import TESTED, read_problems

PROBLEMS = [
    {"task_id": f"T/{n}", "prompt": f"def f{n}(x):\n", "entry_point": f"f{n}",
     "test": "def check(candidate):\n    assert candidate(2) == 4\n"}
    for n in range(4)
]  # fmt: skip


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(p) + "\n" for p in PROBLEMS), encoding="utf-8")
    return str(path)


@pytest.fixture
def says(monkeypatch):
    """`says(texts)`: the model's completions, one after the other, instead of its own."""

    def fix(texts, stop_reason="stop"):
        from apr.engine import Generation

        left = iter(texts)
        monkeypatch.setattr(
            code, "_generate",
            lambda *_: Generation([1, 2], 3, 0.1, 0.2, 1, 0.1, stop_reason, text=next(left)),
        )  # fmt: skip

    return fix


def test_completions_are_judged_by_the_tests_and_counted_by_verdict(tiny_apr, problems, says):
    says(["    return x + x", "    return x + 1", "    return (", "    import os\n    os.fork()"])
    record = evaluate(tiny_apr, [problems], "humaneval", device="cpu", weak=True)
    assert [s.verdict for s in record.samples] == ["passed", "failed", "syntax error", "failed"]
    shown = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert shown["pass_at"]["1"] == {"value": 0.25, "standard_error": 0.25}
    assert shown["verdicts"] == {"failed": 2, "passed": 1, "syntax error": 1}
    assert shown["confinement"]["level"]
    assert len(shown["dataset_sha256"]) == len(shown["model_sha256"]) == 64
    assert shown["results"][0]["completion"] == "    return x + x"
    assert shown["receipt"]["command"] and shown["engine"]["kernels"]


def test_several_samples_give_pass_at_several_k(tiny_apr, problems, says):
    says(["    return x * x", "    return 0"] * 4)
    drawn = Sampling(samples=2, temperature=0.8)
    record = evaluate(
        tiny_apr, [problems], "humaneval", sampling=drawn, ks=[1, 2], device="cpu", weak=True
    )
    assert {k: e.value for k, e in record.pass_at.items()} == {1: 0.5, 2: 1.0}


def test_validity_needs_code_and_leaves_out_a_line_that_the_limit_cut(tiny_apr, problems, says):
    says(["    return x\n    retu(", "\n  # nothing\n", "    return (x\n", "    if x:"], "length")
    record = evaluate(tiny_apr, [problems], "python-validity", device="cpu")
    assert [s.verdict for s in record.samples] == ["passed", "empty", "syntax error", "empty"]
    says(["    retu(", "    retu", "", "    x = 1"])  # it ended these itself
    record = evaluate(tiny_apr, [problems], "python-validity", device="cpu", floor=0.9)
    assert [s.verdict for s in record.samples] == ["syntax error", "passed", "empty", "passed"]
    assert record.missed


def test_a_real_model_ends_at_a_stop_string_the_limit_or_the_context(tiny_apr, problems):
    drawn = Sampling(samples=2, max_tokens=3, temperature=1.0, seed=5)
    first = evaluate(tiny_apr, [problems], "python-validity", sampling=drawn, device="cpu")
    again = evaluate(tiny_apr, [problems], "python-validity", sampling=drawn, device="cpu")
    texts = [s.completion for s in first.samples]
    assert texts == [s.completion for s in again.samples]
    assert len(set(texts)) > 4  # every sample has its own draws
    assert {s.stop_reason for s in first.samples} <= {"stop", "length"}
    long = evaluate(
        tiny_apr, [problems], "python-validity", most_problems=1, device="cpu",
        sampling=Sampling(max_tokens=1000, temperature=1.0),
    )  # fmt: skip
    assert long.samples[0].stop_reason in ("context", "stop")


def test_prompts_that_do_not_fit_are_counted_and_if_none_fits_it_is_an_error(
    tiny_apr, tmp_path, says
):
    long = {**PROBLEMS[0], "task_id": "long", "prompt": "x = 1\n" * 200}
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(PROBLEMS[0]) + "\n" + json.dumps(long) + "\n", encoding="utf-8")
    says(["    return x\n"])
    record = evaluate(tiny_apr, [str(path)], "python-validity", device="cpu")
    assert record.verdicts == {"passed": 1, "prompt too long": 1}
    assert "1 of 2 prompts do not fit into the context of 128" in record.notes[0]
    path.write_text(json.dumps(long) + "\n", encoding="utf-8")
    with pytest.raises(InferenceError, match="context of 128 tokens, the shortest prompt has"):
        evaluate(tiny_apr, [str(path)], "python-validity", device="cpu")


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("mmlu", {}, "--task: 'mmlu' is unknown"),
        ("humaneval", {"sampling": Sampling(samples=3)}, "--temperature: 0 gives the same"),
        ("humaneval", {"sampling": Sampling(max_tokens=0)}, "--max-tokens"),
        ("humaneval", {"sampling": Sampling(temperature=-1)}, "temperature"),
        ("humaneval", {"ks": [3]}, "-k 3: needs 3 samples"),
        ("humaneval", {"most_problems": 0}, "--problems"),
        ("humaneval", {"floor": 30.0}, "--floor: 30 is no share"),
        ("humaneval", {"limits": Limits(seconds=-1)}, "--time-limit"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_loading(problems, task, settings, message):
    with pytest.raises(UsageError, match=message):
        evaluate("no such model", [problems], task, **settings)
    with pytest.raises(UsageError, match="takes one file of problems, 0 were given"):
        evaluate("no such model", [], "humaneval")


@pytest.mark.slow
def test_the_solutions_of_humaneval_pass_and_an_empty_one_does_not(shared):
    """All 164, each with its own solution, and each with one that returns None."""
    path = shared / "humaneval" / "HumanEval.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines()
    limits = Limits(seconds=30.0)
    for line, problem in zip(lines, read_problems(str(path), TESTED), strict=True):
        solution = json.loads(line)["canonical_solution"]
        right = code.judge(problem.program(solution), limits)
        assert right.passed, (problem.task_id, right)
        assert not code.judge(problem.program("    return None\n"), limits).passed
