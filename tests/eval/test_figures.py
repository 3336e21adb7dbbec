"""Estimates against their textbook forms, and pass@k against counting all draws."""

import itertools
import math
import statistics

import numpy as np
import pytest

from apr.errors import UsageError
from apr.eval import figures, passing


def test_perplexity_and_bits_per_byte_carry_their_standard_errors():
    rng = np.random.default_rng(1)
    nats, count = rng.gamma(2.0, 1.0, 400), rng.integers(0, 6, 400)
    scores = figures.Scores(nats, count)
    error = statistics.stdev(nats) / math.sqrt(400)
    assert scores.loss.error == pytest.approx(error)
    assert scores.perplexity.value == pytest.approx(math.exp(statistics.fmean(nats)))
    assert scores.perplexity.error == pytest.approx(scores.perplexity.value * error)
    assert scores.bits_per_byte.value == pytest.approx(nats.sum() / math.log(2) / count.sum())
    # The ratio's error, against resampling the tokens.
    draws = []
    for _ in range(2000):
        picked = rng.integers(0, 400, 400)
        draws.append(nats[picked].sum() / math.log(2) / count[picked].sum())
    assert scores.bits_per_byte.error == pytest.approx(np.std(draws), rel=0.1)


def test_what_has_no_error_or_no_bytes_says_so_in_json():
    one = figures.Scores(np.array([1.0]), np.array([0]))
    assert one.to_json()["nats_per_token"] == {"value": 1.0, "standard_error": None}
    assert one.to_json()["bits_per_byte"] == {"value": None, "standard_error": None}


@pytest.mark.parametrize(("samples", "passed"), [(6, 0), (6, 1), (6, 3), (6, 5), (6, 6)])
def test_pass_at_k_is_the_share_of_draws_with_a_pass(samples, passed):
    marks = [True] * passed + [False] * (samples - passed)
    for k in range(1, samples + 1):
        draws = [any(draw) for draw in itertools.combinations(marks, k)]
        found = passing.pass_at_k(samples, passed, k)
        assert found == pytest.approx(sum(draws) / len(draws))


def test_pass_at_k_over_problems_has_the_error_over_problems():
    found = passing.estimate(4, [0, 4, 2, 2], 1)
    assert found.value == 0.5
    assert found.error == pytest.approx(statistics.stdev([0, 1, 0.5, 0.5]) / 2)
    assert math.isfinite(passing.pass_at_k(10_000, 3, 100))


def test_a_k_that_the_samples_do_not_allow_is_an_error():
    assert passing.check_ks((), 20) == (1, 10)
    assert passing.check_ks((5, 1), 5) == (1, 5)
    with pytest.raises(UsageError, match=r"-k 10: needs 10 samples.*there are 5"):
        passing.check_ks((10,), 5)
    with pytest.raises(UsageError, match="-k 0"):
        passing.check_ks((0,), 5)
