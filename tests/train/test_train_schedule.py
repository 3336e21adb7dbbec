"""The learning rate by step."""

import pytest

from apr.train.schedule import Schedule


def make(kind: str) -> Schedule:
    return Schedule(kind, 1.0, num_steps=1000, warmup_steps=100, min_ratio=0.1, decay_fraction=0.2)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_warmup_rises_in_a_line_to_the_peak(kind):
    schedule = make(kind)
    assert schedule.at(1) == pytest.approx(0.01)
    assert schedule.at(50) == pytest.approx(0.5)
    assert schedule.at(100) == 1.0


def test_cosine_ends_at_the_floor_and_is_halfway_in_the_middle():
    assert make("cosine").at(550) == pytest.approx(0.55)
    assert make("cosine").at(1000) == pytest.approx(0.1)


def test_wsd_stays_at_the_peak_until_the_last_fifth():
    assert make("wsd").at(800) == 1.0
    assert make("wsd").at(801) < 1.0
    assert make("wsd").at(1000) == pytest.approx(0.1)


def test_no_warmup_starts_at_the_peak():
    assert Schedule("constant", 0.3, 10, 0, 0.1, 0.2).at(1) == 0.3
