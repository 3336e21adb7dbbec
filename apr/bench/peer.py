"""llama.cpp as the other side of a measurement: a process that holds one model and runs tests.

Purpose: start it, give it tests, turn what goes wrong into one line. Promise: the peer runs at its
own defaults. Where its extra buffer types (weights repacked for the processor, AMX tiles among
them) crash it, it runs without them, and the note says so.

The known cause of that crash: GCC before 12.4, 13.3 and 14 (its bug 114098) loses most of a tile
configuration, so that a llama.cpp built by it faults at `ldtilecfg`. A build by a newer GCC or by
clang does not; `LLAMA_CPP_LIB_PATH` names the folder of another build's libraries.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from apr.bench.sizes import Test
from apr.errors import FeatureUnavailable, InferenceError, UsageError

NAME = "llama.cpp"
WITHOUT = (
    "peer without extra buffer types: they crash here (a build by GCC before 12.4 or 13.3 does "
    "that with AMX; build it with another compiler)"
)


def check(path: Path, format: str) -> None:
    """Refuse what the peer cannot measure, before anything is loaded.

    Raises:
        FeatureUnavailable: llama-cpp-python is not installed.
        UsageError: the model is no GGUF file.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise FeatureUnavailable(
            NAME, "its package llama-cpp-python is not installed", "pip install 'apr[exact]'"
        )
    if format != "gguf":
        raise UsageError(
            f"--against {NAME}",
            f"{path} is no GGUF file, and {NAME} reads no other",
            f"first: apr export {path} --format gguf -o {path.stem or 'model'}.gguf",
        )


class Peer:
    """A process of llama.cpp with a model loaded. A context manager: it ends with the block.

    `extra_buffers`: None tries them and does without where they crash.
    """

    def __init__(self, path: Path, threads: int, extra_buffers: bool | None = None) -> None:
        self.path, self.threads = path, threads
        self.notes: list[str] = []
        self.peak_rss: int | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        if extra_buffers is not None:
            self._start(extra_buffers=extra_buffers)
            return
        try:
            self._start(extra_buffers=True)
            self.run(Test("pp", 2))
            self.run(Test("tg", 2))
        except InferenceError:
            if (self._process.poll() or 0) >= 0:  # refused, not crashed
                self.close()
                raise
            self._end()
            self._start(extra_buffers=False)
            self.notes.append(WITHOUT)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, *, extra_buffers: bool) -> None:
        self.extra_buffers = extra_buffers
        self._process = subprocess.Popen(
            [sys.executable, "-m", "apr.bench.peer_llama_cpp"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=dict(os.environ),
            text=True,
        )
        self.facts = self._ask(
            {
                "model": str(self.path),
                "threads": self.threads,
                "extra_buffers": extra_buffers,
            }
        )

    def run(self, test: Test) -> tuple[float, float]:
        """Seconds of one run of a test, and to the first token (0 for a decode).

        Raises:
            InferenceError: the peer crashed or refused; the message has its last line.
        """
        said = self._ask(
            {"kind": test.kind, "tokens": test.tokens, "depth": test.depth, "batch": test.batch}
        )
        self.peak_rss = said["peak_rss"]
        return said["seconds"], said["first_token"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            how = f"crashed ({signal.Signals(-code).name})" if code < 0 else "stopped"
            raise InferenceError(NAME, f"{how}: {self._last_line()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_line(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").splitlines()
        telling = [text.strip() for text in lines if "error" in text.lower()] or lines
        return telling[-1][:300] if telling else "it said nothing"

    def close(self) -> None:
        """End the process."""
        self._end()
        self._errors.close()

    def _end(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class PeerWorkload:
    """One test on the peer, with the face of `Workload`."""

    def __init__(self, peer: Peer, test: Test) -> None:
        self._peer, self._test = peer, test
        self.first_token = 0.0

    def run(self) -> float:
        """Seconds of one run."""
        seconds, self.first_token = self._peer.run(self._test)
        return seconds
