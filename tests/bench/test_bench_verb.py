"""Records of real runs (no timed assertion on them), and figures of made-up ones."""

import dataclasses
import hashlib

import pytest
import torch

from apr import bench, engine
from apr.bench import measure, memory, verb
from apr.bench.record import Bandwidth, Floor, Ratio, Row
from apr.bench.sizes import Sizes
from apr.bench.timing import Samples, WarmUp
from apr.errors import FeatureUnavailable, InferenceError, NotFound, UsageError

SMALL = Sizes((16,), (4,), 3)


@pytest.fixture(autouse=True)
def _small_probe(monkeypatch):
    monkeypatch.setattr(memory, "_CPU_BUFFER", 1 << 20)


def test_the_probes_buffer_is_no_memory_of_the_model(checkpoint, monkeypatch):
    """As it is the larger of both, peak memory was the buffer's."""
    path = checkpoint()
    monkeypatch.setattr(memory, "peak_rss", lambda: 900 << 20)
    monkeypatch.setattr(memory, "_CPU_BUFFER", 64 << 20)
    loaded = dataclasses.replace(verb._load(path, ("cpu", None, 1, None, None), None), peak_rss=5)
    monkeypatch.setattr(verb, "_load", lambda *_: loaded)
    assert bench.run(path, SMALL).peak_rss == 900 - 64 << 20
    loaded = dataclasses.replace(loaded, peak_rss=870 << 20)
    assert bench.run(path, SMALL).peak_rss == 870 << 20


def test_a_record_names_what_ran_on_what(checkpoint):
    path = checkpoint()
    record = bench.run(path, SMALL, device="cpu", threads=1, kernels="torch")
    assert [row.test for row in record.rows] == ["pp16", "tg4"]
    assert all(len(row.samples.seconds) == 3 for row in record.rows)
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    data = record.to_json()
    assert data["computed"] == "float32"
    assert data["stored"].keys() == {"F32"}
    assert data["engine"]["threads"] == data["receipt"]["threads"] == 1
    assert data["receipt"]["device"] == "cpu"
    assert data["tokens_per_second"] == data["results"][1]["tokens_per_second"] > 0
    assert data["time_to_first_token_ms"] > 0
    assert data["peak_rss_bytes"] > 1 << 20
    assert data["results"][1]["bandwidth"]["source"] == "probed"


def test_default_sizes_are_reduced_to_the_context_with_a_note_and_the_row_says_so(checkpoint):
    record = bench.run(checkpoint(), Sizes(repetitions=1), device="cpu")
    assert [row.test for row in record.rows] == ["pp48", "tg47"]
    assert "pp48 instead of pp512: the context has 48 tokens" in record.notes
    assert "tg47 instead of tg128: the context has 48 tokens" in record.notes


def test_sizes_that_were_asked_for_are_never_reduced(checkpoint):
    path = checkpoint()
    with pytest.raises(UsageError, match="-p 49.*context of 48 tokens.*-p 48 or less"):
        bench.run(path, Sizes((49,), (4,), 1))
    with pytest.raises(UsageError, match="-n 48.*-n 47 or less"):
        bench.run(path, Sizes((4,), (48,), 1))


@pytest.mark.parametrize(
    ("sizes", "floor", "what"),
    [
        (Sizes((0,), (0,)), None, "nothing to measure"),
        (Sizes((-1,), None), None, "not negative"),
        (Sizes(repetitions=0), None, "-r"),
        (Sizes((4,), (0,)), 10.0, "--floor"),
        (Sizes((4,), (4,)), 0.0, "--floor"),
        (Sizes((4,), (4,)), float("nan"), "--floor"),
    ],
)
def test_settings_that_measure_nothing_are_usage_errors(checkpoint, sizes, floor, what):
    with pytest.raises(UsageError, match=what):
        bench.run(checkpoint(), sizes, floor=floor)


def test_one_kind_alone_can_be_measured_in_several_sizes(checkpoint):
    record = bench.run(checkpoint(), Sizes((4, 8), (0,), 1), device="cpu")
    assert [row.test for row in record.rows] == ["pp4", "pp8"]
    assert record.decode is None
    assert record.to_json()["tokens_per_second"] is None


def test_two_files_are_measured_in_turns_and_paired(checkpoint, monkeypatch):
    a, b = checkpoint("a.apr"), checkpoint("b.apr", dtype=torch.bfloat16)
    order = []
    plain = verb.Workload.run

    def watched(self):
        order.append(id(self.engine))
        return plain(self)

    monkeypatch.setattr(verb.Workload, "run", watched)
    monkeypatch.setattr(measure, "warm_up", lambda run: WarmUp(0, True, 0.0))
    result = bench.compare(a, b, Sizes((8,), (0,), 4), device="cpu")
    first, second = order[0], order[1]
    assert order == [first, second, second, first, first, second, second, first]
    (ratio,) = result.ratios
    pairs = zip(result.first.rows[0].rates, result.second.rows[0].rates, strict=True)
    assert ratio.pairs == pytest.approx([x / y for x, y in pairs])
    assert result.to_json()["against"]["stored"].keys() == {"BF16"}


def test_what_fails_while_measuring_could_not_be_measured(checkpoint, monkeypatch):
    def broken(self):
        raise RuntimeError("the device fell off the bus")

    monkeypatch.setattr(verb.Workload, "run", broken)
    with pytest.raises(InferenceError, match="fell off the bus"):
        bench.run(checkpoint(), SMALL, device="cpu")
    with pytest.raises(NotFound):
        bench.run("absent.apr", SMALL)
    if not torch.cuda.is_available():
        with pytest.raises(FeatureUnavailable):
            bench.run(checkpoint("c.apr"), SMALL, device="cuda")


def row(**changes) -> Row:
    values = {
        "test": "tg10", "tokens": 10, "samples": Samples((0.1, 0.1, 0.1)),
        "warm_up": WarmUp(3, True, 0.3), "bytes_per_token": 2e8, "flops_per_token": 1e9,
        "bandwidth": Bandwidth(40e9, "probed", 39e9, 41e9), "peak_flops": None,
    }  # fmt: skip
    return Row(**{**values, **changes})


def test_rate_mbu_and_mfu_of_known_samples():
    known = row(peak_flops=1e12)
    assert known.tokens_per_second == pytest.approx(100)
    assert known.mbu == pytest.approx(0.5)
    assert known.mfu == pytest.approx(0.1)
    assert row().mfu is None  # an unknown peak is unknown, never a guess
    assert row(test="pp10").mbu is None
    assert row(bandwidth=None).mbu is None


def test_a_spread_over_5_percent_or_an_unsettled_warm_up_is_noisy():
    assert not row().noisy
    assert row(samples=Samples((0.1, 0.1, 0.12))).noisy
    assert row(warm_up=WarmUp(12, False, 3.0)).noisy
    assert Ratio("tg10", (1.0, 1.2, 0.9)).noisy
    assert not Ratio("tg10", (1.0, 1.01, 0.99)).noisy


def test_a_floor_is_held_at_equality_and_missed_below():
    assert Floor(100.0, 100.0).held
    assert not Floor(100.0, 99.99).held


@pytest.mark.parametrize("tied", [True, False])
def test_streamed_bytes_are_the_weights_read_in_a_step_and_the_mean_cache(checkpoint, tied):
    loaded = engine.load(checkpoint(tie_word_embeddings=tied), device="cpu", kernels="torch")
    arch = loaded.architecture
    weights = sum(tensor.nbytes for tensor in loaded._model.tensors.values())
    if not tied:  # one row of the embedding is looked up, the head is read whole
        weights -= (arch.vocab_size - 1) * arch.hidden_size * 4
    depths = [1 + step + 1 for step in range(8)]  # positions attended to at each step
    cache = 2 * arch.num_layers * arch.kv_size * 4 * sum(depths) / 8
    assert measure.streamed_bytes(loaded, 8) == pytest.approx(weights + cache)


def test_a_folder_is_hashed_by_the_names_and_hashes_of_its_files(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    before = verb.file_sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert verb.file_sha256(tmp_path) != before


def test_the_probe_reads_at_a_finite_speed():
    clock = iter(float(i) for i in range(100))
    probe = memory.Probe(torch.device("cpu"), clock=lambda: next(clock))
    assert probe.read() == probe._buffer.nbytes  # one second a read on this clock


def test_an_unstable_decode_is_noted(checkpoint):
    loaded = verb._load(checkpoint(), ("cpu", None, None, None, None), None)
    record = verb._record(loaded, [dataclasses.replace(row(), warm_up=WarmUp(9, False, 1.0))], 500)
    assert any("warm-up not stable after 9 runs" in note for note in record.notes)
    assert record.floor == Floor(500, pytest.approx(100))
    assert not record.floor.held
