"""ggml's block types against the gguf package, bit for bit, on bytes of every kind."""

import warnings

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from apr import quant
from apr.dtypes import BY_GGML_ID, DTYPES
from apr.errors import FeatureUnavailable
from apr.quant import codec

# Every type that gguf has a decoder for; a new version of gguf with one more fails here.
TYPES = sorted(kind.name for kind in quants._type_traits if kind.name != "BF16")
OWN_IDS = {0, 1, 3, 4, 5, 6, 7, 8, 9, 12, 14, 30, 128, 129}  # of `.apr` itself


def blocks(name: str, count: int) -> np.ndarray:
    """Random bytes, hence scales of every size, subnormal, infinite and NaN; and the extremes."""
    size = DTYPES[name].block_bytes
    generator = np.random.default_rng(sum(name.encode()))
    out = generator.integers(0, 256, (count, size), dtype=np.uint8)
    out[0], out[1], out[-1] = 0, 255, 0x80
    return out.reshape(-1)


@pytest.mark.parametrize("name", TYPES)
def test_every_type_that_gguf_decodes_gives_the_same_bits(name):
    dtype = DTYPES[name]
    width = 2 * dtype.block_size
    count = (codec.PIECE + 3 * codec.CHUNK) // dtype.block_size // 2 * 2  # more than one piece
    raw, shape = blocks(name, count), (count // 2, width)
    with np.errstate(all="ignore"):
        theirs = quants.dequantize(raw.reshape(shape[0], -1), GGMLQuantizationType[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody who opens a file is told about numpy's
        ours = quant.decode(dtype, raw, shape)
    unknown = np.isnan(theirs)
    assert np.array_equal(np.isnan(ours), unknown)
    assert np.array_equal(ours.view(np.uint32)[~unknown], theirs.view(np.uint32)[~unknown])
    assert (~unknown).mean() > 0.5
    chunks = list(quant.iter_float32(dtype, raw, shape))
    assert {chunk.size for chunk in chunks[:-1]} == {codec.CHUNK}
    assert np.array_equal(np.concatenate(chunks), ours.reshape(-1), equal_nan=True)


def test_a_view_at_any_byte_of_a_file_is_decoded():
    for name in ("Q8_0", "Q5_K", "Q3_K", "IQ4_XS"):
        dtype = DTYPES[name]
        raw = blocks(name, 4)
        moved = np.concatenate([np.zeros(1, dtype=np.uint8), raw])[1:]
        moved.setflags(write=False)
        shape = (4 * dtype.block_size,)
        expected = quant.decode(dtype, raw, shape)
        assert np.array_equal(quant.decode(dtype, moved, shape), expected, equal_nan=True)


def test_sizes_are_those_of_ggml_and_no_id_stands_for_two_types():
    for kind, (block_size, block_bytes) in GGML_QUANT_SIZES.items():
        dtype = BY_GGML_ID.get(int(kind))
        if dtype is None:  # nobody but llama.cpp decodes these, or they are no type of a file
            assert kind.name in ("Q8_1", "Q8_K", "Q1_0")
            continue
        assert dtype.name == kind.name
        assert (dtype.block_size, dtype.block_bytes) == (block_size, block_bytes)
        if dtype.is_block:
            taken = int(kind) in OWN_IDS and kind.name not in ("Q4_K", "Q6_K")
            assert dtype.apr_id == int(kind) + (128 if taken else 0)
    ids = [dtype.apr_id for dtype in DTYPES.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", sorted(set(TYPES) - codec._GGUF_ENCODABLE - {"Q8_0"}))
def test_types_that_can_only_be_passed_on_are_not_made_from_floats(name):
    assert not quant.encodable(DTYPES[name])
    with pytest.raises(FeatureUnavailable, match="not made from floats"):
        quant.encode(DTYPES[name], np.zeros((1, 256), dtype=np.float32))
