"""Which parameters decay, and that fused AdamW is AdamW."""

import torch

from apr.model.decoder import Decoder, initialize
from apr.train import presets
from apr.train.optimizer import make_optimizer


def test_only_matrices_decay_and_a_tied_head_stands_once():
    model = Decoder(presets.architecture("tiny", 257, 16, True))
    decayed, other = make_optimizer(
        model, lr=1e-3, beta1=0.9, beta2=0.95, weight_decay=0.1
    ).param_groups
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in other["params"]} == {1}
    assert (decayed["weight_decay"], other["weight_decay"]) == (0.1, 0.0)
    ids = [id(p) for p in (*decayed["params"], *other["params"])]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))


def test_a_fused_step_equals_adamw_written_out():
    model = Decoder(presets.architecture("tiny", 257, 16, True))
    initialize(model, torch.Generator().manual_seed(0))
    optimizer = make_optimizer(model, lr=1e-2, beta1=0.9, beta2=0.99, weight_decay=0.1)
    weight = model.model.layers[0].mlp.up_proj.weight
    w = weight.detach().double().clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for step in range(1, 4):
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.1 * step)
        g = torch.full_like(w, 0.1 * step)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        w = w * (1 - 1e-2 * 0.1)
        w -= 1e-2 * (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)).sqrt() + 1e-8)
        optimizer.step()
    assert torch.allclose(weight.double(), w, atol=1e-6)
