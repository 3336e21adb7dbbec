"""The training loop: steps, evaluations, saves, and the stops that end it.

All pieces are injected (`Parts`), so that the loop knows nothing of files' formats, data sources or
the command line. After a step on the CPU its loss is judged at once; on CUDA up to ten steps are
queued before the host waits for their figures, and nothing is ever saved unjudged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from apr.errors import TrainingDiverged
from apr.model.costs import peaks, train_flops_per_token
from apr.train import save, state
from apr.train.balance import Balance, Experts
from apr.train.display import Figures, escaped, loss_text
from apr.train.evaluate import Evaluation, evaluate, model_losses, probe, sample
from apr.train.log import draw_curve
from apr.train.optimizer import set_lr
from apr.train.parts import Parts, Progress
from apr.train.signals import stop_signals
from apr.train.stops import Divergence, EarlyStop

QUEUED_STEPS = 10  # on CUDA, before the host waits
DRAW_EVERY = 30.0  # seconds between pictures; one is always drawn at the end


@dataclass
class Trainer:
    """Runs from where `progress` stands to the last step, or to a reason to stop."""

    parts: Parts
    progress: Progress = field(default_factory=Progress)
    best_sequences: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        p = self.parts
        s = p.settings
        self.device = torch.device(s.device)
        self.schedule = s.lr_schedule()
        self.divergence = Divergence(p.model.architecture.vocab_size, s.warmup_steps)
        self.early = EarlyStop(s.patience)
        self.stop_signal: str | None = None
        self._pending: list[tuple[int, float, list[torch.Tensor]]] = []
        self._experts = Experts(p.model, s.aux_loss)
        self._balance: Balance | None = None
        self._queue = 1 if self.device.type == "cpu" else QUEUED_STEPS
        self._parameters = [x for x in p.model.parameters() if x.requires_grad]
        self._hidden: Callable[[torch.Tensor], torch.Tensor] = p.model.hidden
        if s.compile:
            self._experts.leave_uncompiled(p.model)
            self._hidden = torch.compile(p.model.hidden)
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        known = peaks(name)
        self._peak = known[0] if known and s.dtype == "bfloat16" else None
        self._flops = train_flops_per_token(p.model.architecture, s.seq_length)
        self._speed: float | None = None
        self._drawn = 0.0
        self._window = (0.0, 0)  # seconds and tokens since the last report
        self._last_saved = -1
        self._last_lr = self._last_norm = 0.0
        self._early = False
        self._began, self._base_seconds = time.perf_counter(), 0.0

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of the forward pass: float32, or bfloat16 over float32 weights."""
        if self.parts.settings.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _stop(self, name: str) -> bool:
        first, self.stop_signal = self.stop_signal is None, self.stop_signal or name
        return first

    # --- the run -------------------------------------------------------------------------------

    def train(self) -> str:
        """Train; why it ended: `done`, `data exhausted`, `early stop` or `interrupted`.

        Raises:
            TrainingDiverged: naming the last good checkpoint. StorageError: a save failed.
        """
        self._began = time.perf_counter()
        self._base_seconds = self.progress.seconds
        with stop_signals(self._stop):
            if self.progress.step == 0:
                # Before any work is done: a folder that cannot hold the run is found out now.
                self.save_state()
            return self._steps()

    def _steps(self) -> str:
        s, progress = self.parts.settings, self.progress
        while progress.step < s.num_steps:
            start = time.perf_counter()
            try:
                self._one_step(progress.step + 1)
            except self.parts.exhausted as end:
                self._flush()
                self._event(f"data exhausted: {end}")
                if self._last_saved_epoch_step() != progress.step:
                    self._end_epoch()
                return "data exhausted"
            progress.step += 1
            at_end = progress.step % s.steps_per_epoch == 0 or progress.step == s.num_steps
            due = at_end or progress.step % s.log_interval == 0 or self.stop_signal is not None
            if due or len(self._pending) >= self._queue:
                self._flush()
            elapsed = time.perf_counter() - start
            progress.train_seconds += elapsed
            self._window = (self._window[0] + elapsed, self._window[1] + s.tokens_per_step)
            self._report(force=at_end)
            self._announce_pass()
            if at_end:
                self._end_epoch()
                if progress.step < s.num_steps and self._stops_early():
                    return "early stop"
            elif s.save_every and progress.step % s.save_every == 0:
                self._flush()
                self.save_state()
            if self.stop_signal and progress.step < s.num_steps:
                if self._last_saved != progress.step:
                    self.save_state()
                self._event(f"{self.stop_signal}: stopped after step {progress.step}, saved")
                self.parts.log.flush(durable=True)
                return "interrupted"
        return "done"

    def _one_step(self, step: int) -> None:
        s = self.parts.settings
        lr = self.schedule.at(step)
        set_lr(self.parts.optimizer, lr)
        total: torch.Tensor | None = None
        # Taken before any gradient is made: a step has all of its data or does not happen.
        micro_batches = [self.parts.batches.next() for _ in range(s.grad_accum)]
        for array in micro_batches:
            ids = torch.from_numpy(array)
            if self.device.type == "cuda":
                ids = ids.pin_memory().to(self.device, non_blocking=True)
            with self.autocast():
                losses = model_losses(self.parts.model, self._hidden(ids[:, :-1]), ids[:, 1:])
            loss = losses.mean() / s.grad_accum
            total = loss.detach() if total is None else total + loss.detach()
            extra = self._experts.after_forward()
            if extra is not None:
                loss = loss + extra / s.grad_accum
            torch.autograd.backward(loss)
        assert total is not None
        for parameter in self._parameters:
            # An expert that no token went to: a gradient of zero, as in one tensor of all experts.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, s.grad_clip or float("inf"))
        self.parts.optimizer.step()
        self.parts.optimizer.zero_grad(set_to_none=True)
        self._pending.append((step, lr, [total, norm, *self._experts.after_step()]))

    def _flush(self) -> None:
        """Fetch the figures of the queued steps, log and judge them."""
        if not self._pending:
            return
        rows = [torch.stack([value.float() for value in values]) for *_, values in self._pending]
        figures = torch.stack(rows).tolist()
        for (step, lr, _), (loss, norm, *experts) in zip(self._pending, figures, strict=True):
            shares: dict[str, Any] = {}
            if experts:
                self._balance = Balance(experts[0], experts[1], int(experts[2]))
                shares = self._balance.to_json()
            self.parts.log.add("step", step=step, loss=loss, lr=lr, grad_norm=norm, **shares)
            wrong = self.divergence.judge(step, loss, norm)
            self.progress.last_loss, self._last_norm, self._last_lr = loss, norm, lr
            if wrong is not None:
                self._diverged(wrong)
        self._pending.clear()

    def _diverged(self, wrong: str) -> None:
        self._event(f"diverged: {wrong}")
        self.parts.log.flush(durable=True)
        last = self.progress.last_checkpoint
        best = self.parts.run_dir / "model.apr"
        named = (
            f"the last good checkpoint is {self.parts.run_dir / last}, the best {best}"
            if last
            else "no checkpoint was written before it"
        )
        s = self.parts.settings
        raise TrainingDiverged(
            self.parts.run_dir,
            f"training diverged: {wrong}; {named}",
            f"lower --lr (it was {s.lr:g}), or lengthen --warmup-steps (it was {s.warmup_steps})",
        )

    # --- figures -------------------------------------------------------------------------------

    def _report(self, *, force: bool) -> None:
        s, progress = self.parts.settings, self.progress
        if self._pending:
            return  # the host has not seen the newest figures yet
        report = force or progress.step % s.log_interval == 0
        if self._window[0] > 0 and (report or self._window[0] > 1.0 or self._speed is None):
            self._speed = self._window[1] / self._window[0]
            self._window = (0.0, 0)
        figures = self.figures()
        if report:
            keys = ("tokens_per_second", "mfu", "tokens_seen", "unique_tokens", "data_epochs")
            values = asdict(figures)
            self.parts.log.add("report", step=progress.step, **{k: values[k] for k in keys})
            self.parts.log.flush()
        self.parts.display.figures(figures, report=report)

    def figures(self) -> Figures:
        """What is shown of the run now."""
        s, progress, batches = self.parts.settings, self.progress, self.parts.batches
        left = (s.num_steps - progress.step) * s.tokens_per_step
        speed = self._speed
        evaluation = progress.last_evaluation or {}
        return Figures(
            step=progress.step,
            num_steps=s.num_steps,
            loss=progress.last_loss,
            lr=self._last_lr,
            grad_norm=self._last_norm,
            tokens_per_second=speed,
            mfu=speed * self._flops / self._peak if speed and self._peak else None,
            tokens_seen=batches.tokens_seen,
            unique_tokens=batches.unique_tokens,
            data_epochs=batches.tokens_seen / max(1, batches.unique_tokens),
            seconds_left=left / speed if speed else None,
            validation_loss=evaluation.get("loss"),
            validation_se=evaluation.get("standard_error"),
            bits_per_byte=evaluation.get("bits_per_byte"),
            balance=self._balance,
        )

    def _announce_pass(self) -> None:
        passes = self.parts.batches.epoch
        if passes > self.progress.passes_reported:
            self.progress.passes_reported = passes
            if passes >= 1:
                self._event(
                    f"data pass {passes + 1} begins: every token of the data has been seen "
                    f"{passes} time{'s' * (passes > 1)}"
                )

    def _event(self, text: str) -> None:
        self.parts.log.add("event", step=self.progress.step, text=text)
        self.parts.display.note(text)

    # --- evaluation and saving -----------------------------------------------------------------

    def evaluate(self) -> Evaluation:
        """The validation loss now."""
        return evaluate(
            self.parts.model,
            self.parts.windows,
            step=self.progress.step,
            batch_size=self.parts.settings.batch_size,
            autocast=self.autocast,
        )

    def _end_epoch(self) -> None:
        """Evaluate, save the checkpoint, publish it if it is the best, save the state: in this
        order, so that whatever is killed when, all published files are whole.
        """
        progress, p = self.progress, self.parts
        progress.epoch += 1
        found = self.evaluate()
        values = {
            "step": found.step,
            "epoch": progress.epoch,
            "loss": found.loss,
            "standard_error": found.standard_error,
            "bits_per_byte": found.bits_per_byte,
            "tokens": found.tokens,
        }
        self._judge_rise(found)
        progress.last_evaluation = values
        best = progress.best_loss is None or found.loss < progress.best_loss
        prompt = p.windows.ids[0, :16].tolist()
        before, after = ("", "")
        if p.settings.sample_tokens:
            before, after = sample(
                p.model, p.tokenizer, prompt, p.settings.sample_tokens, seed=progress.step
            )
        p.log.add("evaluation", **values, best=best, sample_prompt=before, sample=after)
        p.log.flush()
        mark = " (best so far)" if best else ""
        p.display.note(
            f"epoch {progress.epoch}, step {progress.step}: validation loss "
            f"{loss_text(found.loss, found.standard_error)}, "
            f"{found.bits_per_byte:.3f} bits per byte{mark}"
        )
        if after:
            p.display.note(f"  sample: {escaped(before)}|{escaped(after)}")
        p.display.figures(self.figures(), report=False)
        path = save.checkpoint_path(p.run_dir, progress.epoch)
        if best:
            progress.best_loss, self.best_sequences = found.loss, found.per_sequence
            progress.best_step, progress.best_epoch = progress.step, progress.epoch
            progress.best_evaluation = values
        save.save_checkpoint(path, p.model, p.tokenizer, p.record(self._record(values)), p.name)
        progress.last_checkpoint = path.relative_to(p.run_dir).as_posix()
        if best:
            save.publish_best(path, p.run_dir / "model.apr")
        self.save_state()
        save.remove_old(p.run_dir, p.settings.keep_checkpoints, progress.best_epoch)
        if time.perf_counter() - self._drawn > DRAW_EVERY:
            self.draw()

    def draw(self) -> None:
        """Draw the loss curve as it stands."""
        self._drawn = time.perf_counter()
        draw_curve(self.parts.log.path, self.parts.run_dir / "loss.png", self.parts.name)

    def _judge_rise(self, found: Evaluation) -> None:
        self._early = False
        if self.best_sequences is not None:
            rise, error = found.against(self.best_sequences)
            self._early = self.early.judge(rise, error)

    def _stops_early(self) -> bool:
        if self._early:
            self._event(f"early stop: {self.early.reason}")
        return self._early

    def _last_saved_epoch_step(self) -> int:
        return int((self.progress.last_evaluation or {"step": -1})["step"])

    def _record(self, evaluation: dict[str, Any]) -> dict[str, Any]:
        progress, batches = self.progress, self.parts.batches
        return {
            "step": progress.step,
            "epoch": progress.epoch,
            "tokens_seen": batches.tokens_seen,
            "unique_tokens": batches.unique_tokens,
            "data_epochs": batches.tokens_seen / max(1, batches.unique_tokens),
            "train_loss": progress.last_loss,
            "train_loss_smoothed": self.divergence.smoothed / self.divergence.weight
            if self.divergence.weight
            else None,
            "validation_loss": evaluation["loss"],
            "validation_loss_se": evaluation["standard_error"],
            "validation_tokens": evaluation["tokens"],
            "bits_per_byte": evaluation["bits_per_byte"],
            "train_seconds": progress.train_seconds,
            "lr": self._last_lr,
            **({} if self._balance is None else {"experts": self._balance.to_json()}),
            "probe": probe(self.parts.model, self.parts.windows),
        }

    def total_seconds(self) -> float:
        """Wall-clock seconds of the run, evaluations and saves included, over all its parts."""
        return self._base_seconds + time.perf_counter() - self._began

    def save_state(self) -> None:
        """Save everything that resuming needs, after the log of these steps is on the disk."""
        p, progress = self.parts, self.progress
        p.log.flush(durable=True)
        progress.seconds = self.total_seconds()
        tensors = {f"model.{k}": v for k, v in p.model.canonical_state().items()}
        tensors.update(state.optimizer_tensors(p.model, p.optimizer))
        tensors.update(state.random_states(self.device))
        if self.best_sequences is not None:
            tensors["best_sequences"] = torch.from_numpy(self.best_sequences)
        values = {
            "progress": {
                k: (None if isinstance(v, float) and v != v else v)
                for k, v in asdict(progress).items()
            },
            "divergence": self.divergence.state(),
            "early_stop_worse": self.early.worse,
            "batches": p.batches.state(),
            **p.saved_values,
        }
        state.write_state(p.run_dir / "state", progress.step, values, tensors)
        self._last_saved = progress.step

    def restore(self, saved: state.State) -> None:
        """Go back to a saved state, to the bit.

        Raises:
            CorruptFile: the state lacks something.
        """
        p = self.parts
        weights = {
            k.removeprefix("model."): v for k, v in saved.tensors.items() if k.startswith("model.")
        }
        own = p.model.canonical_state()
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(weights[name])
        state.restore_optimizer(p.model, p.optimizer, saved.tensors, saved.path)
        state.restore_random_states(saved.tensors, self.device)
        values = dict(saved.values["progress"])
        if values["last_loss"] is None:
            values["last_loss"] = float("nan")
        self.progress = Progress(**values)
        self.divergence.restore(saved.values["divergence"])
        self.early.worse = saved.values["early_stop_worse"]
        p.batches.restore(saved.values["batches"])
        best = saved.tensors.get("best_sequences")
        self.best_sequences = None if best is None else best.numpy().copy()
        self._last_saved = self.progress.step
