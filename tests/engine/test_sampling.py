"""Sampling against transformers' processors and against the frequencies it promises."""

from collections import Counter

import numpy as np
import pytest
import torch

from apr import engine as engines
from apr.engine.sampling import Sampler, penalized, probabilities
from apr.errors import InferenceError, UsageError
from apr.families import llama

transformers = pytest.importorskip("transformers")
LOGITS = np.random.default_rng(0).normal(0, 3, 200).astype(np.float32)


SEEN = [3, 7, 7, 150, 199]  # prompt and answer so far


def theirs(logits, seen=SEEN, **settings):
    """The distribution that transformers' own list of processors leaves, in its own order."""
    config = transformers.GenerationConfig(do_sample=True, **{"top_k": 0, **settings})
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=8, num_hidden_layers=0, num_attention_heads=1, vocab_size=8,
            intermediate_size=8,
        )
    )  # fmt: skip
    processors = model._get_logits_processor(config)
    ids = torch.tensor([seen])
    return processors(ids, torch.tensor(logits)[None]).softmax(-1)[0].numpy()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 0.9, "top_k": 40, "top_p": 0.5},
        {"top_k": 500, "top_p": 0.01},
        {"temperature": 2.5, "min_p": 0.05},
        {"min_p": 1.0},
        {"temperature": 1.5, "top_k": 30, "top_p": 0.95, "min_p": 0.1},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.6, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [200, 5000])
@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
def test_the_distribution_is_that_of_transformers(settings, size):
    logits = np.random.default_rng(size).normal(0, 3, size).astype(np.float32)
    ours = dict(settings)
    changed = penalized(logits, SEEN, Counter(), ours.pop("repetition_penalty", 1.0))
    found = probabilities(changed, **ours)
    expected = theirs(logits, **settings)
    assert np.abs(found - expected).max() < 1e-6
    assert np.array_equal(found > 0, expected > 0)


def test_a_flat_distribution_needs_more_than_the_first_tokens_that_top_p_looks_at():
    logits = np.random.default_rng(1).normal(0, 0.1, 20_000).astype(np.float32)
    ours = probabilities(logits, top_p=0.9)
    assert np.abs(ours - theirs(logits, top_p=0.9)).max() < 1e-8
    assert 10_000 < (ours > 0).sum() < 19_000


def test_tokens_that_equal_the_last_of_top_k_all_stay_as_in_transformers():
    logits = np.array([1.0, 5.0, 3.0, 3.0, 3.0, 0.0], dtype=np.float32)
    assert np.abs(probabilities(logits, top_k=2) - theirs(logits, [0], top_k=2)).max() < 1e-7


def test_presence_and_frequency_penalties_follow_their_formula_over_the_answer_alone():
    # logit - count * frequency - (count > 0) * presence, as OpenAI's interface defines it
    counts = Counter({4: 3, 9: 1})
    expected = LOGITS.astype(np.float64)
    expected[4] -= 3 * 0.5 + 0.25
    expected[9] -= 0.5 + 0.25
    before = LOGITS.copy()
    assert np.abs(penalized(LOGITS, SEEN, counts, 1.0, 0.25, 0.5) - expected).max() < 1e-5
    assert np.array_equal(LOGITS, before)


def test_a_sampler_counts_what_it_gave_out_until_another_sequence_starts():
    flat = np.array([1.0, 0.9, 0.8, 0.7], dtype=np.float32)
    sampler = Sampler(frequency_penalty=0.15)
    assert [sampler(flat) for _ in range(4)] == [0, 1, 0, 2]
    sampler.start([0, 1, 2])  # a prompt does not count
    assert sampler(flat) == 0
    repeated = Sampler(repetition_penalty=2.0)
    repeated.start([0])  # it does here
    assert [repeated(flat) for _ in range(4)] == [1, 2, 3, 0]


def test_greedy_with_a_repetition_penalty_writes_what_transformers_writes(build):
    decoder, model = build()
    engine = engines.load(model, device="cpu")
    peer = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**llama.to_hf(decoder.architecture), bos_token_id=None,
                                 eos_token_id=None, pad_token_id=0)
    ).eval()  # fmt: skip
    peer.load_state_dict(decoder.state_dict())
    prompt = [5, 17, 203, 88]
    out = peer.generate(
        torch.tensor([prompt]), max_new_tokens=30, do_sample=False, repetition_penalty=1.4
    )[0, 4:].tolist()
    assert engine.generate(prompt, 30, repetition_penalty=1.4, stop_ids=()).ids == out
    assert engine.generate(prompt, 30, stop_ids=()).ids != out


@pytest.mark.parametrize("kept", [{"top_k": 4}, {}, {"top_p": 0.7}, {"min_p": 0.2}], ids=str)
def test_draws_follow_the_distribution_and_never_leave_the_kept_set(kept):
    sampler = Sampler(temperature=1.0, **kept, seed=3)
    p = probabilities(LOGITS, 1.0, **kept)
    draws = np.bincount([sampler(LOGITS) for _ in range(4000)], minlength=200) / 4000
    assert set(np.flatnonzero(draws)) <= set(np.flatnonzero(p))
    assert np.abs(draws - p).max() < 0.04


def test_greedy_takes_the_first_of_the_most_likely():
    assert Sampler()(np.array([0.0, 2.0, 2.0, 1.0], dtype=np.float32)) == 1


def test_huge_logits_do_not_overflow():
    huge = np.array([1e30, 0.0, -1e30], dtype=np.float32)
    assert Sampler(temperature=0.01, seed=1)(huge) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(bad):
    with pytest.raises(InferenceError, match="not finite"):
        Sampler()(np.array([0.0, bad], dtype=np.float32))


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0},
     {"top_p": 1.5}, {"seed": -1}, {"min_p": 1.1}, {"min_p": -0.1}, {"repetition_penalty": 0.0},
     {"presence_penalty": float("inf")}, {"frequency_penalty": float("nan")}],
    ids=str,
)  # fmt: skip
def test_settings_outside_their_range_name_the_setting(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        Sampler(**settings)
