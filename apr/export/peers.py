"""Other programs that load what was written: llama.cpp and transformers, each in its own process.

A process of its own keeps their noise off our output, and an abort of theirs is a failed check and
not our end. Each peer is a module with a `main` that reads a request (JSON on stdin) and writes its
answer (an .npz). A peer that is not installed is skipped with the reason.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr.errors import AprError

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """What a peer said about a model.

    `token_ids`: of each text, without special tokens. `logits`: `[len(prompt), vocab]`, None where
    the peer gives none. `greedy`: argmax continuation of the prompt. `details`: version and other
    facts; for xllamacpp the `log_probabilities` of the first token after the prompt.
    """

    token_ids: list[list[int]]
    logits: Float32 | None
    greedy: list[int]
    details: dict[str, Any]


class PeerFailed(AprError):
    """The peer is installed and could not do it: it refused the model, crashed or hung."""


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def ask(
    peer: str,
    model: Path,
    *,
    texts: Sequence[str] = (),
    prompt: Sequence[int] = (),
    greedy: int = 0,
    threads: int | None = None,
    timeout: float = 600.0,
    **options: Any,
) -> Answer:
    """Let a peer tokenize texts, run a prompt and continue it.

    Args:
        peer: `llama_cpp`, `xllamacpp` or `transformers`.
        model: what it shall load, a GGUF file or a Hugging Face folder.
        texts: to be tokenized.
        prompt: token ids whose logits are wanted.
        greedy: tokens to continue the prompt by.
        threads: CPU threads; the peer's own choice of ours, all cores, by default.
        timeout: seconds after which it counts as hung.
        options: further settings of this peer.

    Raises:
        PeerFailed: with the last line that it printed.
    """
    request = {
        "model": str(model),
        "texts": list(texts),
        "prompt": [int(i) for i in prompt],
        "greedy": greedy,
        "threads": threads or os.cpu_count() or 1,
        **options,
    }
    with tempfile.TemporaryDirectory(prefix="apr-peer-") as folder:
        answer = Path(folder) / "answer.npz"
        request["answer"] = str(answer)
        _run(peer, model, json.dumps(request), timeout)
        if not answer.is_file():
            raise PeerFailed(model, f"{peer} ended without an answer")
        with np.load(answer, allow_pickle=False) as data:
            facts = json.loads(str(data["facts"]))
            logits = data.get("logits")
    return Answer(facts["token_ids"], logits, facts["greedy"], facts["details"])


def _run(peer: str, model: Path, request: str, timeout: float) -> None:
    command = [sys.executable, "-m", f"apr.export.peer_{peer}"]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command,
            input=request.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            env={**os.environ, **quiet},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PeerFailed(
            model, f"{peer} gave no answer within {timeout:.0f} s", "leave it out with --no-peers"
        ) from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise PeerFailed(model, f"{peer} crashed ({name}): {_reason(done.stdout)}")
    if done.returncode:
        raise PeerFailed(model, f"{peer} refused it: {_reason(done.stdout)}")


def _reason(output: bytes) -> str:
    """The most telling line of a peer's output: its last error, else its last line."""
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line]
    telling = [line for line in lines if "error" in line.lower() and "Traceback" not in line]
    # llama.cpp names the cause first and then only repeats that loading failed.
    chosen = telling[:1] + lines[-1:] if telling else lines[-1:]
    return " / ".join(dict.fromkeys(chosen))[:400] or "it said nothing"


def read_request() -> dict[str, Any]:
    """In the peer's process: what is asked."""
    request: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    return request


def write_answer(
    request: dict[str, Any],
    *,
    token_ids: list[list[int]],
    greedy: Sequence[int] = (),
    logits: Float32 | None = None,
    details: dict[str, Any] | None = None,
) -> None:
    """In the peer's process: the answer."""
    facts = {
        "token_ids": token_ids,
        "greedy": [int(i) for i in greedy],
        "details": details or {},
    }
    arrays: dict[str, Any] = {"facts": np.array(json.dumps(facts))}
    if logits is not None:
        arrays["logits"] = np.asarray(logits, dtype=np.float32)
    with Path(request["answer"]).open("wb") as file:
        np.savez(file, **arrays)
