"""Validation: loss, its standard error, bits per byte, and a sample of text.

The windows are fixed for the whole run, so that evaluations differ by the model alone, and two of
them can be compared sequence by sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from apr.model.cache import KVCache
from apr.model.decoder import Decoder
from apr.model.loss import token_losses

if TYPE_CHECKING:
    from apr.tokenizer import Tokenizer

Autocast = Callable[[], AbstractContextManager[Any]]
TEMPERATURE = 0.8
PROBE_TOKENS = 256


class TokenSource(Protocol):
    """What is needed of a `TokenArray`."""

    def __len__(self) -> int:
        """Number of tokens."""

    def slice(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The ids from `start` to before `stop`."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation; losses in nats per token, `per_sequence` `[sequences]` float64."""

    step: int
    loss: float
    standard_error: float | None
    bits_per_byte: float
    tokens: int
    per_sequence: npt.NDArray[np.float64]

    def against(self, best: Evaluation | npt.NDArray[np.float64]) -> tuple[float, float]:
        """This loss minus the other's over the same sequences, and its standard error."""
        other = best.per_sequence if isinstance(best, Evaluation) else best
        difference = self.per_sequence - other
        error = _standard_error(difference)
        return float(difference.mean()), math.inf if error is None else error


@dataclass(frozen=True)
class Windows:
    """Validation sequences `[n, seq + 1]` and the number of text bytes in their targets."""

    ids: torch.Tensor
    target_bytes: int

    @property
    def num_tokens(self) -> int:
        """Tokens that are predicted."""
        return self.ids.shape[0] * (self.ids.shape[1] - 1)


def make_windows(
    tokens: TokenSource, seq_length: int, eval_tokens: int, byte_lengths: npt.NDArray[np.int64]
) -> Windows:
    """Up to `eval_tokens` tokens of the validation split in windows spread evenly over it.

    `byte_lengths` `[vocab]`: bytes of text that a token stands for, 0 for special tokens.

    A split shorter than one sequence gives one shorter window (`apr.data.validation_windows`).
    """
    from apr.data.batches import validation_batches

    parts = list(validation_batches(tokens, 256, seq_length, eval_tokens))
    ids = np.concatenate(parts)
    return Windows(torch.from_numpy(ids), int(byte_lengths[ids[:, 1:]].sum()))


def byte_lengths(tokenizer: Tokenizer, vocab_size: int) -> npt.NDArray[np.int64]:
    """Bytes of text of every id, `[vocab]`; special tokens and fillers are no text."""
    count = min(vocab_size, tokenizer.vocab_size)
    lengths = np.zeros(vocab_size, dtype=np.int64)
    for i in range(count):
        if not (tokenizer.is_special(i) or tokenizer.is_filler(i)):
            lengths[i] = len(tokenizer.token_bytes(i))
    return lengths


def model_losses(model: Decoder, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`token_losses` with the head and the soft cap of this model, `[batch, seq]`."""
    cap = model.architecture.final_logit_softcap
    return token_losses(hidden, model.lm_head.weight, targets, cap)


def evaluate(
    model: Decoder, windows: Windows, *, step: int, batch_size: int, autocast: Autocast
) -> Evaluation:
    """Loss over all windows. Bits per byte counts every token's nats, and the bytes of text."""
    device = model.lm_head.weight.device
    means = []
    with torch.inference_mode():
        for part in torch.split(windows.ids, batch_size):
            ids = part.to(device)
            with autocast():
                losses = model_losses(model, model.hidden(ids[:, :-1]), ids[:, 1:])
            means.append(losses.double().mean(dim=1).cpu())
    per_sequence = torch.cat(means).numpy()
    loss = float(per_sequence.mean())
    nats = loss * windows.num_tokens
    bits = nats / math.log(2) / windows.target_bytes if windows.target_bytes else math.nan
    return Evaluation(
        step, loss, _standard_error(per_sequence), bits, windows.num_tokens, per_sequence
    )


def probe(model: Decoder, windows: Windows) -> dict[str, Any]:
    """Held-out ids and the loss of `ids[1:]` on them, for `apr qa` to compute again.

    Always in float32: whoever changes a weight, a rotary pairing or the tokenizer afterwards moves
    it, and can be held to the bit patterns that the file stores.
    """
    ids = windows.ids[0, : PROBE_TOKENS + 1]
    device = model.lm_head.weight.device
    with torch.inference_mode():
        states = model.hidden(ids[None, :-1].to(device))
        losses = model_losses(model, states, ids[None, 1:].to(device))
    return {"ids": ids.tolist(), "loss": float(losses.double().mean()), "dtype": "float32"}


def _standard_error(values: npt.NDArray[np.float64]) -> float | None:
    if len(values) < 2:
        return None
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def sample(
    model: Decoder, tokenizer: Tokenizer, prompt: list[int], count: int, *, seed: int
) -> tuple[str, str]:
    """A short continuation of `prompt` at temperature 0.8; prompt and continuation as text.

    Draws from its own generator: the run's random numbers do not move.
    """
    arch = model.architecture
    device = model.lm_head.weight.device
    prompt = prompt[: max(1, arch.max_position_embeddings // 4)]
    count = min(count, arch.max_position_embeddings - len(prompt))
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache(arch, 1, device=device, dtype=model.lm_head.weight.dtype)
    out: list[int] = []
    feed = prompt
    with torch.inference_mode():
        for _ in range(count):
            ids = torch.tensor([feed], device=device)
            logits = model.logits(model.hidden(ids, cache)[:, -1]).float().cpu()[0]
            chosen = int(
                torch.multinomial((logits / TEMPERATURE).softmax(-1), 1, generator=generator)
            )
            out.append(chosen)
            if chosen in tokenizer.eos_token_ids:
                break
            feed = [chosen]
    return tokenizer.decode(prompt), tokenizer.decode(out)
