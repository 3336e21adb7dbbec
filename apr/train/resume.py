"""Going on with a run: the same run, or an error that names what differs, never a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from apr.architecture import Architecture
from apr.errors import CorruptFile, FeatureUnavailable, UsageError
from apr.model.decoder import Decoder
from apr.train.config import FREE_ON_RESUME, TrainConfig, flag
from apr.train.display import Display
from apr.train.folder import locked
from apr.train.loop import Trainer
from apr.train.prepare import machine_line
from apr.train.session import TrainResult, finish, make_trainer
from apr.train.settings import Settings, with_free_changes
from apr.train.state import State, read_newest


def resume(config: TrainConfig, run_dir: Path, display: Display) -> TrainResult:
    """Go on from the newest whole state.

    Raises:
        NotFound: there is no state. CorruptFile: all are damaged.
        UsageError: a flag or the data would make it another run.
        FeatureUnavailable: the run's device is not here.
    """
    from apr.data.dataset import open_dataset
    from apr.tokenizer import Tokenizer

    saved = read_newest(run_dir / "state", display.note)
    with locked(run_dir):
        values = saved.values
        fixed = values["fixed"]
        settings = Settings(**values["settings"])
        _refuse_changes(config, fixed["asked"], settings, fixed["architecture"]["family"])
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
        model = Decoder(_architecture(fixed["architecture"]))
        trainer = make_trainer(run_dir, settings, model, tokenizer, dataset, fixed, display)
        trainer.restore(saved)
        dropped = trainer.parts.log.rewind(trainer.progress.step)
        _say_resumed(trainer, saved, dropped)
        return finish(trainer, fixed)


def _architecture(saved: dict[str, Any]) -> Architecture:
    """The architecture as JSON gives it back: lists where there were tuples."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
    return Architecture(**values)


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


def _refuse_changes(
    config: TrainConfig, asked: dict[str, Any], settings: Settings, family: str
) -> None:
    """Refuse flags that would make it another run."""
    was = settings.to_json()
    changed = []
    for name, value in config.asked().items():
        if name in FREE_ON_RESUME:
            continue
        before = asked.get(name, was.get(name))
        if name == "family":
            before = family
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
