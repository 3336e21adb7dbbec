"""Problems for generated code: a JSONL file of prompts, with tests (HumanEval) or without.

HumanEval's fields are those of openai/human-eval: `task_id`, `prompt`, `entry_point`, `test`. A
file is read whole or not at all: what is broken is an error with its line, nothing is left out.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.errors import InvalidFormat, NotFound, UsageError

# Where a completion ends, beside the end-of-text token: Chen et al. 2021 (arXiv 2107.03374), 2.1.
STOP_STRINGS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
TESTED = ("task_id", "prompt", "entry_point", "test")
UNTESTED = ("prompt",)
_SHOWN = 5


@dataclass(frozen=True)
class Problem:
    """A prompt; what judges the completion is the rest, empty where it is only parsed."""

    task_id: str
    prompt: str
    entry_point: str = ""
    test: str = ""

    def program(self, completion: str) -> str:
        """The program that passes if the completion is right, as human-eval puts it together."""
        return f"{self.prompt}{completion}\n{self.test}\ncheck({self.entry_point})"


def read_problems(path: str, needed: tuple[str, ...]) -> list[Problem]:
    """The problems of a `.jsonl` or `.jsonl.gz` file.

    Args:
        path: the file.
        needed: fields that every line must have, as strings; `task_id` is the line's number where
            it is not among them.

    Raises:
        NotFound: no such file.
        InvalidFormat: it cannot be unpacked, has no problem, or broken ones: the first are named.
    """
    problems: list[Problem] = []
    broken: list[str] = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        found = _problem(line, number, needed)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            broken.append(f"line {number}: {found}")
    twice = [f"{id} is there {n} times" for id, n in _ids(problems).items() if n > 1]
    if wrong := broken + twice:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InvalidFormat(path, "; ".join(wrong[:_SHOWN]) + more, "correct the file")
    if not problems:
        raise InvalidFormat(path, "holds no problem", f"write lines with {', '.join(needed)}")
    return problems


def _ids(problems: list[Problem]) -> Counter[str]:
    return Counter(problem.task_id for problem in problems)


def _text(path: str) -> str:
    file = Path(path)
    if not file.exists():
        raise NotFound(path, "no such file")
    if not file.is_file():
        raise NotFound(path, "is no file", "name one JSONL file of problems")
    data = file.read_bytes()
    try:
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except (EOFError, OSError, zlib.error) as error:
        raise InvalidFormat(path, f"the gzip stream is damaged ({error})") from None
    except UnicodeDecodeError as error:
        raise InvalidFormat(path, f"byte {error.start} is no UTF-8", "give a JSONL file") from None


def _problem(line: str, number: int, needed: tuple[str, ...]) -> Problem | str:
    """The problem, or what is wrong with it."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({getattr(error, 'msg', 'too deep')})"
    if not isinstance(value, dict):
        return f"a JSON {type(value).__name__}, not an object"
    missing = [name for name in needed if name not in value]
    if missing:
        there = ", ".join(map(str, list(value)[:8])) or "none"
        return f"has no {', '.join(missing)} (there are: {there})"
    for name in needed:
        if not isinstance(value[name], str):
            return f"{name} is {type(value[name]).__name__}, not a string"
        if not value[name]:
            return f"{name} is empty"
        try:
            value[name].encode()
        except UnicodeEncodeError:
            return f"{name} holds half a surrogate pair, which is no character"
    if "entry_point" in needed and not value["entry_point"].isidentifier():
        return f"entry_point {value['entry_point']!r} is no name"
    id = value.get("task_id", f"line {number}")
    return Problem(str(id), *(str(value.get(n, "")) for n in ("prompt", "entry_point", "test")))


def choose(problems: list[Problem], most: int | None) -> list[Problem]:
    """The first `most` problems; None: all.

    Raises:
        UsageError: fewer than one.
    """
    if most is not None and most < 1:
        raise UsageError("--problems", f"{most} is less than 1", "leave it out to take all")
    return problems if most is None else problems[:most]
