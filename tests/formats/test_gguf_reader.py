"""Our GGUF reader against gguf's own, and against files that are damaged in every field."""

import random
import struct

import gguf
import numpy as np
import pytest

from apr.errors import CorruptFile, InvalidFormat, NotFound
from apr.formats import GgufFile


def write_sample(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 10_000.0)
    writer.add_bool("a.bool", True)
    writer.add_int8("an.i8", -3)
    writer.add_uint64("a.u64", 1 << 40)
    writer.add_float64("an.f64", 0.1)
    writer.add_string("a.string", "Grüße, 世界")
    writer.add_array("strings", ["a", "bb", "", "日本"])
    writer.add_array("ints", [1, -2, 3])
    writer.add_array("floats", [0.5, 1.5])
    rng = np.random.default_rng(0)
    writer.add_tensor("f32", rng.standard_normal((3, 64)).astype(np.float32))
    writer.add_tensor("f16", rng.standard_normal((5, 7)).astype(np.float16))
    quantized = gguf.quants.quantize(
        rng.standard_normal((4, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("q8", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def sample(tmp_path):
    return write_sample(tmp_path / "sample.gguf")


def assert_same(path):
    ours, theirs = GgufFile.open(path), gguf.GGUFReader(path)
    keys = [k for k in theirs.fields if not k.startswith("GGUF.")]
    assert list(ours.fields) == keys
    for key in keys:
        value = theirs.fields[key].contents()
        assert ours.fields[key] == value, key
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.dtype.name == tensor.tensor_type.name
        assert list(reversed(mine.shape)) == tensor.shape.tolist()
        assert ours.offsets[tensor.name] == tensor.data_offset
        assert np.array_equal(mine.raw(), tensor.data.reshape(-1).view(np.uint8))


def test_reads_what_gguf_writes_as_gguf_reads_it(sample):
    assert_same(sample)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt-2", "phi-3", "qwen2"])
def test_reads_published_vocabularies_as_gguf_does(shared, name):
    assert_same(shared / "tokenizers" / name / "vocab.gguf")


def test_big_arrays_are_stepped_over_and_decoded_on_demand(shared):
    file = GgufFile.open(shared / "tokenizers" / "qwen2" / "vocab.gguf")
    assert file.fields.field("tokenizer.ggml.tokens").type_name == "string[151936]"
    assert not file.fields._values.keys() & {"tokenizer.ggml.tokens"}
    assert len(file.fields["tokenizer.ggml.tokens"]) == 151_936


def test_every_cut_is_refused(sample, tmp_path):
    data = sample.read_bytes()
    ends = GgufFile.open(sample)
    last = max(ends.offsets[n] + ends.tensors[n].nbytes for n in ends.tensors)
    cut = tmp_path / "cut.gguf"
    for length in range(0, last, 7):
        cut.write_bytes(data[:length])
        with pytest.raises(InvalidFormat):
            GgufFile.open(cut)


def test_random_damage_never_gives_anything_but_one_of_our_errors(sample, tmp_path):
    data = sample.read_bytes()
    rng = random.Random(0)
    damaged = tmp_path / "damaged.gguf"
    head = GgufFile.open(sample).offsets["f32"]
    for _ in range(1500):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(head)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        damaged.write_bytes(broken)
        try:
            file = GgufFile.open(damaged)
            for key in file.fields:
                file.fields[key]
            for tensor in file.tensors.values():
                assert tensor.raw().size == tensor.nbytes
        except InvalidFormat as error:
            assert "\n" not in error.line()


def header(version=3, tensors=0, fields=0):
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, fields)


def field(key, kind, value):
    name = key.encode()
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def info(name, dims, kind, offset):
    text = name.encode()
    return (
        struct.pack("<Q", len(text)) + text + struct.pack("<I", len(dims))
        + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)
    )  # fmt: skip


BAD = {
    "version 1": (struct.pack("<4sIII", b"GGUF", 1, 0, 0), "version 1"),
    "big-endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
    "version 9": (header(9), "version 9"),
    "too many tensors": (header(tensors=1 << 60), "cannot fit"),
    "too many keys": (header(fields=1 << 60), "cannot fit"),
    "string beyond the end": (
        header(fields=1) + field("k", 8, struct.pack("<Q", 1 << 50)), "runs over"),
    "array beyond the end": (
        header(fields=1) + field("k", 9, struct.pack("<IQ", 4, 1 << 61)), "needs"),
    "strings beyond the end": (
        header(fields=1) + field("k", 9, struct.pack("<IQ", 8, 1 << 61)), "needs"),
    "unknown value type": (header(fields=1) + field("k", 99, bytes(8)), "no GGUF value type"),
    "key twice": (header(fields=2) + field("k", 4, bytes(4)) * 2, "twice"),
    "alignment": (
        header(fields=1) + field("general.alignment", 4, struct.pack("<I", 24)), "power of two"),
    "nested arrays": (
        header(fields=1) + field("k", 9, struct.pack("<IQ", 9, 1) * 9 + bytes(64)), "deep"),
    "unknown tensor type": (header(1 + 2, 1) + info("t", [32], 16, 0) + bytes(64), "IQ2_XXS"),
    "dimensions": (header(3, 1) + info("t", [1] * 5, 0, 0) + bytes(64), "5 dimensions"),
    "overflowing dimensions": (
        header(3, 1) + info("t", [1 << 40, 1 << 40], 0, 0) + bytes(64), "no tensor can have"),
    "zero dimension": (header(3, 1) + info("t", [0], 0, 0) + bytes(64), "no tensor can have"),
    "misaligned": (header(3, 1) + info("t", [1], 0, 4) + bytes(64), "no multiple of 32"),
    "beyond the end": (header(3, 1) + info("t", [64], 0, 0) + bytes(64), "ends at byte"),
    "block": (header(3, 1) + info("t", [33], 8, 0) + bytes(128), "no multiple of 32"),
    "overlap": (
        header(3, 2) + info("t", [16], 0, 0) + info("u", [16], 0, 32) + bytes(512), "overlap"),
    "tensor twice": (
        header(3, 2) + info("t", [8], 0, 0) + info("t", [8], 0, 32) + bytes(512), "twice"),
    "other magic": (b"GGML" + bytes(64), "no GGUF file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_each_defect_has_its_own_message(name, tmp_path):
    data, message = BAD[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(InvalidFormat, match=message) as caught:
        GgufFile.open(path)
    assert caught.value.exit_code == 4


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        GgufFile.open(tmp_path / "none.gguf")


def test_name_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(header(fields=1) + struct.pack("<Q", 2) + b"\xff\xfe" + bytes(16))
    with pytest.raises(CorruptFile, match="UTF-8"):
        GgufFile.open(path)
