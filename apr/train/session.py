"""A run from its pieces to its result: the same for one that starts and one that goes on."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from apr.atomic import write_text
from apr.errors import Interrupted
from apr.model.decoder import Decoder
from apr.receipt import receipt
from apr.train.display import Display
from apr.train.evaluate import byte_lengths, make_windows
from apr.train.log import MetricsLog
from apr.train.loop import Trainer
from apr.train.optimizer import make_optimizer
from apr.train.parts import Parts
from apr.train.prepare import parameter_counts
from apr.train.settings import Settings

if TYPE_CHECKING:
    from apr.data.dataset import TokenDataset
    from apr.tokenizer import Tokenizer


@dataclass(frozen=True)
class TrainResult:
    """What a run came to; losses in nats per token, times in seconds."""

    run_dir: str
    model: str | None
    last_checkpoint: str | None
    stop_reason: str
    steps: int
    num_steps: int
    train_loss: float | None
    validation: dict[str, Any] | None
    best: dict[str, Any] | None
    seconds: float
    train_seconds: float
    tokens_per_second: float | None
    tokens_seen: int
    unique_tokens: int
    data_epochs: float
    target_val_loss: float | None
    target_met: bool | None
    parameters: dict[str, int]
    budget: dict[str, Any]
    settings: dict[str, Any]
    receipt: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return asdict(self)


def make_trainer(
    run_dir: Path,
    settings: Settings,
    model: Decoder,
    tokenizer: Tokenizer,
    dataset: TokenDataset,
    fixed: dict[str, Any],
    display: Display,
) -> Trainer:
    """Put the pieces together; `fixed` is what never changes in a run and stands in every state."""
    from apr.data.batches import Batches, DataExhausted

    model.to(torch.device(settings.device))
    lengths = byte_lengths(tokenizer, model.architecture.vocab_size)
    windows = make_windows(dataset.validation, settings.seq_length, settings.eval_tokens, lengths)
    batches = Batches(
        dataset.train,
        settings.batch_size,
        settings.seq_length,
        settings.seed,
        # "error" was judged before the start; from here on both end the run in good order.
        "repeat" if settings.on_exhausted == "repeat" else "stop",
    )
    optimizer = make_optimizer(
        model,
        lr=settings.lr,
        beta1=settings.beta1,
        beta2=settings.beta2,
        weight_decay=settings.weight_decay,
    )
    parts = Parts(
        run_dir=run_dir,
        name=run_dir.resolve().name,
        model=model,
        tokenizer=tokenizer,
        optimizer=optimizer,
        batches=batches,
        windows=windows,
        settings=settings,
        log=MetricsLog(run_dir / "metrics.jsonl"),
        display=display,
        record=lambda figures: _record(settings, fixed, figures),
        saved_values={"settings": settings.to_json(), "fixed": fixed,
                      "tokenizer_fingerprint": tokenizer.fingerprint},
        exhausted=DataExhausted,
    )  # fmt: skip
    return Trainer(parts)


def _record(settings: Settings, fixed: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """The training record of a checkpoint (docs/spec/training.md)."""
    s = settings
    return {
        **figures,
        "seq_len": s.seq_length,
        "batch_size": s.batch_size,
        "grad_accum": s.grad_accum,
        "peak_lr": s.lr,
        "min_lr_ratio": s.min_lr_ratio,
        "schedule": s.schedule,
        "warmup_steps": s.warmup_steps,
        "num_steps": s.num_steps,
        "seed": s.seed,
        "mode": s.mode,
        "optimizer": {
            "name": "AdamW",
            "fused": True,
            "beta1": s.beta1,
            "beta2": s.beta2,
            "eps": 1e-8,
            "weight_decay": s.weight_decay,
            "decayed": "tensors of two and more dimensions",
            "grad_clip": s.grad_clip,
        },
        "dtype": s.dtype,
        "device": s.device,
        "budget": fixed["budget"],
        "data": fixed["data"],
        "receipt": receipt(s.device),
        "init": fixed["init"],
        "origin": fixed.get("origin"),
        "preset": fixed["preset"],
    }


def finish(trainer: Trainer, fixed: dict[str, Any]) -> TrainResult:
    """Train, then write down what it came to; the interrupted run becomes an error here."""
    parts = trainer.parts
    parts.display.start()
    try:
        reason = trainer.train()
    finally:
        parts.display.stop()
    result = _result(trainer, fixed, reason)
    if reason == "interrupted":
        raise Interrupted(
            parts.run_dir,
            f"stopped by {trainer.stop_signal} after step {trainer.progress.step:,} of "
            f"{parts.settings.num_steps:,}, all is saved",
            "resume with: " + resume_command(parts.run_dir),
        )
    parts.log.add("end", step=trainer.progress.step, reason=reason, seconds=result.seconds)
    parts.log.flush(durable=True)
    trainer.draw()
    write_text(
        parts.run_dir / "summary.json", json.dumps(result.to_json(), indent=1) + "\n", force=True
    )
    return result


def resume_command(run_dir: Path) -> str:
    """The command that goes on with a run."""
    return shlex.join(["apr", "pretrain", "--run-dir", str(run_dir), "--resume"])


def _result(trainer: Trainer, fixed: dict[str, Any], reason: str) -> TrainResult:
    parts, progress = trainer.parts, trainer.progress
    s, batches = parts.settings, parts.batches
    best = progress.best_evaluation
    target = s.target_val_loss
    model = parts.run_dir / "model.apr"
    loss = progress.last_loss
    return TrainResult(
        run_dir=str(parts.run_dir),
        model=str(model) if model.exists() else None,
        last_checkpoint=str(parts.run_dir / progress.last_checkpoint)
        if progress.last_checkpoint
        else None,
        stop_reason=reason,
        steps=progress.step,
        num_steps=s.num_steps,
        train_loss=None if loss != loss else loss,
        validation=progress.last_evaluation,
        best=best,
        seconds=trainer.total_seconds(),
        train_seconds=progress.train_seconds,
        tokens_per_second=batches.tokens_seen / progress.train_seconds
        if progress.train_seconds
        else None,
        tokens_seen=batches.tokens_seen,
        unique_tokens=batches.unique_tokens,
        data_epochs=batches.tokens_seen / max(1, batches.unique_tokens),
        target_val_loss=target,
        target_met=None if target is None else best is not None and best["loss"] <= target,
        parameters=parameter_counts(parts.model.architecture),
        budget=fixed["budget"],
        settings=s.to_json(),
        receipt=receipt(s.device),
    )
