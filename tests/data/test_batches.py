"""The order of the data: each window once an epoch, resumable, and never silently again."""

import json
from itertools import pairwise

import numpy as np
import pytest
from data_standin import ByteTokenizer

from apr.data.batches import (
    Batches,
    DataExhausted,
    check_enough,
    validation_batches,
    validation_windows,
)
from apr.data.dataset import build_dataset
from apr.data.permutation import Permutation, mixed
from apr.errors import GateFailed, UsageError


class Range:
    """Tokens 0, 1, 2, ...: a token's value is its place."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def slice(self, start, stop):
        assert 0 <= start <= stop <= self.length
        return np.arange(start, stop)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 255, 256, 1000, 4097])
def test_a_permutation_has_each_number_once(size):
    orders = [Permutation(size, mixed(key)).at(0, size).tolist() for key in range(3)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size > 16:
        assert orders[0] != orders[1] != orders[2]


def test_all_permutations_of_three_come_up_equally_often():
    from collections import Counter

    counts = Counter(tuple(Permutation(3, mixed(key)).at(0, 3).tolist()) for key in range(3000))
    assert len(counts) == 6
    assert all(400 < count < 600 for count in counts.values())


def test_the_order_is_the_same_on_every_machine_and_version():
    assert Permutation(1000, 42).at(0, 6).tolist() == [883, 360, 92, 121, 112, 658]
    assert Permutation(10**12, 42).at(5, 7).tolist() == [176144612101, 729333890419]


@pytest.mark.parametrize(("length", "batch", "seq"), [(1000, 4, 10), (129, 8, 15), (5000, 7, 64)])
def test_an_epoch_visits_every_window_once_and_they_do_not_overlap(length, batch, seq):
    batches = Batches(Range(length), batch, seq, seed=3)
    seen = []
    windows = batches.windows_left
    while len(seen) < windows:
        seen += batches.next().tolist()
    firsts = sorted(row[0] for row in seen[:windows])
    assert all(row == list(range(row[0], row[0] + seq + 1)) for row in seen)
    assert {b - a for a, b in pairwise(firsts)} <= {seq}
    assert firsts[0] < seq and length - (firsts[-1] + seq) <= seq
    assert batches.epoch == 1


def test_epochs_differ_in_order_and_borders_and_seeds_in_both():
    def first(seed, epoch):
        batches = Batches(Range(100_000), 50, 64, seed=seed)
        while batches.epoch < epoch:
            batches.next()
        return tuple(batches.next()[:, 0] % 64), tuple(batches.next()[:, 0])

    starts = [first(0, 0), first(0, 1), first(1, 0)]
    assert len({a for a, _ in starts}) == 3
    assert len({b for _, b in starts}) == 3


def test_resume_goes_on_with_the_very_same_batches():
    def fresh():
        return Batches(Range(3000), 7, 16, seed=5)

    whole = fresh()
    expected = [whole.next() for _ in range(120)]
    for stop in (0, 1, 25, 26, 27, 90):
        before = fresh()
        for _ in range(stop):
            before.next()
        after = fresh()
        after.restore(json.loads(json.dumps(before.state())))
        assert all(np.array_equal(after.next(), batch) for batch in expected[stop:])
        assert after.state() == whole.state()
        assert (after.epoch, after.tokens_seen, after.unique_tokens) == (
            whole.epoch,
            whole.tokens_seen,
            whole.unique_tokens,
        )


@pytest.mark.parametrize("change", [{"seed": 6}, {"batch_size": 8}, {"seq_len": 8}, {"tokens": 9}])
def test_resume_with_other_data_or_settings_is_refused(change):
    values = {"batch_size": 7, "seq_len": 16, "seed": 5}
    state = Batches(Range(3000), **values).state()
    tokens = Range(2999 if change.pop("tokens", None) else 3000)
    with pytest.raises(UsageError, match="the run had"):
        Batches(tokens, **{**values, **change}).restore(state)


def test_unique_tokens_are_those_that_were_really_given_out():
    batches = Batches(Range(700), 4, 16, seed=2)
    targets = set()
    for _ in range(60):
        targets.update(batches.next()[:, 1:].ravel().tolist())
        assert batches.unique_tokens <= len(targets) < batches.unique_tokens + 2 * 16
        if batches.epoch == 0:
            assert batches.unique_tokens == len(targets) == batches.tokens_seen
    assert batches.epoch > 4
    assert batches.tokens_seen == 60 * 4 * 16


def test_repeat_fills_a_batch_from_the_next_epoch_and_leaves_no_window_out():
    batches = Batches(Range(1000), 7, 10, seed=1)
    first = batches.windows_left
    rows = []
    while batches.epoch < 2:
        rows += batches.next()[:, 0].tolist()
    assert first % 7
    assert len(set(rows[:first])) == first


def test_stop_and_error_end_after_one_epoch_with_the_figures():
    for policy, kind in (("stop", DataExhausted), ("error", GateFailed)):
        batches = Batches(Range(1000), 7, 10, seed=1, on_exhausted=policy)
        windows, given = batches.windows_left, 0
        with pytest.raises(kind, match="exhausted after one epoch: 980 tokens were seen once") as e:
            while True:
                given += len(batches.next())
        assert given == windows // 7 * 7 == batches.tokens_seen // 10
        assert isinstance(e.value, DataExhausted) == (policy == "stop")
        assert e.value.exit_code == 5
        with pytest.raises(kind):
            batches.next()


def test_fewer_tokens_than_one_batch_is_an_error_with_both_figures(tmp_path):
    with pytest.raises(UsageError, match=r"779 training tokens, one batch needs 12 x 65 = 780"):
        Batches(Range(779), 12, 64)
    for seed in range(50):
        batch = Batches(Range(780), 12, 64, seed=seed).next()
        assert len(np.unique(batch[:, 1:])) == 12 * 64
    (tmp_path / "x.txt").write_text("a little text\n" * 30)
    dataset = build_dataset([tmp_path / "x.txt"], ByteTokenizer(), tmp_path / "out")
    check_enough(dataset, 4, 16)
    with pytest.raises(UsageError, match="smaller --batch-size"):
        check_enough(dataset, 64, 16)
    (tmp_path / "y.txt").write_text("x")
    dataset = build_dataset([tmp_path / "y.txt"], ByteTokenizer(), tmp_path / "out1")
    with pytest.raises(UsageError, match="0 validation tokens"):
        check_enough(dataset, 1, 1)


@pytest.mark.parametrize(
    "values", [{"batch_size": 0}, {"seq_len": 0}, {"on_exhausted": "wrap"}], ids=str
)
def test_wrong_values_are_usage_errors(values):
    with pytest.raises(UsageError):
        Batches(Range(100), **{"batch_size": 2, "seq_len": 4, **values})


def test_validation_covers_the_set_in_order_the_same_each_time():
    once = list(validation_batches(Range(1000), 4, 30))
    again = list(validation_batches(Range(1000), 4, 30))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    rows = np.concatenate(once)
    assert rows.shape == (33, 31)
    assert rows[:, 1:].ravel().tolist() == list(range(1, 991))
    assert validation_windows(1000, 30, None) == (33, 990)


def test_validation_of_a_part_is_spread_over_the_set():
    rows = np.concatenate(list(validation_batches(Range(10_001), 4, 10, max_tokens=100)))
    assert rows[:, 0].tolist() == list(range(0, 10_000, 1000))
    assert validation_windows(10_001, 10, 100) == (10, 100)
    assert len(np.concatenate(list(validation_batches(Range(1000), 4, 10, max_tokens=1)))) == 1


def test_a_validation_set_shorter_than_a_window_is_one_short_window():
    (batch,) = validation_batches(Range(20), 4, 30)
    assert batch.tolist() == [list(range(20))]
    assert validation_windows(20, 30, None) == (1, 19)
    assert list(validation_batches(Range(1), 4, 30)) == []
    assert validation_windows(0, 30, None) == (0, 0)
