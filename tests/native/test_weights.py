"""Every stored type on every kernel set, in the shapes that break kernels, against numpy.

The reference is apr.quant.decode, which tests/quant holds to the gguf package bit for bit.
"""

import numpy as np
import pytest

from apr import native
from apr.dtypes import DTYPES
from apr.native.model import Arena, NativeModel, packed_bytes
from apr.quant import decode

PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
# Where the halves of a block lie, in bytes from its start.
HALVES = {
    "Q4_0": [0], "Q5_0": [0], "Q8_0": [0], "Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2],
    "Q5_K": [0, 2], "Q6_K": [208], "TQ1_0": [52], "TQ2_0": [64], "MXFP4": [],
}  # fmt: skip
TOKENS = (1, 2, 3, 7, 8, 9, 12, 13, 31, 33)
SETS = ("amx", "avx512", "avx2", "portable")


@pytest.fixture(scope="module", params=SETS)
def model(request, library):
    """An empty model on each kernel set, on two threads."""
    found = {s.name: s for s in native.kernel_sets()}.get(request.param)
    if found is None or not found.usable:
        pytest.skip(found.why_not if found else "of another architecture")
    return NativeModel(found, 2)


def shapes(name):
    if name in PLAIN:
        return (5, 7), (16, 33), (37, 100), (33, 256)
    block = DTYPES[name].block_size
    return (5, block), (16, 3 * block), (37, 256 if block == 32 else 512)


def stored(name, rows, columns, rng):
    """Random bytes of a weight: every value of the quants, scales of both signs and of no size."""
    if name == "BF16":
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        return (values.view(np.uint32) >> 16).astype(np.uint16).reshape(-1).view(np.uint8)
    if name in PLAIN:
        values = rng.standard_normal((rows, columns)).astype(PLAIN[name])
        return values.reshape(-1).view(np.uint8)
    size, block = DTYPES[name].nbytes((rows, columns)), DTYPES[name].block_bytes
    raw = rng.integers(0, 256, (size // block, block), dtype=np.uint8)
    for at in HALVES[name]:
        scale = rng.uniform(-0.02, 0.02, (len(raw), 1)).astype("<f2")
        scale[::7] = 6e-7  # below the normal halves
        raw[:, at : at + 2] = scale.view(np.uint8)
    if name == "MXFP4":
        raw[:, 0] = rng.integers(118, 124, len(raw))
    return raw.reshape(-1)


def add(model, name, rows, columns, raw):
    dtype = DTYPES[name]
    size = packed_bytes(dtype, rows, columns)
    assert size is not None
    if not size:
        return model.add_weight(dtype, rows, columns, raw)
    packed = Arena(size).take(size)
    model.pack(dtype, rows, columns, raw, packed)
    return model.add_weight(dtype, rows, columns, packed)


def bfloat16(values):
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def check(model, name, weight, weights, x, rounded):
    """Within float32 and six standard deviations of `rounded`, a share of each summand."""
    got = model.matmul(weight, x)
    want = x.astype(np.float64) @ weights.T
    size = np.abs(x) @ np.abs(weights).T
    spread = np.sqrt(np.square(x.astype(np.float64)) @ np.square(weights).T)
    excess = np.abs(got - want) - (1e-6 * size + 6 * rounded * spread + 1e-30)
    assert excess.max() <= 0, (name, weights.shape, len(x), np.abs(got - want).max())


@pytest.mark.parametrize("name", [*PLAIN, *HALVES])
def test_rows_are_unpacked_exactly_and_products_are_those_of_the_decoded_weights(model, name):
    rng = np.random.default_rng(5)
    pairs = model.kernels.name in ("amx", "avx512")
    for rows, columns in shapes(name):
        raw = stored(name, rows, columns, rng)
        weights = decode(DTYPES[name], raw, (rows, columns))
        weight = add(model, name, rows, columns, raw)
        unpacked = np.stack([model.unpack_row(weight, row) for row in range(rows)])
        if name in ("Q4_K", "Q5_K", "Q4_1", "Q5_1"):  # d * q - m: one rounding less, or one more
            assert np.abs(unpacked - weights).max() <= 1e-6 * np.abs(weights).max()
        else:
            assert np.array_equal(unpacked, weights)
        exact, panels = weights.astype(np.float64), bfloat16(unpacked).astype(np.float64)
        for tokens in TOKENS:
            # Whole numbers up to 127 are themselves in 8 bits and in bfloat16; so there is nothing
            # but float32's rounding, beside that of the weights in panels of bfloat16.
            x = rng.integers(-126, 127, (tokens, columns)).astype(np.float32)
            x[:, ::32] = 127
            panel = pairs and tokens > 8 and name not in PLAIN
            check(model, name, weight, panels if panel else exact, x / 64, 0)


@pytest.mark.parametrize("name", [*PLAIN, "Q8_0", "Q6_K"])
def test_activations_are_rounded_no_more_than_their_form_says(model, name):
    rng = np.random.default_rng(6)
    pairs = model.kernels.name in ("amx", "avx512")
    rows, columns = 37, 512
    raw = stored(name, rows, columns, rng)
    weight = add(model, name, rows, columns, raw)
    exact = decode(DTYPES[name], raw, (rows, columns)).astype(np.float64)
    for tokens in (1, 8, 9, 40):
        x = rng.uniform(-1, 1, (tokens, columns)).astype(np.float32)
        many = pairs and tokens > 8
        if (
            name in PLAIN
        ):  # F16 is split in two bfloat16: 16 bits, and the smallest product left out
            share = {"F32": 0, "BF16": 2**-9, "F16": 2**-16}[name] if many else 0
        else:  # two roundings to bfloat16, or steps of 1/127 of the largest of 32 (here at most 1)
            share = 2**-8 if many else 1 / 127 / 12**0.5 * 3**0.5
        check(model, name, weight, exact, x, share)


def test_every_exponent_of_mxfp4_is_its_power_of_two(model):
    raw = np.zeros((255, 17), dtype=np.uint8)
    raw[:, 0] = np.arange(255)
    raw[:, 1:] = np.arange(16) | (15 - np.arange(16)) << 4
    weight = add(model, "MXFP4", 255, 32, raw.reshape(-1))
    want = decode(DTYPES["MXFP4"], raw.reshape(-1), (255, 32))
    got = np.stack([model.unpack_row(weight, row) for row in range(255)])
    assert np.array_equal(got, want)


def test_types_and_rows_without_a_kernel_are_known_before_anything_is_packed(library):
    assert packed_bytes(DTYPES["Q8_0"], 16, 48) is None
    assert packed_bytes(DTYPES["Q4_K"], 16, 128) is None
    assert packed_bytes(DTYPES["F16"], 16, 7) == 0
    assert packed_bytes(DTYPES["Q2_K"], 16, 256) is None


@pytest.mark.parametrize("name", [*PLAIN, *HALVES])
def test_each_of_a_few_tokens_gets_to_the_bit_what_it_gets_alone(model, name):
    rng = np.random.default_rng(8)
    for rows, columns in shapes(name):
        weight = add(model, name, rows, columns, stored(name, rows, columns, rng))
        x = rng.standard_normal((8, columns)).astype(np.float32)
        alone = np.concatenate([model.matmul(weight, row[None]) for row in x])
        for tokens in (2, 3, 4, 7, 8):
            assert np.array_equal(model.matmul(weight, x[:tokens]), alone[:tokens]), (rows, tokens)


@pytest.mark.parametrize("name", [*PLAIN, *HALVES])
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFFFFFFF, 0x7F800001])
def test_what_is_no_number_is_none_after_any_product(model, name, bits):
    rng = np.random.default_rng(9)
    rows, columns = shapes(name)[2]
    raw = stored(name, rows, columns, rng)
    weight = add(model, name, rows, columns, raw)
    for tokens in (1, 4, 9, 33):
        x = rng.standard_normal((tokens, columns)).astype(np.float32)
        x.view(np.uint32)[tokens // 2, columns - 1] = bits
        finite = np.isfinite(model.matmul(weight, x)).any(axis=1)
        assert list(np.flatnonzero(~finite)) == [tokens // 2], tokens
    if name == "MXFP4":  # has no scale that is no number
        return
    broken = raw.reshape(rows, -1).copy()  # a weight, or the scale of a block, of all ones
    half = HALVES.get(name, [0])[0]
    broken[3, half : half + (4 if name == "F32" else 2)] = 0xFF
    weight = add(model, name, rows, columns, broken.reshape(-1))
    for tokens in (1, 4, 9, 33):
        x = rng.uniform(0.5, 1, (tokens, columns)).astype(np.float32)
        finite = np.isfinite(model.matmul(weight, x)).any(axis=0)
        assert list(np.flatnonzero(~finite)) == [3], tokens
