"""Training on a GPU: bfloat16 arithmetic, the same curve as the CPU, and resuming."""

from pathlib import Path

import pytest
import torch
from train_helpers import Notes, losses, validation_losses

from apr.checkpoint import verify
from apr.errors import Interrupted
from apr.train import TrainConfig, pretrain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_run_on_cuda_uses_bfloat16_by_default_and_learns(config):
    result = pretrain(config(device="cuda", num_steps=60, steps_per_epoch=20))
    assert result.settings["dtype"] == "bfloat16"
    assert result.settings["device"].startswith("cuda:")
    assert result.best["loss"] < 3.5
    verify(result.model)
    assert "gpu" in result.receipt


def test_float32_on_cuda_follows_the_cpu(config, tmp_path):
    pretrain(config(device="cuda", dtype="float32", run_dir=str(tmp_path / "gpu")))
    pretrain(config(run_dir=str(tmp_path / "cpu")))
    gpu = [x[1] for x in losses(tmp_path / "gpu")]
    cpu = [x[1] for x in losses(tmp_path / "cpu")]
    assert gpu == pytest.approx(cpu, abs=5e-3)


def test_a_resumed_run_on_cuda_has_the_losses_of_one_never_stopped(config, tmp_path):
    whole = str(tmp_path / "whole")
    pretrain(config(device="cuda", run_dir=whole))
    with pytest.raises(Interrupted):
        pretrain(config(device="cuda", log_interval=1), display=Notes(13))
    run = Path(config().run_dir)
    pretrain(TrainConfig(run_dir=str(run), resume=True))
    assert losses(run) == pytest.approx(losses(whole), rel=1e-3)
    assert [s for s, _ in validation_losses(run)] == [10, 20, 30]
