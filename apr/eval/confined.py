"""Judging generated code: one process a program, locked in, watched and ended.

The process has nothing of ours: an own empty folder, no environment, no network, limits of time,
memory, processes and file size. What really holds on this system (namespaces, or Python's audit
hook alone) comes back with every verdict and stands in the report.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from apr.errors import FeatureUnavailable, InferenceError, UsageError

VERDICTS = ("passed", "failed", "timed out", "out of memory", "syntax error")
KERNEL = "kernel"
START_SECONDS = 60.0
_CHILD = Path(__file__).with_name("confined_child.py")
_MOST = 1 << 16  # bytes of an answer


@dataclass(frozen=True)
class Limits:
    """Seconds on the clock, bytes of address space, bytes of a file that is written.

    `by`: what holds the program beside the limits: `kernel` (namespaces), `python` (the audit hook,
    which clever code gets around), or both.
    """

    seconds: float = 5.0
    memory: int = 512 << 20
    file_size: int = 1 << 20
    by: str = "both"

    def check(self) -> None:
        """Refuse limits under which nothing could pass.

        Raises:
            UsageError: naming the flag.
        """
        if not 0 < self.seconds < 3600:
            raise UsageError("--time-limit", f"{self.seconds:g} s is no limit", "write 5, say")
        if self.memory < 64 << 20:
            raise UsageError(
                "--memory-limit", f"{self.memory >> 20} MiB is less than Python needs", "write 512"
            )


@dataclass(frozen=True)
class Outcome:
    """A program's verdict (one of `VERDICTS`), what it died of, seconds, and what held it."""

    verdict: str
    detail: str
    seconds: float
    confinement: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether it ran to its end (or, if it was only parsed, is valid)."""
        return self.verdict == "passed"


def judge(program: str, limits: Limits | None = None, *, parse_only: bool = False) -> Outcome:
    """Run a program to its end, or only parse it, in a confined process.

    Raises:
        InferenceError: the process could not be started; the program was not judged.
        FeatureUnavailable: not a POSIX system.
    """
    if os.name != "posix":
        raise FeatureUnavailable("eval", "code is confined on POSIX systems only")
    limits = limits or Limits()
    request = json.dumps(
        {
            "program": program,
            "parse_only": parse_only,
            "seconds": limits.seconds,
            "memory": limits.memory,
            "file_size": limits.file_size,
            "by": limits.by,
        }
    )
    with tempfile.TemporaryDirectory(prefix="apr-eval-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={k: os.environ[k] for k in ("LD_LIBRARY_PATH",) if k in os.environ},
            start_new_session=True,
        )
        try:
            return _watch(process, request.encode(), limits)
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()


def _watch(process: subprocess.Popen[bytes], request: bytes, limits: Limits) -> Outcome:
    assert process.stdin is not None and process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.write(request)
        process.stdin.close()
    lines = _Lines(process.stdout.fileno())
    first = lines.read(START_SECONDS)
    if first is None:
        status = process.poll()
        raise InferenceError(
            "confined process",
            "did not start" + (f", exit status {status}" if status is not None else ""),
            "check the memory limit, and that Python can be started here",
        )
    held = json.loads(first)
    begin = time.perf_counter()
    second = lines.read(limits.seconds)
    seconds = time.perf_counter() - begin
    if second is not None:
        try:
            answer = json.loads(second)
            verdict, detail = str(answer["verdict"]), str(answer["detail"])
        except (ValueError, KeyError, TypeError):
            verdict = detail = ""
        if verdict in VERDICTS:
            return Outcome(verdict, detail, seconds, held)
        return Outcome("failed", "wrote into the report", seconds, held)
    if lines.flooded:
        return Outcome("failed", "wrote into the report", seconds, held)
    if not lines.ended:
        return Outcome("timed out", f"over {limits.seconds:g} s", seconds, held)
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
    return Outcome(*_ended(process.poll()), seconds, held)


def _ended(status: int | None) -> tuple[str, str]:
    """Verdict on a program that ended without saying how."""
    if status is None:
        return "failed", "closed its report and ran on"
    number = -status if status < 0 else status - 128
    if number == signal.SIGXCPU:
        return "timed out", "used up its processor time"
    if number == signal.SIGKILL:
        return "out of memory", "killed by the system"
    if number > 0:
        with suppress(ValueError):
            return "failed", f"crashed ({signal.Signals(number).name})"
    return "failed", f"left with exit status {status}"


class _Lines:
    """Lines of a pipe, each awaited for a time; bounded, so that a flood fills no memory."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._data = b""
        self.ended = False
        self.flooded = False

    def read(self, seconds: float) -> bytes | None:
        """The next line, or None: not within `seconds`, or (`ended`) never."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._descriptor, selectors.EVENT_READ)
            while b"\n" not in self._data and not self.ended:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return None
                part = os.read(self._descriptor, 4096)
                self._data += part
                self.flooded = len(self._data) > _MOST
                self.ended = not part or self.flooded
        line, mark, self._data = self._data.partition(b"\n")
        return line if mark else None


_PROBES = (
    ("assert 1 + 1 == 2", "passed"),
    ("assert 1 + 1 == 3", "failed"),
    ("def f(:", "syntax error"),
    ("import socket; socket.create_connection(('127.0.0.1', PORT), 1)", "failed"),
    ("import os; os.fork()", "failed"),
    ("open(OUTSIDE, 'w')", "failed"),
)


def check_harness(limits: Limits | None = None, *, weak: bool = False) -> Mapping[str, str]:
    """Prove on this machine that right passes, and that wrong and forbidden fails; what holds.

    The kernel is tried alone, without Python's audit hook before it.

    Args:
        limits: of each program.
        weak: go on with Python's audit hook alone where the kernel does not hold everything.

    Raises:
        InferenceError: it does not, so no figure would mean anything.
        FeatureUnavailable: the kernel does not, and `weak` is not set.
    """
    limits = limits or Limits()
    level = judge("", limits).confinement["level"]
    if level != KERNEL and not weak:
        raise FeatureUnavailable(
            "eval",
            f"generated code cannot be confined here: {level}, the system has no namespaces for us",
            "run it where `unshare -rn true` works, or accept that with --weak-confinement, "
            "which the record states",
        )
    alone = replace(limits, by="kernel" if level == KERNEL else limits.by)
    held: Mapping[str, str] = {}
    with (
        tempfile.TemporaryDirectory(prefix="apr-probe-", ignore_cleanup_errors=True) as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        Path(folder).chmod(0o777)
        outside = Path(folder, "file")
        names = {"PORT": str(server.getsockname()[1]), "OUTSIDE": repr(str(outside))}
        for program, expected in _PROBES:
            for name, value in names.items():
                program = program.replace(name, value)
            outcome = judge(program, alone)
            held = outcome.confinement
            if outcome.verdict != expected or outside.exists():
                raise InferenceError(
                    "confined process",
                    f"{program!r} came out as {outcome.verdict} ({outcome.detail}), not as "
                    f"{expected}",
                    "raise --time-limit or --memory-limit",
                )
    return held
