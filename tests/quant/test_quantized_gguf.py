"""Quantized GGUFs as others make them: opened, imported, decoded, and computed with.

llama.cpp's own quantizer makes the files; told to make float32 of them again, it says what its C
code reads from each block.
"""

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from apr import engine
from apr.dtypes import DTYPES
from apr.errors import FeatureUnavailable
from apr.export import peers
from apr.formats import open_model
from apr.formats.gguf_container import write_container
from apr.formats.gguf_writer import gguf_fields, gguf_tensors, write_gguf
from apr.importing import import_model
from apr.quant import ggml
from apr.tensors import Tensor

_path = Path(__file__).resolve().parents[1] / "formats" / "tiny.py"
_spec = importlib.util.spec_from_file_location("apr_formats_tiny", _path)
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

# What a user finds for download, by llama.cpp's number, and a type that the file must then hold.
MIXTURES = {
    "Q4_0": (2, "Q4_0"), "Q5_1": (9, "Q5_1"), "Q8_0": (7, "Q8_0"), "Q2_K": (10, "Q2_K"),
    "Q3_K_M": (12, "Q3_K"), "Q4_K_M": (15, "Q4_K"), "Q5_K_S": (16, "Q5_K"), "Q6_K": (18, "Q6_K"),
    "IQ4_XS": (30, "IQ4_XS"), "IQ4_NL": (25, "IQ4_NL"), "IQ3_S": (26, "IQ3_S"),
}  # fmt: skip
# Of these, the types that the CPU kernels do not have.
NO_KERNEL = {
    "Q2_K": "Q2_K", "Q3_K_M": "Q3_K", "IQ4_XS": "IQ4_XS", "IQ4_NL": "IQ4_NL", "IQ3_S": "IQ3_S",
}  # fmt: skip
ALL_F32 = 0
# Where the f16 scale stands in blocks whose layout we leave to gguf; IQ1_M has it in four parts.
SCALE_AT = {"TQ1_0": 52, "TQ2_0": 64}
EVERY = [name for name, dtype in DTYPES.items() if dtype.is_block and dtype.ggml_id is not None]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny Llama, wide enough for blocks of 256, as `.apr` and as GGUF in float32."""
    folder = tmp_path_factory.mktemp("quantized")
    path = tiny.write_tiny(
        folder / "m.apr", hidden_size=256, intermediate_size=512, num_heads=4, num_kv_heads=2,
        head_dim=64, vocab_size=512, num_layers=3,
    )  # fmt: skip
    write_gguf(folder / "m.gguf", open_model(path))
    return folder


def quantized(source: Path, target: Path, file_type: int) -> Path:
    """What llama.cpp's quantizer makes of a GGUF."""
    lib = pytest.importorskip("llama_cpp").llama_cpp
    params = lib.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.allow_requantize = 1, file_type, True
    done = lib.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert done == 0, f"llama.cpp could not quantize to {file_type}"
    return target


def same_numbers(first, second) -> None:
    """Equal float32 of two opened models, to the bit."""
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        ours, theirs = tensor.float32(), second.tensors[name].float32()
        assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32)), (name, tensor.dtype)


def test_a_gguf_of_every_block_type_is_imported_with_its_blocks_and_decoded(source, tmp_path):
    mixed = write_mixed(source, tmp_path / "mixed.gguf")
    kept, wide = tmp_path / "kept.apr", tmp_path / "wide.apr"
    import_model(mixed, kept, prove=False)
    import_model(mixed, wide, quantize="f32", prove=False)
    given, first, second = open_model(mixed), open_model(kept), open_model(wide)
    assert {t.dtype.name for t in given.tensors.values()} == {*EVERY, "F32"}
    assert {t.dtype.name for t in second.tensors.values()} == {"F32"}
    for name, tensor in given.tensors.items():
        assert first.tensors[name].dtype == tensor.dtype
        assert np.array_equal(first.tensors[name].raw(), tensor.raw())
    same_numbers(first, second)
    again = tmp_path / "again.gguf"
    write_gguf(again, first)
    assert {n: t.dtype for n, t in open_model(again).tensors.items()} == {
        n: t.dtype for n, t in given.tensors.items()
    }


@pytest.mark.exact
def test_llama_cpp_decodes_every_block_type_to_the_same_bits(source, tmp_path):
    mixed = write_mixed(source, tmp_path / "mixed.gguf")
    theirs = quantized(mixed, tmp_path / "f32.gguf", ALL_F32)
    same_numbers(open_model(mixed), open_model(theirs))


@pytest.mark.exact
@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_a_file_of_llama_cpps_quantizer_computes_as_it_does_there(name, source, tmp_path):
    file_type, held = MIXTURES[name]
    path = quantized(source / "m.gguf", tmp_path / "q.gguf", file_type)
    out = tmp_path / "q.apr"
    report = import_model(path, out, peers=False, threads=1)
    assert not report.failures and held in report.dtypes
    plain = quantized(path, tmp_path / "f32.gguf", ALL_F32)
    same_numbers(open_model(out), open_model(plain))
    prompt = [5, 77, 300, 12, 9, 41, 200, 8]
    ours = engine.load(out, device="cpu", dtype="float32", threads=1).logits(prompt)
    exact = peers.ask("llama_cpp", plain, prompt=prompt, greedy=0, threads=1)
    assert np.abs(ours - exact.logits).max() < 1e-4
    # On its blocks llama.cpp rounds the activations to 8 bits too: noise, not another model.
    noisy = peers.ask("llama_cpp", path, prompt=prompt, greedy=0, threads=1)
    difference = np.sqrt(np.mean((ours - noisy.logits) ** 2) / np.mean(ours**2))
    print(f"{name}: exact {np.abs(ours - exact.logits).max():.1e}, on blocks {difference:.1e}")
    assert difference < 0.05
    # By default the CPU kernels compute on the blocks as well, where they have the types. Where
    # they do not, PyTorch is asked for by name, as above.
    if name in NO_KERNEL:
        with pytest.raises(FeatureUnavailable, match=NO_KERNEL[name]):
            engine.load(out, device="cpu", threads=1)
        return
    direct = engine.load(out, device="cpu", threads=1).logits(prompt)
    assert np.sqrt(np.mean((direct - exact.logits) ** 2) / np.mean(ours**2)) < 0.05


def write_mixed(source: Path, target: Path) -> Path:
    """A GGUF whose matrices take turns in all block types, of random codes and finite scales."""
    model = open_model(source / "m.apr")
    generator = np.random.default_rng(3)
    tensors, left = [], iter(EVERY * 2)
    for tensor in gguf_tensors(model, None):
        if len(tensor.shape) == 1:
            tensors.append(tensor)
            continue
        dtype = DTYPES[next(left)]
        raw = random_blocks(dtype.name, tensor.num_elements // dtype.block_size, generator)
        tensors.append(Tensor(tensor.name, dtype, tensor.shape, lambda raw=raw: raw))
    fields = gguf_fields(model, [t.dtype for t in tensors if len(t.shape) > 1], "mixed")
    with target.open("wb") as file:
        write_container(file, fields, tensors)
    return target


def random_blocks(name: str, count: int, generator: np.random.Generator) -> np.ndarray:
    """Random codes with a scale of about 0.002, bytes `[n]`."""
    out = generator.integers(0, 256, (count, DTYPES[name].block_bytes), dtype=np.uint8)
    scale = np.array([0.002], dtype="<f2").view(np.uint8)
    if name == "NVFP4":
        out[:, :4] = 1
    elif name == "MXFP4":
        out[:, 0] = 118
    elif name == "IQ1_M":  # the topmost bits of the last of its four parts: an exponent of 2^-9
        out[:, 49::2] &= 0x0F
        out[:, 55] |= 0x10
    elif name in ggml.DECODABLE:
        layout = ggml._LAYOUTS[name]
        at = layout.fields["scale" if "scale" in layout.names else "scales"][1]
        out[:, at : at + 2] = scale
        if "scales" in layout.names:
            out[:, at + 2 : at + 4] = scale
    else:
        at = SCALE_AT.get(name, 0)
        out[:, at : at + 2] = scale
    return out.reshape(-1)
