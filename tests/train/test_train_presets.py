"""The presets: valid, of the promised size, and with the recipe that the rule gives."""

import pytest

from apr import architecture as arch
from apr import families
from apr.errors import UsageError
from apr.train import presets

SIZES = {"1m": 1e6, "3m": 3e6, "10m": 10e6, "30m": 30e6, "60m": 60e6, "1b": 1e9}
BY_RULE = ["1m", "3m", "10m", "30m", "60m", "125m", "370m", "1b"]


@pytest.mark.parametrize("name", ["nanogpt-cpu", *BY_RULE])
def test_every_preset_keeps_the_contracts(name):
    length = presets.recipe(name).seq_length
    made = presets.architecture(name, 50_257, length, None)
    arch.check(made, name)
    assert made.max_position_embeddings == length
    widths = (made.hidden_size, made.intermediate_size, made.q_size, made.kv_size)
    assert all(width % 32 == 0 for width in widths)  # Q8_0 packs 32 values


@pytest.mark.parametrize("name", SIZES)
def test_the_name_rounds_the_parameters_outside_the_embedding(name):
    made = presets.architecture(name, 1000, 64, None)
    assert families.num_parameters(made, embedding=False) == pytest.approx(SIZES[name], rel=0.1)


def test_the_370m_is_exactly_that_of_the_facts():
    made = presets.architecture("370m", 100_000, 4096, None)
    assert (made.hidden_size, made.num_layers, made.num_heads, made.num_kv_heads) == (
        1024,
        24,
        16,
        4,
    )
    assert (made.intermediate_size, made.max_position_embeddings) == (2816, 4096)
    assert made.tie_word_embeddings
    assert families.num_parameters(made) == pytest.approx(370e6, rel=0.01)


@pytest.mark.parametrize("name", BY_RULE)
def test_rate_and_batch_follow_the_rule(name):
    recipe = presets.recipe(name)
    made = presets.architecture(name, 1000, recipe.seq_length, None)
    lr, tokens = presets.rule(families.num_parameters(made, embedding=False))
    assert recipe.lr == float(f"{lr:.2g}")
    per_step = recipe.batch_size * recipe.grad_accum * recipe.seq_length
    assert 2**-0.5 <= per_step / tokens <= 2**0.5


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(UsageError, match="370m") as caught:
        presets.recipe("7b")
    assert caught.value.exit_code == 2


# --- families -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", families.known())
def test_every_family_at_every_size_is_sound_and_fits_what_it_is_exported_to(family):
    from apr.train.estimate import kinds_of_layer

    for name in presets.names():
        length = presets.recipe(name).seq_length
        made = presets.architecture(name, 4096, length, None, family)
        arch.check(made, f"{family} {name}")
        assert made.family == family
        if family != "bitnet":
            assert families.gguf_obstacles(made) == []
        # Every row that Q8_0 packs is a multiple of 32 long.
        rows = {spec.shape[-1] for spec in families.tensor_specs(made) if len(spec.shape) > 1}
        assert not [row for row in rows if row % 32], rows
        plain = presets.architecture(name, 4096, length, None)
        active = families.num_parameters(made, embedding=False, active=True)
        if name != "tiny":  # there a latent's 32 is half the width
            assert 0.6 < active / families.num_parameters(plain, embedding=False) < 1.7
        assert sum(kinds_of_layer(made).values()) == made.num_layers
        weight = presets.aux_loss(made)
        assert (weight > 0) == bool(made.num_experts and not made.router_correction_bias)
        assert made.shortest_window is None or made.shortest_window >= length // 4


def test_an_unknown_family_lists_the_known_ones():
    with pytest.raises(UsageError, match="--family.*qwen3"):
        presets.architecture("1m", 300, 64, None, "bert")
