"""Problem files: every broken line is named, nothing is left out."""

import gzip
import json

import pytest

from apr.errors import InvalidFormat, NotFound
from apr.eval.problems import TESTED, UNTESTED, read_problems

GOOD = {"task_id": "T/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(c): c()"}


def write(path, *lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return str(path)


def test_the_shared_file_has_its_164_problems(shared):
    found = read_problems(str(shared / "humaneval" / "HumanEval.jsonl.gz"), TESTED)
    assert len(found) == 164
    assert found[0].program("    pass").endswith("check(has_close_elements)")


def test_a_program_is_prompt_completion_and_test(tmp_path):
    problem = read_problems(write(tmp_path / "p.jsonl", GOOD, ""), TESTED)[0]
    assert problem.program("    pass") == "def f():\n    pass\ndef check(c): c()\ncheck(f)"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2: a JSON list, not an object"),
        ({"task_id": "T/1", "prompt": "x"}, r"line 2: has no entry_point, test \(there are: task"),
        ({**GOOD, "task_id": "T/1", "prompt": 5}, "line 2: prompt is int, not a string"),
        ({**GOOD, "task_id": "T/1", "test": ""}, "line 2: test is empty"),
        ({**GOOD, "task_id": "T/1", "entry_point": "f(); g"}, r"entry_point 'f\(\); g' is no name"),
        ({**GOOD, "task_id": "T/1", "prompt": "\ud800"}, "half a surrogate"),
        (GOOD, "T/0 is there 2 times"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    with pytest.raises(InvalidFormat, match=message):
        read_problems(write(tmp_path / "p.jsonl", GOOD, line), TESTED)


def test_files_that_are_empty_damaged_or_absent(tmp_path):
    with pytest.raises(InvalidFormat, match="holds no problem"):
        read_problems(write(tmp_path / "empty.jsonl", ""), TESTED)
    whole = gzip.compress(json.dumps(GOOD).encode())
    (tmp_path / "cut.gz").write_bytes(whole[:-9])
    with pytest.raises(InvalidFormat, match="gzip stream is damaged"):
        read_problems(str(tmp_path / "cut.gz"), TESTED)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidFormat, match="no UTF-8"):
        read_problems(str(tmp_path / "binary"), TESTED)
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(NotFound):
            read_problems(str(path), TESTED)


def test_prompts_alone_are_enough_where_code_is_only_parsed(tmp_path):
    found = read_problems(write(tmp_path / "p.jsonl", {"prompt": "def f():\n"}), UNTESTED)
    assert (found[0].task_id, found[0].prompt) == ("line 1", "def f():\n")
