"""The engine: one loaded model, its sessions (each with its own KV cache), and generation.

Logits come out as float32 numpy arrays whatever the model computes in. All computing happens under
`inference_mode`, so mapped read-only weights are safe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Unpack

import torch

from apr import rope
from apr.architecture import Architecture
from apr.device import require_memory
from apr.engine import loop
from apr.engine.generation import Generation
from apr.engine.loop import Writing
from apr.engine.plan import Plan
from apr.engine.sampling import Sampler, Sampling
from apr.engine.session import Logits, Session
from apr.engine.speculation import PromptLookup
from apr.engine.streaming import TextStream
from apr.errors import AprError, FeatureUnavailable, InferenceError
from apr.formats.opened import OpenedModel
from apr.model import costs
from apr.model.cache import CacheRows, KVCache
from apr.model.decoder import Decoder

if TYPE_CHECKING:
    from apr.tokenizer import Tokenizer


class Engine:
    """A model that computes. Made by `load`."""

    def __init__(self, model: OpenedModel, decoder: Decoder, plan: Plan) -> None:
        self.architecture: Architecture = model.architecture
        self.plan = plan
        self._model = model
        self._decoder = decoder
        parameter = decoder.lm_head.weight
        self.device, self.dtype = parameter.device, parameter.dtype

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, made on first use; None where the file has none."""
        return self._model.tokenizer

    @property
    def context(self) -> int:
        """The longest sequence the model takes, tokens."""
        return self.architecture.max_position_embeddings

    def logits(self, ids: Sequence[int], *, last: int | None = None) -> Logits:
        """Logits after every token, `[len, vocab]`, in one pass without a cache; or after the
        `last` tokens alone, `[last, vocab]`.

        Raises:
            InferenceError: no ids, ids outside the vocabulary, or more than the context.
        """
        return self.run(ids, None, last=last)

    def forgets(self, past: int, new: int) -> bool:
        """Whether `past` positions must be computed anew with `new` further ones: where phi3's
        other rotary factors set in, as transformers does (`Rotary.stale`).
        """
        rotary = self._decoder.rotary
        return rotary is not None and rotary.stale(past, past + new)

    def session(self) -> Session:
        """A new, empty sequence."""
        return Session(self)

    def speculation_refusal(self, *, greedy: bool) -> str:
        """Why `Session.verify` cannot be had here, or the same tokens not be promised; "" if all
        is well. `greedy`: the most likely token is all that is asked of the logits.
        """
        if not self.plan.engine.startswith("torch"):
            return f"{self.plan.engine} cannot check several tokens exactly"
        if self.dtype != torch.float32:
            name = str(self.dtype).removeprefix("torch.")
            return f"several tokens at once round otherwise in {name}; float32 or the CPU kernels"
        if not greedy:
            return "with sampling or penalties it needs the CPU kernels"
        return self.changing_angles()

    def changing_angles(self) -> str:
        """Why nothing can be taken back from a cache; "" if it can."""
        kind = (self.architecture.rope_scaling or {}).get("rope_type")
        changing = kind in rope.BY_LENGTH
        return f"the angles of rope_type {kind} change with the length" if changing else ""

    def decode_batch(self, sessions: Sequence[Session], ids: Sequence[int]) -> Logits:
        """Process one further token of each session in one step; logits `[sessions, vocab]`.

        Raises:
            InferenceError: as `Session.decode`, for any of them; then none has moved on.
        """
        return Session.decode_together(self, sessions, ids)

    @property
    def looked_up_bytes(self) -> int:
        """Of the weights' bytes, those that a step leaves out: all rows but one of an embedding
        that is not the head as well.
        """
        arch = self.architecture
        if arch.tie_word_embeddings:
            return 0
        return (arch.vocab_size - 1) * arch.hidden_size * self.dtype.itemsize

    @property
    def cache_bytes_per_token(self) -> float:
        """Bytes of the cache for one position, all layers."""
        return costs.cache_bytes_per_token(self.architecture, self.dtype.itemsize)

    def cache_bytes(self, positions: int) -> int:
        """Bytes of the cache for so many positions of a sequence."""
        return int(positions * self.cache_bytes_per_token)

    def synchronize(self) -> None:
        """Wait until the device has done all it was given (before a clock is read)."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run(self, ids: Sequence[int], cache: KVCache | None, *, last: int | None = None) -> Logits:
        """Logits of a pass, `[len, vocab]`, or of its `last` positions alone, `[last, vocab]`."""
        self._check(ids, 0 if cache is None else cache.length)
        logits: Logits = self._compute([list(ids)], cache, last)[0]
        return logits

    def run_rows(self, ids: Sequence[int], rows: CacheRows) -> Logits:
        """Logits after one further token of each row, `[rows, vocab]`."""
        for id, row in zip(ids, rows.rows, strict=True):
            self._check([id], row.length)
        return self._compute([[id] for id in ids], rows)[:, 0]

    def _compute(
        self, ids: list[list[int]], cache: KVCache | CacheRows | None, last: int | None = None
    ) -> Logits:
        """Logits `[batch, len, vocab]` of ids `[batch, len]`."""
        with torch.inference_mode():
            try:
                batch = torch.tensor(ids, dtype=torch.int64, device=self.device)
                hidden = self._decoder.hidden(batch, cache)
                if last is not None:
                    hidden = hidden[:, -last:]
                logits = self._decoder.logits(hidden).float().cpu()
            except AprError:
                raise
            except (RuntimeError, MemoryError) as error:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise InferenceError(
                    "inference", f"{first} [{self.plan.device}, {self.plan.weights}]"
                ) from error
        result: Logits = logits.numpy()
        return result

    def generate(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int | None,
        *,
        stop_ids: Collection[int] | None = None,
        on_token: Callable[[int], None] | None = None,
        stream: TextStream | None = None,
        session: Session | None = None,
        speculate: int | None = None,
        keep: int | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """Continue a prompt by up to `max_tokens` tokens.

        Args:
            prompt_ids: at least one id.
            max_tokens: at least 1; prompt and continuation must fit into the context. None goes on
                to the context's end.
            stop_ids: ids that end the text; None takes the tokenizer's end-of-text ids, an empty
                collection none.
            on_token: called with each id as soon as it is known, stop ids left out.
            stream: makes the text of the ids and ends it at its stop strings.
            session: one to go on with; what it has processed is the beginning of `prompt_ids`, and
                only the rest is computed. Afterwards it holds all but the last id.
            speculate: guess up to so many tokens out of the text itself and check them in one
                pass: the same tokens, in fewer passes. None guesses nothing.
            keep: when the context is full, its first `keep` tokens stay, the older half of the
                others is dropped, what is left is computed anew, and the text goes on. None ends
                it there.
            sampling: the settings of `Sampler`; without any, greedy.

        Raises:
            FeatureUnavailable: speculation could not promise the same tokens here.
            InferenceError: the context would be exceeded (before anything is computed), ids are
                outside the vocabulary, or the logits are not finite.
            UsageError: a sampling setting is outside its range.
            GenerationStopped: Ctrl-C came; it carries what there was.
        """
        room = loop.room(self.context, len(prompt_ids), max_tokens, keep)
        self._require_cache([len(prompt_ids)], max_tokens, 0 if session is None else session.length)
        session = self.session() if session is None else session
        sampler = Sampler(**sampling)
        lookup = None
        if speculate is not None:
            lookup = PromptLookup(speculate)
            refusal = self.speculation_refusal(greedy=sampler.greedy)
            if refusal:
                raise FeatureUnavailable("speculation", refusal, "leave it off")
        writing = Writing(
            prompt_ids,
            sampler,
            cached=session.length,
            room=room,
            bounded=max_tokens is not None,
            stops=frozenset(self.stop_ids if stop_ids is None else stop_ids),
            on_token=on_token,
            stream=stream,
            lookup=lookup,
            keep=keep,
        )
        return loop.write(session, prompt_ids, writing, self.context)

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int | None,
        *,
        stop_ids: Collection[int] | None = None,
        streams: Sequence[TextStream] | None = None,
        **sampling: Unpack[Sampling],
    ) -> list[Generation]:
        """Continue several prompts, of any lengths, in lockstep: a decode step reads the weights
        once for all of them.

        The settings are those of `generate`; each text is the one that `generate` gives for its
        prompt alone, where the n-th prompt's seed is `seed + n`.

        Raises:
            GenerationStopped, InferenceError, UsageError: see `generate`.
        """
        first = sampling.get("seed", 0)
        settings: list[Sampling] = [{**sampling, "seed": first + n} for n in range(len(prompts))]
        stops = frozenset(self.stop_ids if stop_ids is None else stop_ids)
        rooms = [loop.room(self.context, len(prompt), max_tokens) for prompt in prompts]
        self._require_cache([len(prompt) for prompt in prompts], max_tokens)
        sessions = [self.session() for _ in prompts]
        writings = [
            Writing(
                prompt,
                Sampler(**settings[number]),
                cached=0,
                room=rooms[number],
                bounded=max_tokens is not None,
                stops=stops,
                on_token=None,
                stream=None if streams is None else streams[number],
            )
            for number, prompt in enumerate(prompts)
        ]

        def step(numbers: Sequence[int], ids: Sequence[int]) -> Logits:
            return self.decode_batch([sessions[number] for number in numbers], ids)

        return loop.write_together(sessions, prompts, writings, step)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokenizer's end-of-text ids; none without a tokenizer."""
        return self.tokenizer.eos_token_ids if self.tokenizer is not None else ()

    def _require_cache(
        self, prompts: Sequence[int], max_tokens: int | None, cached: int = 0
    ) -> None:
        """Refuse what the cache has no memory for: prompts and what was asked to follow them."""
        positions = [min(self.context, prompt + (max_tokens or 1) - 1) for prompt in prompts]
        require_memory(
            "cache",
            f"{sum(positions):,} positions need",
            sum(map(self.cache_bytes, positions)) - (self.cache_bytes(cached) if cached else 0),
            "use a shorter prompt or fewer tokens, or on the CPU --cache int8",
            self.device,
        )

    def _check(self, ids: Sequence[int], past: int) -> None:
        if len(ids) == 0:
            raise InferenceError("prompt", "has no tokens", "give at least one")
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.architecture.vocab_size:
            raise InferenceError(
                "prompt",
                f"token id {low if low < 0 else high} is outside the vocabulary of "
                f"{self.architecture.vocab_size}",
            )
        if past + len(ids) > self.context:
            raise InferenceError(
                "context",
                f"{past + len(ids)} positions do not fit into the model's context of "
                f"{self.context}",
                "use a shorter prompt or generate fewer tokens",
            )
