"""What a run really does: every value decided, with a note for each that the user left open.

The rules stand in `docs/spec/training.md`. Settings are saved with the state, so that a resumed
run never decides anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from apr import families
from apr.architecture import Architecture
from apr.errors import GateFailed, UsageError
from apr.train.config import TrainConfig
from apr.train.presets import Recipe, aux_loss, rule
from apr.train.schedule import Schedule

TOKENS_PER_PARAMETER = 20  # what a run without --num-steps and --max-tokens aims for ...
MAX_PASSES = 4  # ... as long as that is no more than this many passes over the data
EPOCHS = 10  # saves in a run without --steps-per-epoch
CONTINUE_LR = 0.1  # of the rule's peak rate, when training goes on from trained weights
CONTINUE_SEQ = 1024


@dataclass(frozen=True)
class Settings:
    """The decided values; lengths are tokens, `lr` is the peak."""

    mode: str
    preset: str | None
    init: str | None
    num_steps: int
    warmup_steps: int
    steps_per_epoch: int
    batch_size: int
    seq_length: int
    grad_accum: int
    lr: float
    min_lr_ratio: float
    schedule: str
    decay_fraction: float
    weight_decay: float
    beta1: float
    beta2: float
    grad_clip: float
    seed: int
    on_exhausted: str
    eval_tokens: int
    sample_tokens: int
    log_interval: int
    save_every: int | None
    keep_checkpoints: int | None
    patience: int | None
    target_val_loss: float | None
    compile: bool
    device: str
    dtype: str
    threads: int
    aux_loss: float = 0.0

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step sees."""
        return self.batch_size * self.grad_accum * self.seq_length

    @property
    def planned_tokens(self) -> int:
        """Tokens that the whole run sees."""
        return self.num_steps * self.tokens_per_step

    def lr_schedule(self) -> Schedule:
        """The learning rate by step."""
        return Schedule(
            self.schedule,
            self.lr,
            self.num_steps,
            self.warmup_steps,
            self.min_lr_ratio,
            self.decay_fraction,
        )

    def to_json(self) -> dict[str, Any]:
        """All values, JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Machine:
    """What will compute: resolved and proven before anything else."""

    device: str
    dtype: str
    threads: int


def seq_length(config: TrainConfig, recipe: Recipe | None, init: Architecture | None) -> int:
    """The sequence length of the run, decided first: the architecture depends on it.

    Raises:
        UsageError: longer than the context of the `--init` model.
    """
    if init is None:
        assert recipe is not None
        return config.seq_length or recipe.seq_length
    limit = init.max_position_embeddings
    if config.seq_length is not None and config.seq_length > limit:
        raise UsageError(
            "--seq-length",
            f"{config.seq_length} exceeds the {limit} positions of the --init model",
            f"write --seq-length {limit} or less",
        )
    return config.seq_length or min(limit, CONTINUE_SEQ)


def decide(
    config: TrainConfig,
    architecture: Architecture,
    recipe: Recipe | None,
    machine: Machine,
    train_tokens: int,
    windows: Callable[[int, int], int],
) -> tuple[Settings, list[str]]:
    """Settings and one note for each value that was decided here and matters.

    Args:
        config: what was asked.
        architecture: of the model to be trained.
        recipe: of the preset; None with `--init`.
        machine: device, dtype, threads.
        train_tokens: unique tokens of the training split.
        windows: how many sequences of the split one pass gives, by (batch size, length); raises
            what is to be raised if that is less than one batch.

    Raises:
        UsageError: values that contradict each other.
        GateFailed: `--on-exhausted error`, and the data cannot last for the planned steps.
    """
    notes: list[str] = []
    length = seq_length(config, recipe, None if config.init is None else architecture)
    batch, accum, lr = _batch_and_lr(config, architecture, recipe, length, notes)
    per_step = batch * accum * length
    num_steps = _num_steps(config, architecture, recipe, per_step, train_tokens, notes)
    lasts = windows(batch, length) // (batch * accum)
    num_steps = _within_data(config, num_steps, lasts, notes)
    warmup = config.warmup_steps
    if warmup is None:
        warmup = min(2000, num_steps // 20)
        if recipe is not None and recipe.warmup_steps is not None:
            warmup = min(recipe.warmup_steps, num_steps // 5)
    elif warmup >= num_steps:
        raise UsageError(
            "--warmup-steps",
            f"{warmup} leaves nothing of {num_steps} steps",
            f"write less, e.g. --warmup-steps {num_steps // 20}",
        )
    per_epoch = config.steps_per_epoch
    if per_epoch is None:
        per_epoch = -(-num_steps // EPOCHS)
        notes.append(f"evaluates and saves every {per_epoch} steps (a tenth of the run)")
    settings = Settings(
        mode="continue" if config.init else "from-scratch",
        preset=config.preset,
        init=config.init,
        num_steps=num_steps,
        warmup_steps=warmup,
        steps_per_epoch=min(per_epoch, num_steps),
        batch_size=batch,
        seq_length=length,
        grad_accum=accum,
        lr=lr,
        min_lr_ratio=config.min_lr_ratio,
        schedule=config.schedule,
        decay_fraction=config.decay_fraction,
        weight_decay=config.weight_decay,
        beta1=config.beta1,
        beta2=config.beta2 if config.beta2 is not None else (recipe.beta2 if recipe else 0.95),
        grad_clip=config.grad_clip,
        seed=config.seed,
        on_exhausted=config.on_exhausted,
        eval_tokens=config.eval_tokens,
        sample_tokens=config.sample_tokens,
        log_interval=config.log_interval or max(1, num_steps // 50),
        save_every=config.save_every,
        keep_checkpoints=config.keep_checkpoints,
        patience=config.patience,
        target_val_loss=config.target_val_loss,
        compile=config.compile,
        device=machine.device,
        dtype=machine.dtype,
        threads=machine.threads,
        aux_loss=aux_loss(architecture),
    )
    return settings, notes


def _batch_and_lr(
    config: TrainConfig,
    architecture: Architecture,
    recipe: Recipe | None,
    length: int,
    notes: list[str],
) -> tuple[int, int, float]:
    lr, tokens = rule(families.num_parameters(architecture, embedding=False, active=True))
    if recipe is None:
        lr = float(f"{CONTINUE_LR * lr:.2g}")
        batch = config.batch_size or max(1, min(16, tokens // length, 16_384 // length))
    else:
        lr = recipe.lr
        tokens = recipe.batch_size * recipe.grad_accum * recipe.seq_length
        # Another sequence length keeps the tokens of a micro-batch, hence memory and the rule.
        same = recipe.batch_size * recipe.seq_length // length
        batch = config.batch_size or max(1, same)
    if config.grad_accum is not None:
        accum = config.grad_accum
    elif config.batch_size is not None:
        accum = 1  # who says how large a batch is, gets exactly that
    else:
        accum = max(1, round(tokens / (batch * length)))
    if config.lr is None:
        notes.append(f"peak learning rate {lr:g}, {batch * accum * length:,} tokens a step")
    return batch, accum, config.lr if config.lr is not None else lr


def _num_steps(
    config: TrainConfig,
    architecture: Architecture,
    recipe: Recipe | None,
    per_step: int,
    train_tokens: int,
    notes: list[str],
) -> int:
    limits = []
    if config.num_steps is not None:
        limits.append(config.num_steps)
    if config.max_tokens is not None:
        if config.max_tokens < per_step:
            raise UsageError(
                "--max-tokens",
                f"{config.max_tokens:,} is less than the {per_step:,} tokens of one step",
                "write more, or a smaller --batch-size or --seq-length",
            )
        limits.append(config.max_tokens // per_step)
    if limits:
        return min(limits)
    if recipe is not None and recipe.num_steps is not None:
        return recipe.num_steps
    wanted = TOKENS_PER_PARAMETER * families.num_parameters(architecture, active=True)
    passes = MAX_PASSES * train_tokens
    steps = max(1, min(wanted, passes) // per_step)
    why = (
        f"{TOKENS_PER_PARAMETER} tokens per parameter"
        if wanted <= passes
        else f"{MAX_PASSES} passes over the data"
    )
    notes.append(f"{steps:,} steps: {why} (--num-steps or --max-tokens to choose)")
    return steps


def _within_data(config: TrainConfig, num_steps: int, lasts: int, notes: list[str]) -> int:
    """The steps that the data allows under the policy; `lasts`: steps of one pass over it."""
    if num_steps <= lasts:
        return num_steps
    if config.on_exhausted == "repeat":
        passes = f"{num_steps / lasts:.1f} passes" if lasts else "several passes"
        notes.append(f"the data lasts for {lasts:,} steps and is repeated then: {passes}")
        return num_steps
    if config.on_exhausted == "error":
        raise GateFailed(
            "--on-exhausted error",
            f"the data lasts for {lasts:,} steps, {num_steps:,} are planned",
            f"write --num-steps {max(1, lasts)}, add text, or choose --on-exhausted repeat",
        )
    if lasts < 1:
        raise GateFailed(
            "--on-exhausted stop",
            "the data does not last for one step",
            "add text, or write a smaller --batch-size, --grad-accum or --seq-length",
        )
    notes.append(f"stops after {lasts:,} of {num_steps:,} steps: the data is used up then")
    return lasts


def with_free_changes(settings: Settings, config: TrainConfig, asked: set[str]) -> Settings:
    """The saved settings of a run that goes on, with what may change on resuming."""
    changes: dict[str, Any] = {}
    for name in ("target_val_loss", "patience", "save_every", "keep_checkpoints", "log_interval"):
        if name in asked:
            changes[name] = getattr(config, name)
    for name in ("threads", "sample_tokens"):
        if name in asked and getattr(config, name) is not None:
            changes[name] = getattr(config, name)
    return replace(settings, **changes)
