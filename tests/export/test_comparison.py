"""Each bound of the proof can fail."""

import numpy as np
import pytest

from apr import contracts
from apr.dtypes import DTYPES
from apr.export import comparison
from apr.formats.opened import OpenedModel
from apr.quant import encode
from apr.tensors import Tensor, from_array

RNG = np.random.default_rng(0)
LOGITS = contracts.load("export")["logits"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("same_weights", None), ("transformers", None)]
    + [(kind, name) for kind in ("converted", "llama_cpp") for name in LOGITS[kind]],
)
def test_logits_beyond_the_bound_fail_and_within_it_pass(kind, name):
    bound = LOGITS[kind][name] if name else LOGITS[kind]
    source = RNG.standard_normal((8, 100)).astype(np.float32)
    noise = RNG.standard_normal(source.shape).astype(np.float32)
    far = source + noise * max(2 * bound["relative_rms"], 1e-3)
    assert comparison.logits(source, far, bound).verdict == "fail"
    near = source + noise * bound["relative_rms"] / 2
    assert comparison.logits(source, near.astype(np.float32), bound).verdict == "pass"


def test_logits_of_another_shape_or_not_finite_fail():
    bound = LOGITS["converted"]["Q8_0"]
    source = np.zeros((2, 3), np.float32)
    assert comparison.logits(source, source[:1], bound).verdict == "fail"
    assert comparison.logits(source, np.full((2, 3), np.nan, np.float32), bound).verdict == "fail"


def test_texts_that_give_no_token_are_no_pass():
    assert comparison.same_ids([""], [[]], [[]]).verdict == "fail"
    assert comparison.same_ids(["a", "b"], [[1], [2]], [[1]]).verdict == "fail"
    differing = comparison.same_ids(["abc"], [[1, 2, 3]], [[1, 2]])
    assert differing.verdict == "fail" and "token 2" in differing.message


def model(**tensors):
    return OpenedModel(None, "apr", None, tensors, {}, lambda: None, 0)


def stored(values, name):
    kind = DTYPES[name]
    raw = encode(kind, values)
    return Tensor("t", kind, values.shape, lambda: raw)


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0"])
def test_a_value_one_step_beyond_its_type_fails(name):
    values = RNG.standard_normal((4, 64)).astype(np.float32)
    values[0, :32] *= 1e-6  # where f16 is subnormal, and so is the scale of a block
    right = stored(values, name)
    source = from_array("t", values)
    assert comparison.tensors(model(t=source), model(t=right)).verdict == "pass"
    moved = values.copy()
    moved[2, 5] += np.abs(values[2]).max() * 0.02
    outcome = comparison.tensors(model(t=source), model(t=stored(moved, name)))
    assert outcome.verdict == "fail" and outcome.figures["of_bound"] > 1


def test_nan_in_one_of_two_tensors_fails():
    values = RNG.standard_normal((2, 32)).astype(np.float32)
    broken = values.copy()
    broken[1, 1] = np.nan
    source = model(t=from_array("t", values))
    assert comparison.tensors(source, model(t=stored(broken, "F16"))).verdict == "fail"
    assert comparison.tensors(source, model(t=from_array("t", broken))).verdict == "fail"


def test_a_missing_tensor_fails():
    tensor = from_array("t", np.zeros((1, 1), np.float32))
    assert comparison.tensors(model(t=tensor), model()).verdict == "fail"
