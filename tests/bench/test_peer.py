"""llama.cpp beside us: arithmetic with a fake peer, errors, and one run of the real one."""

import json

import pytest

from apr import bench
from apr.bench import measure, memory, peer, plot, verb
from apr.bench.sizes import Sizes, Test, plan
from apr.bench.timing import WarmUp
from apr.bench.workload import Workload
from apr.cli.main import run
from apr.errors import InferenceError, UsageError
from apr.formats import open_model, write_gguf


@pytest.fixture(autouse=True)
def _small_probe(monkeypatch):
    monkeypatch.setattr(memory, "_CPU_BUFFER", 1 << 20)


@pytest.fixture
def gguf(checkpoint, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, open_model(checkpoint()))
    return path


class FakePeer:
    """Answers at half, then a quarter of our speed; the order of all runs is in `turns`."""

    def __init__(self, path, threads):
        self.facts = {"version": "0", "system": "AVX"}
        self.extra_buffers, self.notes, self.peak_rss = False, [peer.WITHOUT], 5
        self.turns, self.threads = [], threads

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, test):
        self.turns.append("theirs")
        return (2.0 if self.turns.count("theirs") % 2 else 4.0), 0.5


def test_a_peer_is_paired_with_us_in_turns_and_its_note_is_kept(gguf, monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(peer, "check", lambda path, format: None)
    monkeypatch.setattr(peer, "Peer", lambda *a: made.append(FakePeer(*a)) or made[0])
    monkeypatch.setattr(measure, "warm_up", lambda run: WarmUp(0, True, 0.0))

    def ours(self):
        made[0].turns.append("ours")
        return 1.0

    monkeypatch.setattr(Workload, "run", ours)
    result = bench.against_peer(gguf, Sizes((), (4,), 4, (0, 8)), threads=1)
    assert [r.test for r in result.ratios] == ["tg4", "tg4@d8"]
    assert made[0].turns[:8] == ["ours", "theirs", "theirs", "ours"] * 2
    assert result.ratios[0].pairs == (2.0, 4.0, 2.0, 4.0)
    assert result.ratios[0].median == 3.0
    assert peer.WITHOUT in result.second.notes
    probes = result.first.rows[0].bandwidth
    assert len(probes.probes) == 5  # before the first round and after each
    plot.draw(result, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_tests_are_laid_out_by_depth_and_batch_and_fitted_to_the_context():
    tests, _ = plan(Sizes((4,), (2,), 1, (0, 8), (1, 3)), 48)
    assert [t.name for t in tests] == ["pp4", "pp4@d8", "tg2", "tg2x3", "tg2@d8", "tg2x3@d8"]
    with pytest.raises(UsageError, match="behind a depth of 40.*-p 8 or less"):
        plan(Sizes((16,), (2,), 1, (40,)), 48)
    with pytest.raises(UsageError, match="--depth 47 or less"):
        plan(Sizes(depths=(48,)), 48)


def test_depths_batches_and_a_picture_come_out_of_the_verb(checkpoint, capsys, tmp_path):
    picture = tmp_path / "bars.png"
    arguments = ["bench", str(checkpoint()), "-p", "4", "-n", "2", "-r", "1", "--depth", "0,8",
                 "--batch", "1,2", "--device", "cpu", "--json", "--plot", str(picture)]  # fmt: skip
    assert run(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [(r["depth"], r["batch"], r["tokens"]) for r in rows if r["test"].startswith("tg")] == [
        (0, 1, 2), (0, 2, 4), (8, 1, 2), (8, 2, 4),
    ]  # fmt: skip
    assert picture.exists()
    assert run(arguments) == 7  # the picture exists
    assert run(["bench", "x.apr", "--depth", "1,x"]) == 2


def test_what_the_peer_cannot_do_is_said_before_anything_is_loaded(
    checkpoint, gguf, capsys, monkeypatch
):
    monkeypatch.setattr(verb, "_load", None)
    monkeypatch.setattr(peer.importlib.util, "find_spec", lambda name: object())
    assert run(["bench", str(checkpoint("n.apr")), "--against", "llama.cpp"]) == 2
    assert "apr export" in capsys.readouterr().err
    assert run(["bench", str(gguf), "--against", "llama.cpp", "--device", "cuda"]) == 2
    monkeypatch.setattr(peer.importlib.util, "find_spec", lambda name: None)
    assert run(["bench", str(gguf), "--against", "llama.cpp"]) == 9
    assert "llama-cpp-python is not installed" in capsys.readouterr().err


@pytest.mark.exact
def test_the_real_peer_runs_the_same_file(gguf, tmp_path):
    pytest.importorskip("llama_cpp")
    result = bench.against_peer(gguf, Sizes((8,), (4,), 2, (0, 8), (1, 2)), threads=1)
    assert [r.test for r in result.second.rows] == [r.test for r in result.first.rows]
    assert all(ratio.median > 0 for ratio in result.ratios)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf.read_bytes()[:200])
    with pytest.raises(InferenceError, match=r"llama\.cpp"):
        peer.Peer(broken, 1)
    with peer.Peer(gguf, 1) as one:
        assert one.run(Test("pp", 4))[0] > 0
