"""Memory that does not suffice: known before it is taken, with how much is missing."""

import pytest

from apr import device as devices
from apr import engine as engines
from apr import native
from apr.errors import InferenceError

BOTH = [
    "torch",
    pytest.param(
        "native",
        marks=pytest.mark.skipif(bool(native.unavailable()), reason=native.unavailable() or "-"),
    ),
]


@pytest.fixture
def machine(tmp_path):
    """`machine(free, group=(most, used, of files))` -> folders that look like Linux's, bytes."""

    def make(free, group=None):
        proc, groups = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        (groups / "a" / "b").mkdir(parents=True)
        (proc / "meminfo").write_text(f"MemTotal: 9999 kB\nMemAvailable: {free // 1024} kB\n")
        (proc / "self" / "cgroup").write_text("4:memory:/old\n0::/a/b\n")
        if group is not None:
            most, used, files = group
            (groups / "a" / "memory.max").write_text(f"{most}\n")
            (groups / "a" / "memory.current").write_text(f"{used}\n")
            (groups / "a" / "memory.stat").write_text(f"anon 7\nfile {files}\n")
            (groups / "a" / "b" / "memory.max").write_text("max\n")
        return proc, groups

    return make


def test_a_machine_has_what_linux_says_is_available(machine, tmp_path):
    assert devices.available_memory(*machine(3 << 20)) == 3 << 20
    assert devices.available_memory(tmp_path / "nowhere", tmp_path) is None


def test_a_container_has_less_than_its_machine(machine):
    """1,000,000 bytes at most, 900,000 taken, of which 300,000 are pages of files."""
    assert devices.available_memory(*machine(3 << 20, (1_000_000, 900_000, 300_000))) == 400_000


@pytest.mark.parametrize("kernels", BOTH)
def test_weights_that_do_not_fit_are_refused_with_what_is_missing(build, monkeypatch, kernels):
    _, model = build()
    engines.load(model, device="cpu", kernels=kernels)
    need = sum(t.num_elements * 4 for t in model.tensors.values())
    monkeypatch.setattr(devices, "available_memory", lambda: 200_000)
    with pytest.raises(InferenceError, match="weights.*0 MB of memory are free: .* are missing"):
        engines.load(model, device="cpu", kernels=kernels)
    monkeypatch.setattr(devices, "available_memory", lambda: 2 * need)
    engines.load(model, device="cpu", kernels=kernels)


@pytest.mark.parametrize("kernels", BOTH)
def test_a_cache_that_does_not_fit_is_refused_before_anything_is_computed(
    build, monkeypatch, kernels
):
    _, model = build()
    engine = engines.load(model, device="cpu", kernels=kernels)
    free = engine.cache_bytes(60)
    monkeypatch.setattr(devices, "available_memory", lambda: free)
    assert len(engine.generate([1] * 10, 20, stop_ids=()).ids) == 20
    with pytest.raises(InferenceError, match="cache: 109 positions need .* are missing"):
        engine.generate([1] * 10, 100, on_token=lambda _: pytest.fail("computed"))
    with pytest.raises(InferenceError, match="cache: 87 positions need"):
        engine.generate_batch([[1] * 10] * 3, 20)


@pytest.mark.parametrize("kernels", BOTH)
def test_layers_with_a_window_hold_no_more_than_it(build, kernels):
    _, model = build(max_position_embeddings=4096)
    full = engines.load(model, device="cpu", kernels=kernels)
    assert full.cache_bytes(4096) > 3.5 * full.cache_bytes(1024)
    if kernels == "native":
        _, model = build(max_position_embeddings=4096, sliding_window=16)
        windowed = engines.load(model, device="cpu", kernels=kernels)
        assert windowed.cache_bytes(4096) < full.cache_bytes(512)
