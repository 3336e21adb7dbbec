"""`pretrain` and `plan`: a run from configuration to result.

The promise: what stands under a final name in the run's folder is whole at every moment, a refusal
trains nothing, and a run that goes on has the losses of one that never stopped.
"""

from __future__ import annotations

import fcntl
import json
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from apr.architecture import Architecture
from apr.atomic import explain, write_text
from apr.errors import CorruptFile, FeatureUnavailable, Interrupted, StorageError, UsageError
from apr.model.decoder import Decoder, initialize
from apr.receipt import receipt
from apr.train import save
from apr.train.config import FREE_ON_RESUME, TrainConfig, check, flag
from apr.train.display import Display, Silent
from apr.train.estimate import Estimate, estimate
from apr.train.evaluate import byte_lengths, make_windows
from apr.train.log import MetricsLog
from apr.train.loop import Parts, Trainer
from apr.train.optimizer import make_optimizer
from apr.train.prepare import Prepared, machine_line, parameter_counts, prepare
from apr.train.settings import Settings, with_free_changes
from apr.train.state import State, read_newest

if TYPE_CHECKING:
    from apr.data.dataset import TokenDataset
    from apr.tokenizer import Tokenizer

Announce = Callable[[Prepared], None]
# What a run leaves in its folder, and what --force may therefore remove.
OURS = ("ckpt", "state", "tokenizer", "model.apr", "metrics.jsonl", "loss.png", "config.yaml",
        "summary.json")  # fmt: skip
KEPT = ("data", ".lock")  # shards are reused if they still fit


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


@dataclass(frozen=True)
class PlanResult:
    """What a run would be: the budget, and what it would cost."""

    prepared: Prepared
    estimate: Estimate

    def to_json(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return {
            "budget": self.prepared.budget_json(),
            "estimate": self.estimate.to_json(),
            "parameters": parameter_counts(self.prepared.architecture),
            "settings": self.prepared.settings.to_json(),
            "data": self.prepared.dataset.manifest.summary(),
            "notes": self.prepared.notes,
            "receipt": receipt(self.prepared.settings.device),
        }


def plan(config: TrainConfig) -> PlanResult:
    """Judge the budget and estimate memory and time; trains nothing.

    Shards are built where the run would build them, so that they are ready for it; without a
    `run_dir`, in a temporary folder. A refusal is no error here: the caller shows the table first.

    Raises:
        AprError: whatever is wrong with the input.
    """
    check(config)
    if config.run_dir is not None:
        _refuse_used_folder(Path(config.run_dir), force=True)
        prepared = prepare(config, Path(config.run_dir) / "data")
        return PlanResult(prepared, estimate(prepared.architecture, prepared.settings))
    with tempfile.TemporaryDirectory(prefix="apr-plan-") as folder:
        prepared = prepare(config, Path(folder) / "data")
        return PlanResult(prepared, estimate(prepared.architecture, prepared.settings))


def pretrain(
    config: TrainConfig, *, display: Display | None = None, announce: Announce = lambda _: None
) -> TrainResult:
    """Train a model as configured, or go on with `config.resume`.

    Args:
        config: what is asked for.
        display: where progress goes; default nowhere.
        announce: told what was decided, before a refusal and before step 1.

    Returns:
        The figures. A missed `target_val_loss` is told there (`target_met`), not raised.

    Raises:
        BudgetRefused: exit code 5, before anything is trained.
        TrainingDiverged, Interrupted: what is good was saved, and the message says where.
        AprError: whatever is wrong with input, machine or disk.
    """
    check(config)
    display = display or Silent()
    assert config.run_dir is not None
    run_dir = Path(config.run_dir)
    if config.resume:
        return _resume(config, run_dir, display)
    _refuse_used_folder(run_dir, config.force)
    prepared = prepare(config, run_dir / "data")
    announce(prepared)
    if prepared.refused:
        raise prepared.refusal()
    with _locked(run_dir):
        _clear(run_dir)
        _write_start(run_dir, config, prepared.tokenizer)
        return _run_new(config, run_dir, prepared, display)


# --- starting ----------------------------------------


def _run_new(
    config: TrainConfig, run_dir: Path, prepared: Prepared, display: Display
) -> TrainResult:
    settings = prepared.settings
    torch.manual_seed(settings.seed)
    model = Decoder(prepared.architecture)
    if prepared.init is None:
        initialize(model, torch.Generator().manual_seed(settings.seed))
    else:
        # Checked tensor by tensor when it was opened: nothing stays random.
        with torch.no_grad():
            for name, tensor in model.canonical_state().items():
                tensor.copy_(prepared.init.tensors[name].torch())
    fixed = {
        "preset": settings.preset,
        "init": settings.init,
        "budget": prepared.budget_json(),
        "data": prepared.dataset.manifest.summary(),
        "data_path": str(prepared.dataset.path.resolve()),
        "architecture": _architecture_json(prepared.architecture),
        "asked": config.asked(),
    }
    trainer = _trainer(
        run_dir, settings, model, prepared.tokenizer, prepared.dataset, fixed, display
    )
    trainer.parts.log.add(
        "run", step=0, settings=settings.to_json(), receipt=receipt(settings.device)
    )
    return _finish(trainer, fixed, config)


def _trainer(
    run_dir: Path,
    settings: Settings,
    model: Decoder,
    tokenizer: Tokenizer,
    dataset: TokenDataset,
    fixed: dict[str, Any],
    display: Display,
) -> Trainer:
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
        "preset": fixed["preset"],
    }


def _architecture_json(architecture: Architecture) -> dict[str, Any]:
    return asdict(architecture)


def _refuse_used_folder(run_dir: Path, force: bool) -> None:
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise StorageError(run_dir, "is a file, not a folder", "choose another --run-dir")
    try:
        found = sorted(p.name for p in run_dir.iterdir())
    except OSError as error:
        raise explain(error, run_dir) from error
    used = [name for name in found if name not in KEPT and not name.startswith(".")]
    if used and not force:
        raise StorageError(
            run_dir,
            f"holds a run already ({', '.join(used[:4])})",
            "add --resume to go on with it, --force to start over, or choose another --run-dir",
        )


def _clear(run_dir: Path) -> None:
    """Remove the files of an earlier run by name; whatever else lies there stays."""
    for name in OURS:
        path = run_dir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Hold the run's folder: two processes in it would overwrite each other.

    Raises:
        StorageError: another process trains there, or the folder cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / ".lock").open("w")
    except OSError as error:
        raise explain(error, run_dir) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageError(
                run_dir, "another apr pretrain is running here", "wait for it, or stop it"
            ) from None
        save.clean_leftovers(run_dir)
        yield


def _write_start(run_dir: Path, config: TrainConfig, tokenizer: Tokenizer) -> None:
    import yaml

    tokenizer.write_directory(run_dir / "tokenizer")
    left_out = ("resume", "force", "plan")
    asked = {k: v for k, v in config.asked().items() if k not in left_out}
    write_text(run_dir / "config.yaml", yaml.safe_dump(asked, sort_keys=False), force=True)


# --- going on ----------------------------------------


def _resume(config: TrainConfig, run_dir: Path, display: Display) -> TrainResult:
    from apr.data.dataset import open_dataset
    from apr.tokenizer import Tokenizer

    saved = read_newest(run_dir / "state", display.note)
    with _locked(run_dir):
        values = saved.values
        fixed = values["fixed"]
        settings = Settings(**values["settings"])
        _refuse_changes(config, fixed["asked"], settings)
        settings = with_free_changes(settings, config, set(config.asked()))
        _prove_same_machine(settings)
        tokenizer = Tokenizer.from_directory(run_dir / "tokenizer")
        if tokenizer.fingerprint != values["tokenizer_fingerprint"]:
            raise CorruptFile(
                run_dir / "tokenizer", "is not the tokenizer that the run was started with"
            )
        dataset = open_dataset(fixed["data_path"], tokenizer=tokenizer)
        if dataset.manifest.shards_sha256 != fixed["data"]["shards_sha256"]:
            raise UsageError(
                fixed["data_path"],
                "holds other tokens than when the run was started",
                "put the old shards back, or start a new run",
            )
        model = Decoder(Architecture(**fixed["architecture"]))
        trainer = _trainer(run_dir, settings, model, tokenizer, dataset, fixed, display)
        trainer.restore(saved)
        dropped = trainer.parts.log.rewind(trainer.progress.step)
        _say_resumed(trainer, saved, dropped)
        return _finish(trainer, fixed, replace(config, run_dir=str(run_dir)))


def _say_resumed(trainer: Trainer, saved: State, dropped: int) -> None:
    s = trainer.parts.settings
    display = trainer.parts.display
    display.note(f"machine: {machine_line(s.device, s.dtype, s.threads)}")
    display.note(
        f"resuming {saved.path} after step {trainer.progress.step:,} of {s.num_steps:,}"
        + (f" ({dropped} later log lines will be written again)" if dropped else "")
    )
    bypassed = saved.values["fixed"]["budget"].get("bypassed")
    if bypassed:
        display.note(f"budget gate BYPASSED when the run was started: {bypassed}")


def _refuse_changes(config: TrainConfig, asked: dict[str, Any], settings: Settings) -> None:
    """Refuse flags that would make it another run."""
    was = settings.to_json()
    changed = []
    for name, value in config.asked().items():
        if name in FREE_ON_RESUME:
            continue
        before = asked.get(name, was.get(name))
        if name in ("device", "dtype"):
            value = _spelled(name, value)
            before = was[name]
        if value != before:
            changed.append(f"{flag(name)} {value} (the run has {before})")
    if changed:
        raise UsageError(
            "--resume",
            "goes on with the same run, and these change it: " + ", ".join(changed),
            "leave them out, or start a new run (--init continues from its weights)",
        )


def _spelled(name: str, value: str) -> str:
    from apr.device import pick_device, pick_dtype

    if name == "dtype":
        return str(pick_dtype(value, torch.float32)).removeprefix("torch.")
    device = pick_device(value)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return str(device)


def _prove_same_machine(settings: Settings) -> None:
    from apr.device import pick_device

    try:
        pick_device(settings.device)
    except FeatureUnavailable as error:
        raise FeatureUnavailable(
            "--resume",
            f"the run was on {settings.device}: {error.what}",
            "resume it there, or start a new run with --init RUN/model.apr",
        ) from None
    torch.set_num_threads(settings.threads)


# --- ending ----------------------------------------


def _finish(trainer: Trainer, fixed: dict[str, Any], config: TrainConfig) -> TrainResult:
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
