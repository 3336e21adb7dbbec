"""A pass whose weights come and go gives the logits of the engine that holds them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from apr import engine
from apr.dtypes import DTYPES
from apr.engine.streamed import streamed_logits
from apr.errors import ModelLoadError
from apr.quant import recoded

IDS = [5, 77, 299, 12, 5, 41, 200, 8]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
CASES = {
    "untied": ({}, None),
    "tied, in bf16": ({"tie_word_embeddings": True}, "BF16"),
    "experts": ({"family": "mixtral", **EXPERTS}, None),
    "blocks": ({"intermediate_size": 192}, "Q8_0"),
    "blocks that have no rows of their own": ({"tie_word_embeddings": True}, "APR_Q4"),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_engine(build, name):
    changes, stored = CASES[name]
    _, model = build(**changes)
    if stored:
        tensors = {
            n: recoded(t, DTYPES[stored]) if len(t.shape) > 1 else t
            for n, t in model.tensors.items()
        }
        model = replace(model, tensors=tensors)
    expected = engine.load(model, device="cpu", dtype="float32", threads=1).logits(IDS)
    ours = streamed_logits(model, IDS, threads=1)
    assert np.abs(ours - expected).max() < 1e-5
    assert np.array_equal(streamed_logits(model, IDS, threads=1), ours)
    assert np.abs(streamed_logits(model, IDS, last=3, threads=1) - expected[-3:]).max() < 1e-5


def test_no_weight_is_left_behind_a_block(build, monkeypatch):
    _, model = build()
    decoders = []
    original = torch.nn.Module.eval
    monkeypatch.setattr(torch.nn.Module, "eval", lambda m: decoders.append(m) or original(m))
    streamed_logits(model, IDS, threads=1)
    left = [name for name, p in decoders[0].named_parameters() if not p.is_meta]
    assert left == ["model.norm.weight"]


def test_a_missing_tensor_is_named(build):
    _, model = build()
    tensors = {n: t for n, t in model.tensors.items() if "layers.1.mlp.up" not in n}
    with pytest.raises(ModelLoadError, match=r"layers\.1\.mlp\.up_proj"):
        streamed_logits(replace(model, tensors=tensors), IDS)
