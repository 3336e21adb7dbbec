"""What is special about a family, and what a token costs."""

import json
from pathlib import Path

import pytest

from apr import families
from apr.inspect.special import costs, special

CONFIGS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "configs"


def opened(name):
    path = CONFIGS / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not at hand")
    config = json.loads(path.read_text())
    if config["model_type"] not in families.known():
        pytest.skip(f"{config['model_type']} is not supported")
    return families.by_hf_model_type(config["model_type"], path).from_hf(config, path)


def test_glm_flash_shows_latents_experts_and_their_costs():
    architecture = opened("GLM-4.7-Flash")
    text = dict(special(architecture))
    assert text["latent (MLA)"] == "kv 512 + rotary 64, q 768; heads of 192 + 64, values 256"
    assert text["experts"] == "64 of width 1536, 4 active, in 46 of 47 layers"
    assert text["router"] == "sigmoid, weights made to sum to one, times 1.8, a bias selects"
    assert text["shared experts"] == "1 of width 1536 in all"
    figures = costs(architecture)
    assert figures["cache_bytes_per_token"] == 47 * 576 * 2
    assert figures["parameters"] == pytest.approx(29.94e9, rel=1e-3)
    assert figures["active_parameters"] < 0.15 * figures["parameters"]


def test_llama_shows_its_scaling_and_no_more():
    assert special(opened("Llama-3.1-8B")) == [
        (
            "rotary scaling",
            "llama3: factor 8.0, low_freq_factor 1.0, high_freq_factor 4.0, "
            "original_max_position_embeddings 8192",
        )
    ]
    assert costs(opened("Llama-3.1-8B"))["cache_bytes_per_token"] == 2 * 32 * 8 * 128 * 2
