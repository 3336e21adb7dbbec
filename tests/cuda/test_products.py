"""Each kernel against plain numpy in float64, at odd sizes and for every stored type."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
gguf = pytest.importorskip("gguf")

from apr.cuda import launches, stored  # noqa: E402
from apr.cuda.launches import Norm  # noqa: E402
from apr.dtypes import DTYPES  # noqa: E402
from apr.tensors import Tensor, from_torch  # noqa: E402

CPU = torch.device("cpu")
SEARCHED = ("Q4_K", "Q5_K", "Q6_K")  # the gguf package decodes them, and does not make them


def blocks(name, rows, columns, rng):
    """A matrix of a block type, and what the gguf package decodes it to."""
    kind = gguf.GGMLQuantizationType[name]
    dtype = DTYPES[name]
    if name in SEARCHED:
        raw = rng.integers(0, 256, dtype.nbytes((rows, columns)), dtype=np.uint8)
        raw = raw.reshape(-1, dtype.block_bytes)
        halves, at = (1, 208) if name == "Q6_K" else (2, 0)
        scales = rng.normal(scale=0.01, size=(len(raw), halves)).astype("<f2")
        raw[:, at : at + 2 * halves] = scales.view(np.uint8)
    else:
        values = rng.normal(scale=0.1, size=(rows, columns)).astype(np.float32)
        raw = gguf.quants.quantize(values, kind)
    raw = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
    decoded = gguf.quants.dequantize(raw.reshape(rows, -1), kind)
    return Tensor(name, dtype, (rows, columns), lambda: raw), decoded


def placed(tensor, first=0, rows=None):
    rows = tensor.shape[0] - first if rows is None else rows
    planes = stored.empty(tensor.dtype, rows, tensor.shape[1], CPU)
    stored.fill(planes, tensor, first)
    return planes


def columns(name):
    return 3 * DTYPES[name].block_size if DTYPES[name].block_size == 32 else 512


@pytest.mark.parametrize("name", stored.KINDS)
def test_blocks_are_packed_and_unpacked_to_what_they_stand_for(name):
    tensor, decoded = blocks(name, 5, columns(name), np.random.default_rng(1))
    planes = placed(tensor, 1, 4)
    assert planes.nbytes == stored.nbytes(tensor.dtype, 4, tensor.shape[1])
    out = torch.zeros(3, tensor.shape[1])
    launches.unpack(planes, out, first=1)
    assert np.array_equal(out.numpy(), decoded[2:])
    launches.unpack(planes, out, ids=torch.tensor([3, 0, 3], dtype=torch.int32), add=True)
    assert np.array_equal(out.numpy(), decoded[2:] + decoded[[4, 1, 4]])


@pytest.mark.parametrize("name", stored.KINDS)
def test_a_product_with_blocks_is_that_with_the_decoded_matrix(name):
    rng = np.random.default_rng(2)
    tensor, decoded = blocks(name, 7, columns(name), rng)
    x = torch.from_numpy(rng.normal(size=(3, tensor.shape[1])).astype(np.float32))
    want = x.double().numpy() @ decoded.astype(np.float64).T
    out = torch.zeros(3, 9)[:, 1:8]  # rows that do not lie side by side
    launches.matvec(x, placed(tensor), out)
    assert np.abs(out.numpy() - want).max() < 2e-6 * np.abs(want).max() + 1e-6


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_a_product_with_a_plain_matrix_normed_biased_and_added(kind):
    rng = torch.Generator().manual_seed(3)
    weight = torch.randn(11, 37, generator=rng).to(kind)
    x, out = torch.randn(9, 37, generator=rng), torch.randn(9, 11, generator=rng)
    gain, bias = torch.randn(37, generator=rng), torch.randn(11, generator=rng)
    norm = Norm(gain, None, 1e-5, False)
    normed = torch.nn.functional.rms_norm(x.double(), (37,), gain.double(), 1e-5)
    want = normed @ weight.double().T + bias + out
    planes = placed(from_torch("w", weight))
    launches.matvec(x, planes, out, norm=norm, bias=bias, add=True)
    assert (out - want).abs().max() < 2e-5


@pytest.mark.parametrize("name", ["F32", "Q8_0", "Q4_K"])
def test_the_gated_unit_reads_both_matrices_in_one(name):
    rng = np.random.default_rng(4)
    if name == "F32":
        both = rng.normal(size=(2, 6, 40)).astype(np.float32)
        planes = [placed(from_torch("w", torch.from_numpy(w))) for w in both]
    else:
        made = [blocks(name, 6, 256, rng) for _ in range(2)]
        both, planes = [m[1] for m in made], [placed(m[0]) for m in made]
    x = torch.from_numpy(rng.normal(size=(2, both[0].shape[1])).astype(np.float32))
    gain = torch.from_numpy(rng.normal(size=x.shape[1]).astype(np.float32))
    biases = [torch.from_numpy(rng.normal(size=6).astype(np.float32)) for _ in range(2)]
    normed = torch.nn.functional.rms_norm(x.double(), x.shape[1:], gain.double(), 1e-6)
    gate, up = (
        normed @ torch.from_numpy(w).double().T + b.double()
        for w, b in zip(both, biases, strict=True)
    )
    out = torch.zeros(2, 6)
    for act, function in enumerate(
        (
            torch.nn.functional.silu,
            torch.nn.functional.gelu,
            lambda g: torch.nn.functional.gelu(g, approximate="tanh"),
            torch.relu,
            lambda g: torch.relu(g) ** 2,
        )
    ):
        want = function(gate) * up
        launches.matvec(
            x, planes[0], out, norm=Norm(gain, None, 1e-6, False), bias=biases[0], up=planes[1],
            up_bias=biases[1], act=act,
        )  # fmt: skip
        assert (out - want).abs().max() < 1e-5 * (1 + want.abs().max())
        if name != "F32":
            break


@pytest.mark.parametrize("layer", [False, True])
def test_norms_of_an_odd_width(layer):
    rng = torch.Generator().manual_seed(5)
    x, out = torch.randn(3, 77, generator=rng) + 1, torch.randn(3, 77, generator=rng)
    gain, shift = torch.randn(77, generator=rng), torch.randn(77, generator=rng)
    double = (x.double(), (77,), gain.double())
    want = (
        torch.nn.functional.layer_norm(*double, shift.double(), 1e-5)
        if layer
        else torch.nn.functional.rms_norm(*double, 1e-5)
    )
    want = want + out
    launches.normalise(x, Norm(gain, shift if layer else None, 1e-5, layer), out, add=True)
    assert (out - want).abs().max() < 1e-5
