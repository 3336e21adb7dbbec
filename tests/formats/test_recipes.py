"""Every recipe there and back: identical bytes for every float type, blocks kept where rows are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from apr_tiny import make_architecture

from apr.dtypes import DTYPES
from apr.errors import InvalidFormat
from apr.families import Place, TensorSpec
from apr.formats import recipes
from apr.quant import encode
from apr.tensors import Tensor, from_array, from_torch

ARCH = replace(
    make_architecture(), num_heads=4, kv_lora_rank=64, qk_nope_head_dim=32, v_head_dim=16,
    qk_rope_head_dim=8,
)  # fmt: skip
FLOATS = ["F32", "F16", "BF16"]


def specs(recipe, shape, *, names=("there",), experts=0, parts=1, count=0):
    """The canonical tensors that share the tensors `names` of the other world."""
    out = []
    for part in range(parts):
        for e in range(experts or 1):
            place = Place(names, recipe, e if experts else None, count or part, 0, experts)
            out.append(TensorSpec(f"t{part}.{e}", shape, "expert", place, place))
    return out


CASES = {
    "plain": specs("plain", (8, 64)),
    "squeezed": specs("squeezed", (1, 64)),
    "heads": specs("heads", (24, 64), count=3),
    "heads, a bias": specs("heads", (24,), count=3),
    "stack": specs("stack", (8, 64), experts=3),
    "stack, biases": specs("stack", (8,), experts=3),
    "transpose": specs("transpose", (8, 64)),
    "stack_transpose": specs("stack_transpose", (8, 64), experts=3),
    "interleaved": specs("interleaved", (8, 64), experts=3, parts=2),
    "interleaved, biases": specs("interleaved", (8,), experts=3, parts=2),
    "kv_b": specs("kv_b", (4 * 48, 64), names=("k_b", "v_b")),
    "plus_one": specs("plus_one", (64,)),
}
# The shape of what stands there, worked out by hand.
THERE = {
    "squeezed": (64,), "stack": (3, 8, 64), "stack, biases": (3, 8), "transpose": (64, 8),
    "stack_transpose": (3, 64, 8), "interleaved": (3, 64, 16), "interleaved, biases": (3, 16),
    "kv_b": (4, 64, 32),
}  # fmt: skip


def tensors(members, dtype):
    generator = torch.Generator().manual_seed(7)
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    out = {}
    for member in members:
        # Halves and quarters: one can be added to them without rounding, in every type.
        values = torch.randint(-20, 20, member.shape, generator=generator) / 4
        out[member.name] = from_torch(member.name, values.to(kinds[dtype]))
    return out


def blocks(members, dtype):
    """Random blocks, of a type that can be made from numbers."""
    generator = np.random.default_rng(7)
    out = {}
    for member in members:
        values = generator.standard_normal(member.shape).astype(np.float32)
        raw = encode(DTYPES[dtype], values)
        out[member.name] = Tensor(member.name, DTYPES[dtype], member.shape, lambda raw=raw: raw)
    return out


def there(members, held, world="gguf", keep=True):
    choose = lambda tensor, spec: tensor.dtype if keep else DTYPES["F32"]  # noqa: E731
    made = recipes.write(world, members, held, ARCH, choose)
    return {tensor.name: tensor for tensor in made}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", CASES)
def test_there_and_back_gives_the_same_bytes(case, dtype):
    members = CASES[case]
    held = tensors(members, dtype)
    made = there(members, held)
    assert {name for member in members for name in member.gguf.names} == made.keys()
    first = next(iter(made.values()))
    assert first.shape == THERE.get(case, members[0].shape)
    back = recipes.canonical("gguf", members, made, ARCH)
    assert back.keys() == held.keys()
    for name, tensor in held.items():
        assert back[name].shape == tensor.shape
        if case == "plus_one":  # a norm: stored there as F32, whatever it is here
            assert np.array_equal(back[name].float32(), tensor.float32())
            continue
        assert back[name].dtype == tensor.dtype
        assert np.array_equal(back[name].raw(), tensor.raw())
        assert np.array_equal(np.concatenate(list(back[name].chunks())), tensor.raw())


def test_what_stands_there_is_what_transformers_and_llama_cpp_have():
    """Worked out element by element, not by the way back."""
    members = CASES["interleaved"]
    held = tensors(members, "F32")
    made = there(members, held)["there"].numpy()
    for e in range(3):
        gate, up = held[f"t0.{e}"].numpy(), held[f"t1.{e}"].numpy()
        assert np.array_equal(made[e, :, ::2], gate.T) and np.array_equal(made[e, :, 1::2], up.T)
    joined = tensors(CASES["kv_b"], "F32")
    k, v = (there(CASES["kv_b"], joined)[name].numpy() for name in ("k_b", "v_b"))
    whole = joined["t0.0"].numpy().reshape(4, 48, 64)
    assert np.array_equal(k, whole[:, :32].transpose(0, 2, 1)) and np.array_equal(v, whole[:, 32:])


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0", "MXFP4"])
@pytest.mark.parametrize("case", ["plain", "squeezed", "heads", "stack"])
def test_recipes_that_keep_rows_keep_blocks(case, dtype):
    members = CASES[case]
    held = blocks(members, dtype)
    made = there(members, held)
    assert {tensor.dtype.name for tensor in made.values()} == {dtype}
    back = recipes.canonical("gguf", members, made, ARCH)
    for name, tensor in held.items():
        assert back[name].dtype == tensor.dtype
        assert np.array_equal(back[name].raw(), tensor.raw())


@pytest.mark.parametrize("case", ["transpose", "stack_transpose", "interleaved", "kv_b"])
def test_recipes_that_need_elements_decode_blocks_exactly(case):
    members = CASES[case]
    held = blocks(members, "MXFP4")
    made = there(members, held, keep=False)
    assert {tensor.dtype.name for tensor in made.values()} == {"F32"}
    back = recipes.canonical("gguf", members, made, ARCH)
    for name, tensor in held.items():
        assert np.array_equal(back[name].float32(), tensor.float32())


def test_experts_of_different_types_cannot_share_a_tensor():
    members = CASES["stack"]
    held = tensors(members, "F32") | {"t0.1": tensors(members, "F16")["t0.1"]}
    with pytest.raises(InvalidFormat, match="stored as F16 and F32"):
        there(members, held)


@pytest.mark.parametrize("case", ["stack", "stack_transpose", "interleaved", "squeezed"])
@pytest.mark.parametrize("shape", [(4, 64, 16), (2, 8, 64), (3, 8, 32), (3, 8)])
def test_a_tensor_of_another_shape_is_handed_on_to_be_reported(case, shape):
    """More experts than the config says among them: the rest must not be dropped silently."""
    stored = from_array("there", np.zeros(shape, dtype=np.float32))
    back = recipes.canonical("gguf", CASES[case], {"there": stored}, ARCH)
    assert {tensor.shape for tensor in back.values()} == {shape}


def test_a_single_row_may_stand_there_as_a_matrix_too():
    stored = from_array("there", np.ones((1, 64), dtype=np.float32))
    back = recipes.canonical("gguf", CASES["squeezed"], {"there": stored}, ARCH)
    assert back["t0.0"].shape == (1, 64)


@pytest.mark.parametrize(("case", "rows"), [("interleaved", 16), ("stack_transpose", 8)])
def test_blocks_of_a_folder_are_the_numbers_that_transformers_decodes(case, rows):
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    generator = torch.Generator().manual_seed(3)
    packed = torch.randint(0, 256, (3, rows, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(100, 140, (3, rows, 2), dtype=torch.uint8, generator=generator)
    whole = mxfp4.convert_moe_packed_tensors(packed, scales, dtype=torch.float32)
    expected = recipes.canonical("hf", CASES[case], {"there": from_torch("there", whole)}, ARCH)
    held = {
        "there_blocks": from_torch("there_blocks", packed),
        "there_scales": from_torch("there_scales", scales),
    }
    back = recipes.canonical("hf", CASES[case], held, ARCH)
    assert back.keys() == expected.keys()
    for name, tensor in back.items():
        assert tensor.dtype.name == "MXFP4"
        assert np.array_equal(tensor.float32(), expected[name].float32())
    odd = held | {"there_scales": from_torch("there_scales", scales[:, :-1])}
    back = recipes.canonical("hf", CASES[case], odd, ARCH)
    assert {tensor.shape for tensor in back.values()} == {(3, rows, 2, 16)}


@pytest.mark.parametrize("name", [n for n in THERE if n != "squeezed"])
def test_a_tensor_that_has_the_canonical_shape_already_does_not_pass_for_it(name):
    """GPT-2's matrices as everybody else stores them, one expert where there should be all."""
    members = CASES[name]
    held = {
        there: from_array(there, np.zeros(members[0].shape, np.float32))
        for there in members[0].hf.names
    }
    found = recipes.canonical("hf", members, dict(held), ARCH)
    assert found.keys() == held.keys()
