"""The CUDA engine on CPU tensors, through Triton's interpreter."""

import importlib.util
from pathlib import Path

import pytest

from apr import cuda

if importlib.util.find_spec("triton") is None:
    collect_ignore = []


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/cuda/" in str(item.path).replace("\\", "/") and "gpu" not in item.keywords:
            why = "kernels run on a GPU here, not through the interpreter"
            item.add_marker(pytest.mark.skipif(not cuda.interpreted(), reason=why))


@pytest.fixture
def large_programs(monkeypatch):
    """The interpreter takes milliseconds for a program, whatever its size."""
    from apr.cuda import launches

    shapes = launches.Shapes(
        rows=512, tall=512, many=512, plain=1 << 20, blocks=1 << 16, unpacked=64
    )
    monkeypatch.setattr(launches, "SHAPES", shapes)


def _module(name, *parts):
    path = Path(__file__).resolve().parents[1].joinpath(*parts)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def build():
    """`build(dtype, **changes)` -> an opened model: tests/engine's, of half its size."""
    tiny = _module("tiny_models", "engine", "conftest.py")

    def make(dtype=None, seed=1, **changes):
        sizes = {"num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "hidden_size": 32}
        decoder = tiny.make_decoder(tiny.make_architecture(**{**sizes, **changes}), seed)
        return tiny.make_model(decoder, *([] if dtype is None else [dtype]))

    return make
