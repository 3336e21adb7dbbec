"""Code that would do harm: each is held, by the kernel alone and by Python alone, and reported."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from apr.errors import FeatureUnavailable, InferenceError, UsageError
from apr.eval import confined
from apr.eval.confined import KERNEL, Limits, check_harness, judge

LEVEL = judge("", Limits()).confinement["level"]
HOLDERS = ["both", "python"] + (["kernel"] if LEVEL == KERNEL else [])
by = pytest.mark.parametrize("by", HOLDERS)
kernel = pytest.mark.skipif(LEVEL != KERNEL, reason="this system has no namespaces for us")

HARM = {
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "threads": "import threading\nwhile True: threading.Thread(target=input).start()",
    "a program": "import subprocess\nsubprocess.run(['true'])",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 2)",
    "file outside": "open(OUTSIDE, 'w').write('x')",
    "removal outside": "import os\nos.remove(KEPT)",
    "own folder, too large": "open('a', 'w').write('x' * (1 << 24))",
    "sys.exit": "import sys\nsys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "crash": "import os\nos.abort()",
    "interrupt": "raise KeyboardInterrupt",
    "no end to recursion": "def f(): f()\nf()",
    "flood into the report": "import os\nfor n in range(3, 64):\n"
    "    try: os.write(n, b'x' * (1 << 20))\n    except OSError: pass",
    "wrong": "assert 1 == 2",
}  # fmt: skip


@by
@pytest.mark.parametrize("name", HARM)
def test_harm_fails_and_leaves_nothing(tmp_path, by, name):
    import socket

    tmp_path.chmod(0o777)
    kept, outside = tmp_path / "kept", tmp_path / "outside"
    kept.write_text("here")
    program = HARM[name].replace("OUTSIDE", repr(str(outside))).replace("KEPT", repr(str(kept)))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        outcome = judge(program.replace("PORT", str(server.getsockname()[1])), Limits(by=by))
        with pytest.raises(BlockingIOError):
            server.accept()
    assert outcome.verdict == "failed", outcome
    assert outcome.detail
    assert kept.read_text() == "here"
    assert not outside.exists()


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("while True: pass", "timed out"),
        ("while True: print('x' * 1000000)", "timed out"),
        ("while True:\n    try:\n        while True: pass\n    except BaseException: pass",
         "timed out"),
        ("x = bytearray(10 ** 10)", "out of memory"),
        ("x = []\nwhile True: x.append('a' * 10 ** 6)", "out of memory"),
        ("def f(:", "syntax error"),
        ("(" * 100_000, "syntax error"),
        ("x = '\\0'\nassert open('f', 'w').write('x') == 1\nimport math, re, typing", "passed"),
    ],
)  # fmt: skip
def test_what_does_not_end_or_takes_too_much_has_its_own_verdict(program, verdict):
    seconds = 0.4 if verdict == "timed out" else 20.0
    outcome = judge(program, Limits(seconds=seconds, memory=256 << 20))
    assert outcome.verdict == verdict, outcome


def children():
    """Processes that judge, of this checkout."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes().split(b"\0"))
    return [line for line in found if bytes(confined._CHILD) in line]


def test_a_child_that_sleeps_is_gone_afterwards():
    judge("import time\ntime.sleep(1000)", Limits(seconds=0.3))
    assert children() == []


@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is signalled on Linux alone")
def test_it_ends_with_the_process_that_judges(tmp_path):
    """Killed without a chance to clean up, no program that it judges lives on."""
    code = "from apr.eval.confined import *; judge('while True: pass', Limits(seconds=500))"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # its folder stays behind
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 30
    while len(children()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children()) == 2
    process.kill()
    process.wait()
    while children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children() == []


def test_parsing_runs_nothing():
    assert judge("import os\nos._exit(3)", parse_only=True).verdict == "passed"
    assert judge("return = 1", parse_only=True).verdict == "syntax error"


@kernel
def test_the_harness_is_proven_before_it_judges():
    held = check_harness()
    assert held["level"] == KERNEL
    assert "network" in held and "files" in held and "processes" in held


def test_without_the_kernel_code_is_not_run_unless_that_was_asked_for():
    weak = Limits(by="python")
    with pytest.raises(FeatureUnavailable, match=r"cannot be confined.*--weak-confinement"):
        check_harness(weak)
    held = check_harness(weak, weak=True)
    assert held["level"].startswith("Python alone for network,")


def test_a_harness_that_judges_wrongly_is_an_error(monkeypatch):
    monkeypatch.setattr(confined, "_PROBES", (("assert 1 == 2", "passed"),))
    with pytest.raises(InferenceError, match="came out as failed"):
        check_harness(weak=True)


def test_an_answer_that_the_program_forged_badly_does_not_pass():
    line = json.dumps({"verdict": "perfect", "detail": ""}).encode() + b"\n"
    program = (
        f"import os\nfor n in range(3, 64):\n    try: os.write(n, {line!r})\n"
        "    except OSError: pass"
    )
    assert judge(program).verdict == "failed"


def test_limits_under_which_nothing_could_pass_are_refused():
    with pytest.raises(UsageError, match="--time-limit"):
        Limits(seconds=0).check()
    with pytest.raises(UsageError, match="--memory-limit"):
        Limits(memory=1 << 20).check()
