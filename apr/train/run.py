"""`pretrain` and `plan`: a run from configuration to result.

The promise: what stands under a final name in the run's folder is whole at every moment, a refusal
trains nothing, and a run that goes on has the losses of one that never stopped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from apr.model.decoder import Decoder, initialize
from apr.receipt import receipt
from apr.train.config import TrainConfig, check
from apr.train.display import Display, Silent
from apr.train.estimate import Estimate, estimate
from apr.train.folder import clear, locked, refuse_used, write_start
from apr.train.prepare import Prepared, parameter_counts, prepare
from apr.train.resume import resume
from apr.train.session import TrainResult, finish, make_trainer

if TYPE_CHECKING:
    pass

__all__ = ["PlanResult", "TrainResult", "plan", "pretrain"]

Announce = Callable[[Prepared], None]


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
        refuse_used(Path(config.run_dir), force=True)
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
        return resume(config, run_dir, display)
    refuse_used(run_dir, config.force)
    prepared = prepare(config, run_dir / "data")
    announce(prepared)
    if prepared.refused:
        raise prepared.refusal()
    with locked(run_dir):
        clear(run_dir)
        write_start(run_dir, config, prepared.tokenizer)
        return _run_new(config, run_dir, prepared, display)


def _origin(prepared: Prepared) -> dict[str, Any] | None:
    """What the file of `--init` says of its own training, without the probe of its weights."""
    before = None if prepared.init is None else prepared.init.training
    return None if not before else {k: v for k, v in before.items() if k != "probe"}


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
        "origin": _origin(prepared),
        "budget": prepared.budget_json(),
        "data": prepared.dataset.manifest.summary(),
        "data_path": str(prepared.dataset.path.resolve()),
        "architecture": asdict(prepared.architecture),
        "asked": config.asked(),
    }
    trainer = make_trainer(
        run_dir, settings, model, prepared.tokenizer, prepared.dataset, fixed, display
    )
    trainer.parts.log.add(
        "run", step=0, settings=settings.to_json(), receipt=receipt(settings.device)
    )
    return finish(trainer, fixed)
