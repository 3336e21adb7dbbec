"""The parity matrix as tests: one shape of every family each time, all of them with llama.cpp."""

import importlib.util
import sys
from pathlib import Path

import pytest

from apr import families, native

pytest.importorskip("transformers")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "parity.py"
_spec = importlib.util.spec_from_file_location("parity", SCRIPT)
parity = importlib.util.module_from_spec(_spec)
sys.modules["parity"] = parity  # dataclasses look their module up
_spec.loader.exec_module(parity)

CASES = parity.cases()
FIRST = {case.family: case for case in reversed(CASES)}


def test_every_family_has_its_shapes():
    assert set(families.known()) == {case.family for case in CASES}


@pytest.mark.parametrize("case", FIRST.values(), ids=str)
def test_a_shape_of_each_family_agrees_with_transformers(case, tmp_path):
    row = parity.run(case, tmp_path, llama_cpp=False)
    assert row.problems == []
    assert row.ours <= parity.OURS  # never reached as NaN: something was compared
    assert native.unavailable() or row.kernels <= parity.OURS


@pytest.mark.slow  # two minutes together
@pytest.mark.exact
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_shape_agrees_with_transformers_and_llama_cpp(case, tmp_path):
    pytest.importorskip("llama_cpp")
    row = parity.run(case, tmp_path)
    assert row.problems == []
    assert row.ours <= parity.OURS
    if case.gguf and case.gguf_refused is None:
        assert row.llama_cpp <= case.gguf_bound
