"""Sampling against transformers' warpers and against the frequencies it promises."""

import numpy as np
import pytest
import torch

from apr.engine.sampling import Sampler, probabilities
from apr.errors import InferenceError, UsageError

transformers = pytest.importorskip("transformers")
LOGITS = np.random.default_rng(0).normal(0, 3, 200).astype(np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.3, 0, 0.8), (0.9, 40, 0.5), (1.0, 500, 0.01)],
)
def test_the_distribution_is_that_of_transformers(temperature, top_k, top_p):
    scores = torch.tensor(LOGITS)[None]
    warpers = [transformers.TemperatureLogitsWarper(temperature)]
    if top_k:
        warpers.append(transformers.TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(transformers.TopPLogitsWarper(top_p))
    for warper in warpers:
        scores = warper(None, scores)
    theirs = scores.softmax(-1)[0].numpy()
    assert np.abs(probabilities(LOGITS, temperature, top_k, top_p) - theirs).max() < 1e-6


def test_draws_follow_the_distribution_and_never_leave_the_kept_set():
    sampler = Sampler(temperature=1.0, top_k=4, seed=3)
    p = probabilities(LOGITS, 1.0, 4)
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
     {"top_p": 1.5}, {"seed": -1}],
    ids=str,
)  # fmt: skip
def test_settings_outside_their_range_name_the_setting(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        Sampler(**settings)
