"""A whole run on a tiny model: what it leaves, what it says, when it refuses and when it stops."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from train_helpers import Notes, losses, metrics, validation_losses

from apr.checkpoint import verify
from apr.errors import (
    GateFailed,
    Interrupted,
    ModelLoadError,
    NotFound,
    StorageError,
    TrainingDiverged,
    UsageError,
)
from apr.formats import open_model
from apr.train import pretrain
from apr.train.prepare import BudgetRefused
from apr.train.run import plan

# Every key of the record that docs/spec/training.md promises.
RECORD = [
    "step",
    "epoch",
    "tokens_seen",
    "unique_tokens",
    "data_epochs",
    "train_loss",
    "validation_loss",
    "validation_loss_se",
    "validation_tokens",
    "bits_per_byte",
    "seq_len",
    "batch_size",
    "grad_accum",
    "lr",
    "schedule",
    "warmup_steps",
    "num_steps",
    "seed",
    "optimizer",
    "dtype",
    "device",
    "budget",
    "data",
    "receipt",
    "init",
    "preset",
]


def test_a_run_learns_and_leaves_whole_self_contained_files(config, pictures):
    notes = Notes()
    result = pretrain(config(num_steps=60, steps_per_epoch=20), display=notes)
    run = Path(result.run_dir)
    assert (result.stop_reason, result.steps) == ("done", 60)
    assert result.best["loss"] < math.log(257) - 2
    assert sorted(p.name for p in (run / "ckpt").iterdir()) == [
        "epoch-001.apr",
        "epoch-002.apr",
        "epoch-003.apr",
    ]
    for path in [*(run / "ckpt").iterdir(), run / "model.apr"]:
        verify(path)
        model = open_model(path)
        model.check_tensors()
        assert model.require_tokenizer().decode(model.tokenizer.encode("héllo")) == "héllo"
        assert not [key for key in RECORD if key not in model.training]
    best = min(validation_losses(run), key=lambda x: x[1])
    assert open_model(run / "model.apr").training["step"] == best[0] == result.best["step"]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "summary.json").read_text())["best"] == result.best
    assert [step for step, *_ in losses(run)] == list(range(1, 61))
    assert "validation loss" in notes.text and "sample:" in notes.text
    assert result.tokens_seen == 60 * 4 * 16
    assert not [p for p in run.rglob("*") if ".tmp-" in p.name]


def test_the_reason_and_the_table_stand_in_every_checkpoint(config):
    result = pretrain(config(num_steps=2, allow_under_provisioned="because"))
    for path in Path(result.run_dir).glob("ckpt/*.apr"):
        budget = open_model(path).training["budget"]
        assert budget["verdict"] == "refusal"
        assert budget["bypassed"] == "because"
        assert budget["planned_tokens"] == 2 * 64


def test_the_gate_refuses_before_anything_is_trained(config, tmp_path):
    seen = []
    with pytest.raises(BudgetRefused, match="allow-under-provisioned") as caught:
        pretrain(config(allow_under_provisioned=None), announce=seen.append)
    assert caught.value.exit_code == 5
    assert caught.value.as_json()["budget"]["verdict"] == "refusal"
    assert seen[0].refused
    left = {p.name for p in (tmp_path / "run").iterdir()}
    assert left <= {"data", ".lock"}


def test_broken_records_are_named_before_training_not_only_counted_in_the_file(config, tmp_path):
    records = tmp_path / "records.jsonl"
    good = [json.dumps({"text": f"record number {i} " * 20}) for i in range(200)]
    records.write_text("\n".join(["not json", *good]) + "\n")
    said = plan(config(dataset=(str(records),))).prepared.notes
    assert any("1 broken record" in note for note in said)
    assert any("records.jsonl:1" in note for note in said)


def test_a_plan_trains_nothing_and_estimates_memory_and_time(config, tmp_path):
    found = plan(config(plan=True, allow_under_provisioned=None))
    assert found.prepared.refused
    assert found.estimate.seconds > 0
    assert found.estimate.memory.weights == 4 * found.to_json()["parameters"]["all"]
    assert {p.name for p in (tmp_path / "run").iterdir()} <= {"data"}
    json.dumps(found.to_json(), allow_nan=False)


def test_a_used_folder_is_refused_and_force_starts_over(config):
    pretrain(config(num_steps=3))
    first = losses(config().run_dir)
    foreign = Path(config().run_dir) / "notes.txt"
    foreign.write_text("mine")
    with pytest.raises(StorageError, match="--resume .* --force"):
        pretrain(config(num_steps=3))
    pretrain(config(num_steps=3, force=True))
    assert losses(config().run_dir) == first  # the same seed: the same run
    assert foreign.read_text() == "mine"


@pytest.mark.slow
def test_the_configuration_is_saved_and_starts_the_same_run(config, tmp_path):
    from apr.train.config import merge, read_yaml

    pretrain(config(num_steps=3))
    saved = Path(config().run_dir) / "config.yaml"
    assert yaml.safe_load(saved.read_text())["num_steps"] == 3
    again = merge(read_yaml(str(saved)), {"run_dir": str(tmp_path / "again")}, "saved")
    pretrain(again)
    assert losses(tmp_path / "again") == losses(config().run_dir)


def test_accumulating_micro_batches_equals_one_large_batch(config, tmp_path):
    pretrain(config(num_steps=4, batch_size=8, grad_accum=1, run_dir=str(tmp_path / "one")))
    pretrain(config(num_steps=4, batch_size=4, grad_accum=2, run_dir=str(tmp_path / "two")))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [x[1] for x in one] == pytest.approx([x[1] for x in two], abs=1e-5)


def test_bits_per_byte_of_a_byte_model_is_nats_over_ln_2(config):
    result = pretrain(config(num_steps=2, sample_tokens=0))
    expected = result.best["loss"] / math.log(2)
    assert result.best["bits_per_byte"] == pytest.approx(expected, rel=0.01)


# --- honest stops ---------------------------------------------------------------------------------


def test_divergence_aborts_and_names_the_last_good_checkpoint(config, monkeypatch):
    from apr.train import loop

    real = loop.model_losses

    def broken(*args):
        out = real(*args)
        steps = len(metrics(config().run_dir, "step")) if torch.is_grad_enabled() else 0
        return out * math.nan if steps >= 14 else out

    monkeypatch.setattr(loop, "model_losses", broken)
    with pytest.raises(TrainingDiverged, match=r"ckpt/epoch-001.apr") as caught:
        pretrain(config(log_interval=1))
    assert caught.value.exit_code == 11
    assert "nan" in caught.value.line()
    run = Path(config().run_dir)
    assert [p.name for p in (run / "ckpt").iterdir()] == ["epoch-001.apr"]
    verify(run / "model.apr")
    assert "diverged" in metrics(run, "event")[-1]["text"]


def test_a_learning_rate_far_too_high_is_called_divergence(config):
    with pytest.raises(TrainingDiverged, match="lower --lr"):
        pretrain(config(num_steps=400, lr=5.0, warmup_steps=1, grad_clip=0.0, schedule="constant"))


def test_a_missed_target_is_a_figure_of_the_result_and_all_is_written(config):
    result = pretrain(config(num_steps=3, target_val_loss=0.1))
    assert result.target_met is False
    assert Path(result.model).exists()
    assert pretrain(config(num_steps=3, target_val_loss=9.0, force=True)).target_met is True


def test_exhausted_data_stops_as_chosen_and_says_so(config, tmp_path):
    small = tmp_path / "small.txt"
    small.write_text("some few words of text\n" * 60)
    base = config(dataset=(str(small),), num_steps=500, steps_per_epoch=1000)
    notes = Notes()
    found = pretrain(replace(base, on_exhausted="stop"), display=notes)
    assert found.steps < 500 and found.data_epochs <= 1.0
    assert Path(found.model).exists()
    with pytest.raises(GateFailed, match="the data lasts for"):
        pretrain(replace(base, on_exhausted="error", force=True))
    notes = Notes()
    repeated = pretrain(replace(base, num_steps=60, force=True), display=notes)
    assert repeated.data_epochs > 2
    assert "data pass 2 begins" in notes.text
    assert open_model(repeated.model).training["data_epochs"] > 2


def test_early_stop_needs_a_rise_beyond_the_noise(config, monkeypatch):
    from apr.train import loop

    real = loop.evaluate

    def rising(*args, step, **kwargs):
        found = real(*args, step=step, **kwargs)
        return replace(found, loss=5.0 + step, per_sequence=found.per_sequence * 0 + 5.0 + step)

    monkeypatch.setattr(loop, "evaluate", rising)
    result = pretrain(config(steps_per_epoch=2, patience=3))
    assert (result.stop_reason, result.steps) == ("early stop", 8)
    assert result.best["step"] == 2


def test_a_corpus_smaller_than_one_batch_names_both_figures(config, tmp_path):
    tiny = tmp_path / "tiny.txt"
    tiny.write_text("hello\n")
    with pytest.raises(UsageError, match=r"one batch needs 4 x 17 = 68"):
        pretrain(config(dataset=(str(tiny),)))


# --- interrupted and resumed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "number"),
    [pytest.param(10, signal.SIGINT, marks=pytest.mark.slow), (13, signal.SIGTERM)],
)
def test_an_interrupted_and_resumed_run_equals_one_never_stopped_to_the_bit(
    config, tmp_path, step, number
):
    whole = str(tmp_path / "whole")
    pretrain(config(run_dir=whole, grad_accum=2))
    with pytest.raises(Interrupted, match="apr pretrain --run-dir .* --resume") as caught:
        pretrain(config(grad_accum=2), display=Notes(step, number))
    assert caught.value.exit_code == 130
    run = config().run_dir
    assert len(losses(run)) == step
    notes = Notes()
    result = pretrain(replace(config(), **only(run_dir=run, resume=True)), display=notes)
    assert result.steps == 30
    assert f"after step {step}" in notes.text and "BYPASSED" in notes.text
    assert losses(run) == losses(whole)
    assert validation_losses(run) == validation_losses(whole)
    one, two = open_model(Path(run) / "model.apr"), open_model(Path(whole) / "model.apr")
    for name, tensor in one.tensors.items():
        assert bytes(tensor.raw()) == bytes(two.tensors[name].raw()), name
    for key in ("tokens_seen", "unique_tokens", "data_epochs", "train_loss"):
        assert one.training[key] == two.training[key]


def only(**values):
    """The default configuration with only these values."""
    from apr.train.config import TrainConfig

    return {**{f: getattr(TrainConfig(), f) for f in TrainConfig.__dataclass_fields__}, **values}


def resume(run_dir, display=None, **changes):
    from apr.train.config import TrainConfig

    return pretrain(TrainConfig(run_dir=str(run_dir), resume=True, **changes), display=display)


def test_resuming_rewinds_to_the_state_and_writes_the_lost_steps_again(config, tmp_path):
    whole = str(tmp_path / "whole")
    pretrain(config(run_dir=whole))
    run = Path(config().run_dir)

    class Killed(BaseException):
        pass

    class Kill(Notes):
        def figures(self, figures, *, report):
            if figures.step == 17:
                raise Killed

    with pytest.raises(Killed):
        pretrain(config(log_interval=1), display=Kill())
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 18, "lo')  # a line that a kill cut
    resume(run)
    assert losses(run) == losses(whole)


def test_resuming_a_finished_run_changes_nothing(config):
    pretrain(config())
    before = losses(config().run_dir)
    assert resume(config().run_dir).steps == 30
    assert losses(config().run_dir) == before


def test_a_changed_flag_is_named_and_refused_and_a_repeated_one_is_not(config):
    with pytest.raises(Interrupted):
        pretrain(config(), display=Notes(5))
    run = config().run_dir
    with pytest.raises(UsageError, match=r"--lr 0.1 .*--seed 4 \(the run has 0\)"):
        resume(run, lr=0.1, seed=4)
    assert pretrain(config(resume=True, threads=1, target_val_loss=9.0)).target_met is True


def test_resuming_without_a_state_is_an_error_never_a_restart(config, tmp_path):
    with pytest.raises(NotFound, match="no saved state"):
        resume(tmp_path / "nothing")
    with pytest.raises(NotFound):
        pretrain(config(resume=True))


@pytest.mark.slow
def test_a_damaged_newest_state_falls_back_to_the_one_before_loudly(config, tmp_path):
    whole = str(tmp_path / "whole")
    pretrain(config(run_dir=whole))
    with pytest.raises(Interrupted):
        pretrain(config(), display=Notes(23))
    run = Path(config().run_dir)
    newest = run / "state" / "step-00000023" / "tensors.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    notes = Notes()
    resume(run, notes)
    assert "DAMAGED" in notes.text and "step 20" in notes.text
    assert losses(run) == losses(whole)


def test_two_runs_never_share_a_folder(config):
    class Second(Notes):
        def figures(self, figures, *, report):
            if figures.step == 3:
                with pytest.raises(StorageError, match="another apr pretrain"):
                    pretrain(config(force=True))
                self.lines.append("tried")

    notes = Second()
    pretrain(config(num_steps=5), display=notes)
    assert "tried" in notes.lines


# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_earlier_checkpoints_and_the_run_resumes(
    config, tmp_path, monkeypatch
):
    import errno

    from apr.train import loop, state

    whole = str(tmp_path / "whole")
    pretrain(config(run_dir=whole))
    real = state._write_tensors
    calls = []

    def full(path, tensors):
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, tensors)

    monkeypatch.setattr(state, "_write_tensors", full)
    with pytest.raises(StorageError, match="no space left") as caught:
        pretrain(config())
    assert caught.value.exit_code == 7
    run = Path(config().run_dir)
    assert {p.name for p in (run / "state").iterdir()} == {"step-00000000", "step-00000010"}
    for path in [*(run / "ckpt").iterdir(), run / "model.apr"]:
        verify(path)
    resume(run)
    assert losses(run) == losses(whole)
    assert loop.state is state


# --- going on from a model ------------------------------------------------------------------------


def test_init_takes_architecture_weights_and_tokenizer_from_the_file(config, tmp_path):
    first = pretrain(config())
    again = config(
        preset=None, tokenizer=None, init=first.model, run_dir=str(tmp_path / "next"), num_steps=2
    )
    notes = []
    result = pretrain(replace(again, lr=1e-9), announce=notes.append)
    assert result.validation["loss"] == pytest.approx(first.best["loss"], abs=1e-4)
    assert (
        notes[0].budget.planned_tokens == first.tokens_seen + 2 * notes[0].settings.tokens_per_step
    )
    record = open_model(result.model).training
    assert record["init"] == first.model and record["mode"] == "continue"


def test_init_with_another_tokenizer_names_both_sizes(config, tmp_path, corpus):
    from apr.tokenizer import train

    first = pretrain(config(num_steps=2))
    other = tmp_path / "other"
    train(iter([corpus.read_text()]), 300, "gpt-2").write_directory(other)
    with pytest.raises(UsageError, match=r"has 2\d\d tokens|257"):
        pretrain(
            config(preset=None, tokenizer=str(other), init=first.model, run_dir=str(tmp_path / "n"))
        )


def test_init_with_missing_tensors_fails_with_the_list(config, tmp_path):
    from apr.checkpoint import AprFile, write_apr

    first = pretrain(config(num_steps=2))
    file = AprFile.open(first.model)
    kept = [
        t for name, t in file.tensors.items() if not name.endswith("layers.1.mlp.up_proj.weight")
    ]
    broken = tmp_path / "broken.apr"
    write_apr(broken, dict(file.metadata), kept)
    with pytest.raises(ModelLoadError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        pretrain(config(preset=None, tokenizer=None, init=str(broken), run_dir=str(tmp_path / "n")))


def test_a_sequence_longer_than_the_models_context_is_refused(config, tmp_path):
    first = pretrain(config(num_steps=2))
    with pytest.raises(UsageError, match="--seq-length 16 or less"):
        pretrain(
            config(
                preset=None,
                tokenizer=None,
                init=first.model,
                seq_length=32,
                run_dir=str(tmp_path / "n"),
            )
        )
