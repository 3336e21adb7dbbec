"""In its own process: llama.cpp through `llama-cpp-python`, timed as `Workload` times our engine.

Speaks one line of JSON for each line it is given: first the settings, then the tests, until stdin
ends. Run by `apr.bench.peer`. Its settings are the peer's own defaults, but for threads, the
length of the context, and the extra buffer types (weights repacked for this processor) where the
parent asks to do without.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import numpy as np

from apr.bench.memory import peak_rss, resident
from apr.bench.workload import SEED


def main() -> None:
    """Answer until there is nothing more to answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the library prints is no answer
    lines = (json.loads(line) for line in sys.stdin)
    settings = next(lines)
    import llama_cpp

    before = resident()
    peer = _Peer(llama_cpp, settings)
    hello = {
        "version": llama_cpp.__version__,
        "system": llama_cpp.llama_print_system_info().decode(),
        "load_seconds": peer.load_seconds,
        "vocab": peer.vocab,
        "resident_before": before,
    }
    _answer(answers, hello)
    for request in lines:
        seconds, first = peer.run(**request)
        _answer(answers, {"seconds": seconds, "first_token": first, "peak_rss": peak_rss()})


def _answer(answers: TextIO, values: dict[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


class _Peer:
    """A loaded model, and one context for each shape of test."""

    def __init__(self, library: Any, settings: dict[str, Any]) -> None:
        self._library, self._threads = library, int(settings["threads"])
        library.llama_backend_init()
        started = time.perf_counter()
        params = library.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = settings["extra_buffers"]
        self._model = library.llama_model_load_from_file(settings["model"].encode(), params)
        if not self._model:
            raise SystemExit("error: the model could not be loaded")
        self.load_seconds = time.perf_counter() - started
        self.vocab = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model))
        self._contexts: dict[tuple[int, int], Any] = {}

    def run(self, kind: str, tokens: int, depth: int, batch: int) -> tuple[float, float]:
        """Seconds of one run, and for a prompt those to the chosen token (else 0)."""
        library = self._library
        started = time.perf_counter()
        # The first run of a test makes its context; it is a warm-up.
        context = self._context(batch, depth + tokens + 1)
        memory = library.llama_get_memory(context)
        library.llama_memory_clear(memory, True)
        ids = np.random.default_rng(SEED).integers(0, self.vocab, depth + tokens + 1)
        begin = 0
        if kind == "tg" or depth:
            begin = depth or 1
            for call in self._calls(context, ids[:begin], 0, batch, together=True):
                call()
        calls = list(self._calls(context, ids[begin : begin + tokens], begin, batch, kind == "pp"))
        library.llama_synchronize(context)
        start = time.perf_counter()
        for call in calls:
            call()
        library.llama_synchronize(context)
        end = time.perf_counter()
        if kind == "tg":
            return end - start, 0.0
        logits = library.llama_get_logits_ith(context, -1)
        int(np.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())
        return end - start, time.perf_counter() - (start if depth else started)

    def _context(self, batch: int, length: int) -> Any:
        if (batch, length) not in self._contexts:
            library = self._library
            for context in self._contexts.values():
                library.llama_free(context)
            params = library.llama_context_default_params()
            params.n_ctx, params.n_seq_max = length * batch, batch
            params.n_threads = params.n_threads_batch = self._threads
            params.no_perf = True
            context = library.llama_init_from_model(self._model, params)
            if not context:
                raise SystemExit(f"error: no context of {length} tokens could be made")
            self._contexts = {(batch, length): context}
        return self._contexts[batch, length]

    def _calls(
        self, context: Any, ids: Any, position: int, batch: int, together: bool
    ) -> Iterator[Callable[[], None]]:
        """What processes `ids` in each of `batch` sequences: in pieces, or one by one."""
        library = self._library
        size = min(2048 // batch, len(ids)) if together else 1
        for start in range(0, len(ids), size):
            part = [int(i) for i in ids[start : start + size]]
            if batch == 1:
                array = (ctypes.c_int32 * len(part))(*part)
                made = library.llama_batch_get_one(array, len(part))
            else:
                array = None
                made = _rows(library, part, position + start, batch)

            def call(made: Any = made, array: Any = array) -> None:
                if library.llama_decode(context, made) != 0:
                    raise SystemExit("error: llama_decode failed")

            yield call


def _rows(library: Any, ids: list[int], position: int, batch: int) -> Any:
    """A llama_batch of the same ids in each of `batch` sequences; logits after the last ones."""
    made = library.llama_batch_init(len(ids) * batch, 0, 1)
    made.n_tokens = len(ids) * batch
    for sequence in range(batch):
        for offset, token in enumerate(ids):
            at = sequence * len(ids) + offset
            made.token[at] = token
            made.pos[at] = position + offset
            made.n_seq_id[at] = 1
            made.seq_id[at][0] = sequence
            made.logits[at] = offset == len(ids) - 1
    return made


if __name__ == "__main__":
    main()
