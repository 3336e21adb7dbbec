"""Divergence and early stopping fire when they should, and on noise never."""

import math
import random

from apr.train.stops import Divergence, EarlyStop


def test_a_loss_that_is_not_finite_diverges_at_once():
    assert "nan" in Divergence(257, 0).judge(1, math.nan, 1.0)
    assert "inf" in Divergence(257, 0).judge(1, math.inf, 1.0)
    assert "gradient norm" in Divergence(257, 0).judge(1, 3.0, math.nan)


def test_a_noisy_falling_loss_with_single_spikes_never_diverges():
    watch, draw = Divergence(257, 20), random.Random(1)
    for step in range(1, 2000):
        loss = 2.0 + 3.5 * math.exp(-step / 200) + draw.gauss(0, 0.2)
        assert watch.judge(step, loss + (6.0 if step % 97 == 0 else 0.0), 1.0) is None


def test_a_loss_that_climbs_past_twice_its_best_diverges():
    watch = Divergence(50_000, 20)
    found = [watch.judge(step, 3.0 if step < 200 else 8.0, 1.0) for step in range(1, 300)]
    assert found[:199] == [None] * 199
    assert any(found)


def test_a_loss_above_guessing_diverges_after_warmup_only():
    watch = Divergence(257, 50)
    found = [watch.judge(step, math.log(257) + 2, 1.0) for step in range(1, 100)]
    assert found[:58] == [None] * 58
    assert "guessing" in next(f for f in found if f)


def test_a_saved_watch_goes_on_with_the_same_judgement():
    one, two = Divergence(257, 5), Divergence(257, 5)
    for step in range(1, 40):
        one.judge(step, 3.0, 1.0)
    two.restore(one.state())
    assert two == one


def test_early_stop_counts_only_rises_beyond_their_noise():
    stop = EarlyStop(patience=2)
    assert not stop.judge(0.01, 0.02)  # within the noise
    assert not stop.judge(0.05, 0.02)
    assert not stop.judge(-0.01, 0.02)  # better again: the count starts over
    assert not stop.judge(0.05, 0.02)
    assert stop.judge(0.06, 0.02)
    assert "0.0600" in stop.reason


def test_without_patience_nothing_stops_early():
    stop = EarlyStop(patience=None)
    assert not any(stop.judge(5.0, 0.01) for _ in range(100))
