"""Training of every family: how weights begin, that each of them learns, and runs with experts."""

import signal
from dataclasses import asdict

import pytest
import torch
from train_helpers import Notes, losses, metrics

from apr import families
from apr.errors import Interrupted
from apr.formats import open_model
from apr.model.decoder import Decoder, initialize
from apr.train import TrainConfig, presets, pretrain
from apr.train.balance import Experts
from apr.train.evaluate import model_losses
from apr.train.resume import _architecture

SPARSE = [f for f in ("mixtral", "deepseek_v3") if f in families.known()]


@pytest.mark.parametrize("family", families.known())
def test_every_parameter_begins_as_it_should_and_learns_in_bfloat16_arithmetic_too(family):
    arch = presets.architecture("tiny", 257, 64, None, family)
    model = Decoder(arch)
    initialize(model, torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == (0.0 if arch.norm_plus_one else 1.0)).all(), name
        elif name.endswith(("bias", "_bias")):
            assert (parameter == 0).all(), name
        elif parameter.numel() > 500:
            shrunk = name.endswith(("o_proj.weight", "down_proj.weight"))
            expected = arch.initializer_range / ((2 * arch.num_layers) ** 0.5 if shrunk else 1)
            assert parameter.std().item() == pytest.approx(expected, rel=0.2), name
    ids = torch.randint(0, 257, (8, 65), generator=torch.Generator().manual_seed(1))
    experts = Experts(model, presets.aux_loss(arch))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model_losses(model, model.hidden(ids[:, :-1]), ids[:, 1:]).mean()
    extra = experts.after_forward()
    (loss if extra is None else loss + extra).backward()
    assert loss.item() == pytest.approx(5.55, abs=0.25)  # guessing: ln 257
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".experts." not in name:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0 or "k_proj.bias" in name, name
    assert (
        _architecture(dict(asdict(arch), layer_types=arch.layer_types and [*arch.layer_types]))
        == arch
    )


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.slow if f == "mixtral" else ()) for f in SPARSE],
)
def test_a_run_with_experts_resumes_to_the_bit_and_reports_their_balance(config, tmp_path, family):
    whole = str(tmp_path / "whole")
    short = {"family": family, "grad_accum": 2, "num_steps": 16, "steps_per_epoch": 8}
    pretrain(config(run_dir=whole, **short))
    with pytest.raises(Interrupted):
        pretrain(config(**short), display=Notes(13, signal.SIGTERM))
    run = config().run_dir
    pretrain(TrainConfig(run_dir=run, resume=True, family=family))
    assert losses(run) == losses(whole)
    shares = ("auxiliary_loss", "experts_max_over_mean", "experts_dead")
    for one, two in zip(metrics(run, "step"), metrics(whole, "step"), strict=True):
        assert [one[key] for key in shares] == [two[key] for key in shares]
    one, two = open_model(f"{run}/model.apr"), open_model(f"{whole}/model.apr")
    for name, tensor in one.tensors.items():
        assert bytes(tensor.raw()) == bytes(two.tensors[name].raw()), name
    assert one.training["experts"] == two.training["experts"]
    biases = [t for n, t in one.tensors.items() if n.endswith("e_score_correction_bias")]
    moved = [b.torch().abs().max().item() for b in biases]
    assert len(moved) == (1 if family == "deepseek_v3" else 0)
    assert all(0.001 < m < 0.0161 for m in moved)  # by 1e-3 a step, at most as many steps
    assert one.training["validation_loss"] == metrics(run, "evaluation")[-1]["loss"]


@pytest.mark.parametrize("family", SPARSE)
def test_the_plan_names_active_parameters_and_the_balance(config, capsys, family):
    from apr.cli.pretrain import _show_prepared
    from apr.train.run import plan

    found = plan(config(family=family, plan=True))
    counts = found.to_json()["parameters"]
    assert counts["active"] < counts["all"]
    assert found.prepared.budget.parameters == counts["active"]
    _show_prepared(found.prepared)
    said = capsys.readouterr().err
    assert f"model: {family}, {counts['all']:,} parameters, {counts['active']:,} active" in said
    kept = "correction bias" if family == "deepseek_v3" else "loss x 0.02"
    assert "experts: 2 of 8" in said and f"balance by {kept}" in said


@pytest.mark.slow
@pytest.mark.parametrize("family", [*SPARSE[:1], "llama"])
def test_a_compiled_run_has_the_losses_of_a_plain_one(config, tmp_path, family):
    pretrain(config(family=family, num_steps=4, run_dir=str(tmp_path / "plain")))
    pretrain(config(family=family, num_steps=4, run_dir=str(tmp_path / "compiled"), compile=True))
    plain, compiled = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert [x[1] for x in compiled] == pytest.approx([x[1] for x in plain], abs=1e-4)
