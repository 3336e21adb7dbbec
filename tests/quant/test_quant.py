"""Storage types against their peers: gguf's numpy code, torch's rounding, values made by hand."""

import tracemalloc

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from apr import quant
from apr.dtypes import DTYPES
from apr.errors import InvalidFormat
from apr.tensors import Tensor, from_array

RNG = np.random.default_rng(7)
GGML = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]
BOUNDED_BLOCKS = ["APR_Q4", "APR_Q8", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


def weights(*shape: int) -> np.ndarray:
    """Rows of very different magnitudes, with a block of zeros and ties for the rounding."""
    out = RNG.standard_normal(shape).astype(np.float32)
    out *= 10.0 ** RNG.uniform(-3, 3, (*shape[:-1], 1)).astype(np.float32)
    out.reshape(-1)[:64] = 0
    out.reshape(-1)[64:96] = np.arange(32) - 16 + 0.5
    out.reshape(-1)[96] = 127.0
    return out


# --- plain types -----------------------------------------------------------------------------


def test_bf16_rounds_as_torch_does():
    bits = np.concatenate(
        [
            RNG.integers(0, 2**32, 200_000, dtype=np.uint32),
            # every tie and its neighbours, at both ends of the exponent range
            (np.arange(0x100, dtype=np.uint32) << 16) + 0x8000,
            (np.arange(0x100, dtype=np.uint32) << 16) + 0x7FFF,
            (np.arange(0x100, dtype=np.uint32) << 16) + 0x8001,
            np.array([0x7F80_0000, 0xFF80_0000, 0x7F80_0001, 0xFFFF_FFFF], dtype=np.uint32),
        ]
    )
    values = bits.view(np.float32)
    theirs = torch.from_numpy(values).bfloat16()
    fits = torch.isfinite(theirs).numpy() | ~np.isfinite(values)
    raw = quant.encode(DTYPES["BF16"], values[fits])
    ours = torch.frombuffer(raw.data, dtype=torch.bfloat16).float()
    assert torch.equal(torch.nan_to_num(ours), torch.nan_to_num(theirs[fits].float()))
    assert torch.equal(torch.isnan(ours), torch.isnan(theirs[fits]))


@pytest.mark.parametrize(("name", "value"), [("F16", 65_520.0), ("BF16", 3.4e38)])
def test_a_value_beyond_the_range_is_refused_and_not_made_infinite(name, value):
    with pytest.raises(InvalidFormat, match="cannot hold the value"):
        quant.encode(DTYPES[name], np.array([1.0, -value], dtype=np.float32))
    infinite = np.array([np.inf, -np.inf, np.nan], dtype=np.float32)
    back = quant.decode(DTYPES[name], quant.encode(DTYPES[name], infinite), (3,))
    assert np.array_equal(back, infinite, equal_nan=True)


def test_f16_rounds_as_torch_does():
    values = RNG.standard_normal(10_000).astype(np.float32) * 10
    raw = quant.encode(DTYPES["F16"], values)
    theirs = torch.from_numpy(values).half()
    assert torch.equal(torch.frombuffer(raw.data, dtype=torch.float16), theirs)


@pytest.mark.parametrize("name", ["F32", "F64", "I32", "I64", "I16", "I8", "U8"])
def test_every_plain_type_decodes_to_its_numbers(name):
    kinds = {"F32": "<f4", "F64": "<f8", "I8": "i1", "U8": "u1"}
    kind = kinds.get(name) or f"<i{int(name[1:]) // 8}"
    values = np.arange(24).astype(kind).reshape(2, 3, 4)
    back = quant.decode(DTYPES[name], values.reshape(-1).view(np.uint8), values.shape)
    assert back.dtype == np.float32
    assert np.array_equal(back, values)


def test_decoding_f32_copies_nothing():
    raw = np.arange(8, dtype=np.float32).view(np.uint8)
    assert np.shares_memory(quant.decode(DTYPES["F32"], raw, (2, 4)), raw)


# --- our blocks, by hand ---------------------------------------------------------------------


def test_apr_q4_stores_an_f16_scale_and_the_even_index_in_the_low_nibble():
    values = np.zeros(32, dtype=np.float32)
    values[:6] = [7, -7, 1, 2.5, -2.5, 0.49]  # scale 7/7 = 1: a half goes away from zero
    raw = quant.encode(DTYPES["APR_Q4"], values)
    assert raw.size == 18
    assert raw[:2].view("<f2")[0] == 1.0
    assert raw[2] == (7 + 8) | (-7 + 8) << 4
    assert raw[3] == (1 + 8) | (3 + 8) << 4
    assert raw[4] == (-3 + 8) | (0 + 8) << 4
    assert set(raw[5:].tolist()) == {0x88}
    back = quant.decode(DTYPES["APR_Q4"], raw, (32,))
    assert back[:6].tolist() == [7, -7, 1, 3, -3, 0]


def test_apr_q4_fills_a_partial_last_block_with_zero_bits():
    values = np.arange(35, dtype=np.float32) - 10
    raw = quant.encode(DTYPES["APR_Q4"], values)
    assert raw.size == 36
    assert raw[18:20].view("<f2")[0] == np.float16(24 / 7)
    assert raw[20] == (6 + 8) | (7 + 8) << 4  # 22 / (24/7) = 6.4, 23 / (24/7) = 6.7
    assert raw[21] == (7 + 8)
    assert not raw[22:].any()
    assert quant.decode(DTYPES["APR_Q4"], raw, (35,)).shape == (35,)


def test_apr_q4_blocks_may_run_across_rows():
    values = RNG.standard_normal((5, 20)).astype(np.float32)
    raw = quant.encode(DTYPES["APR_Q4"], values)
    assert raw.size == 4 * 18
    flat = quant.decode(DTYPES["APR_Q4"], raw, (100,))
    assert np.array_equal(quant.decode(DTYPES["APR_Q4"], raw, (5, 20)).reshape(-1), flat)


def test_apr_q8_stores_one_f32_scale_for_the_tensor():
    raw = quant.encode(DTYPES["APR_Q8"], np.array([[254.0, -254.0], [1.0, 3.0]], dtype=np.float32))
    assert raw[:4].view("<f4")[0] == 2.0
    assert raw[4:].view(np.int8).tolist() == [127, -127, 1, 2]  # 0.5 -> 1, 1.5 -> 2


def test_zeros_have_the_scale_one_in_both_of_our_types():
    zeros = np.zeros(64, dtype=np.float32)
    assert quant.encode(DTYPES["APR_Q8"], zeros)[:4].view("<f4")[0] == 1.0
    assert quant.encode(DTYPES["APR_Q4"], zeros)[:2].view("<f2")[0] == 1.0
    for name in ("APR_Q4", "APR_Q8", "Q8_0"):
        assert not quant.decode(DTYPES[name], quant.encode(DTYPES[name], zeros), (64,)).any()


# --- against gguf ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", GGML)
def test_ggml_types_are_encoded_to_the_same_bytes_as_by_gguf(name):
    values = weights(96, 512)
    theirs = quants.quantize(values, GGMLQuantizationType[name])
    ours = quant.encode(DTYPES[name], values)
    assert np.array_equal(ours, theirs.reshape(-1))
    decoded = quants.dequantize(theirs, GGMLQuantizationType[name])
    assert np.array_equal(quant.decode(DTYPES[name], ours, values.shape), decoded)


@pytest.mark.parametrize("name", BOUNDED_BLOCKS)
def test_the_error_stays_within_the_bound_of_the_type(name):
    dtype, values = DTYPES[name], weights(64, 1024)
    back = quant.decode(dtype, quant.encode(dtype, values), values.shape)
    block = values.size if name == "APR_Q8" else 32
    error = np.abs(back - values).reshape(-1, block).max(axis=1)
    largest = np.abs(values).reshape(-1, block).max(axis=1)
    normal = largest / 127 > 2.0**-14  # below that the f16 scale is subnormal, and nothing holds
    error, largest = error[normal], largest[normal]
    assert (error <= largest * quant.ERROR_BOUNDS[name] + 1e-30).all()
    assert (error > largest * quant.ERROR_BOUNDS[name] * 0.5).any()  # the bound is not vacuous


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["APR_Q4", "APR_Q8", "Q8_0", "Q4_0", "TQ2_0"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_block_types(name, bad):
    values = np.ones(256, dtype=np.float32)
    values[100] = bad
    with pytest.raises(InvalidFormat, match="NaN or infinite"):
        quant.encode(DTYPES[name], values)


def test_a_scale_beyond_f16_is_refused():
    values = np.full(32, 1e7, dtype=np.float32)
    for name in ("APR_Q4", "Q8_0"):
        with pytest.raises(InvalidFormat, match="f16 ends at 65504"):
            quant.encode(DTYPES[name], values)


def test_bytes_of_another_length_are_refused_with_both_figures():
    with pytest.raises(InvalidFormat, match=r"has 17 bytes.*takes 18"):
        quant.decode(DTYPES["APR_Q4"], np.zeros(17, dtype=np.uint8), (32,))


def test_a_row_that_is_no_whole_number_of_blocks_is_refused():
    with pytest.raises(InvalidFormat, match="no multiple of its 32"):
        quant.encode(DTYPES["Q8_0"], np.zeros((32, 31), dtype=np.float32))


# --- figures and streaming -------------------------------------------------------------------


def test_error_figures_are_those_of_the_definition():
    values = weights(32, 256)
    dtype = DTYPES["Q8_0"]
    raw = quant.encode(dtype, values)
    error = quant.decode(dtype, raw, values.shape).astype(np.float64) - values
    figures = quant.error_figures(values, dtype, raw)
    assert figures.elements == values.size
    assert figures.max_abs == np.abs(error).max()
    assert figures.rms == pytest.approx(np.sqrt((error**2).mean()))
    assert figures.relative_rms == pytest.approx(
        np.sqrt((error**2).sum() / (values.astype(np.float64) ** 2).sum())
    )
    assert not figures.exact


def test_figures_of_a_copy_are_exact_and_a_lone_nan_is_not():
    a = np.array([1.0, np.nan, np.inf], dtype=np.float32)
    b = np.array([1.0, np.nan, 2.0], dtype=np.float32)
    c = np.array([1.0, 0.0, np.inf], dtype=np.float32)
    assert quant.compare(from_array("x", a), from_array("x", a)).exact
    assert quant.compare(from_array("x", a), from_array("x", b)).max_abs == np.inf
    assert not quant.compare(from_array("x", a), from_array("x", c)).max_abs <= 1e9


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "APR_Q4", "APR_Q8", "Q4_0"])
def test_a_recoded_tensor_streams_the_bytes_that_encoding_the_whole_gives(name):
    values = weights(700, 512)  # more than one chunk
    source = from_array("w", values)
    target = quant.recoded(source, DTYPES[name])
    whole = quant.encode(DTYPES[name], values)
    pieces = list(target.chunks())
    assert len(pieces) > 1
    assert np.array_equal(np.concatenate(pieces), whole)
    assert np.array_equal(target.raw(), whole)
    assert target.nbytes == whole.size


def test_recoding_passes_over_a_tensor_in_memory_that_stays_flat():
    values = np.zeros((4096, 4096), dtype=np.float32)  # 64 MiB
    for name in ("BF16", "Q8_0", "APR_Q8"):
        target = quant.recoded(from_array("w", values), DTYPES[name])
        list(quant.recoded(from_array("w", values[:1]), DTYPES[name]).chunks())  # imports
        tracemalloc.start()
        total = sum(piece.size for piece in target.chunks())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == target.nbytes
        assert peak < 16 << 20


def test_recoding_to_the_same_type_is_the_same_tensor():
    tensor = Tensor("w", DTYPES["Q4_K"], (256,), lambda: np.zeros(144, dtype=np.uint8))
    assert quant.recoded(tensor, DTYPES["Q4_K"]) is tensor
