"""Our safetensors reader and writer against the format's own."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from apr.errors import CorruptFile, InvalidFormat
from apr.formats.hf_writer import write_safetensors, write_shards
from apr.formats.safetensors_file import SafetensorsFile
from apr.tensors import from_torch

TENSORS = {
    "a.f32": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.bf16": torch.randn(5, 3).to(torch.bfloat16),
    "c.f16": torch.randn(7).to(torch.float16),
    "d.i64": torch.tensor([1, -2, 3]),
    "e.scalar": torch.tensor(2.5),
}


@pytest.fixture
def theirs(tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def test_reads_what_safetensors_writes(theirs):
    file = SafetensorsFile.open(theirs)
    assert file.metadata == {"format": "pt"}
    assert set(file.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(file.tensors[name].torch(), tensor), name


def test_safetensors_reads_what_we_write(tmp_path):
    path = tmp_path / "ours.safetensors"
    write_safetensors(path, [from_torch(n, t) for n, t in TENSORS.items()])
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert torch.equal(file.get_tensor(name), tensor), name


def test_shards_hold_every_tensor_once_and_the_index_says_where(tmp_path):
    tensors = [from_torch(f"t{i}", torch.full((100,), float(i))) for i in range(7)]
    files = write_shards(tmp_path, tensors, shard_bytes=900)
    assert [f.name for f in files] == [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2800
    for name, shard in index["weight_map"].items():
        with safe_open(tmp_path / shard, framework="pt") as file:
            assert file.get_tensor(name)[0] == float(name[1:])


def test_a_tensor_larger_than_a_shard_has_its_own(tmp_path):
    tensors = [from_torch("big", torch.zeros(100)), from_torch("small", torch.zeros(1))]
    assert len(write_shards(tmp_path, tensors, shard_bytes=10)) == 2


def with_header(text, body=b"", length=None):
    data = text if isinstance(text, bytes) else json.dumps(text).encode()
    return (len(data) if length is None else length).to_bytes(8, "little") + data + body


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD = {
    "short": (b"123", "too few"),
    "no json": (b"\x02" + bytes(20), "no JSON header"),
    "header beyond the end": (with_header({}, length=1 << 40), "states a header"),
    "broken json": (with_header(b'{"a": '), "no valid JSON"),
    "deep json": (with_header(b'{"a":' + b"[" * 200_000), "no valid JSON"),
    "not utf-8": (with_header(b'{"\xff": 1}'), "no valid JSON"),
    "key twice": (with_header(b'{"__metadata__": {}, "__metadata__": {}}'), "twice"),
    "unknown dtype": (with_header({"t": entry("F8_E4M3")}, bytes(4)), "F8_E4M3"),
    "negative shape": (with_header({"t": entry(shape=(-1,))}, bytes(4)), "has shape"),
    "bool shape": (with_header({"t": entry(shape=(True,))}, bytes(4)), "has shape"),
    "huge shape": (with_header({"t": entry(shape=(1 << 61, 8))}, bytes(4)), "takes"),
    "offsets": (with_header({"t": entry(offsets=(4, 0))}, bytes(4)), "data_offsets"),
    "wrong size": (with_header({"t": entry(offsets=(0, 3))}, bytes(3)), "has 3 bytes"),
    "beyond the end": (with_header({"t": entry()}, bytes(3)), "ends at byte"),
    "hole": (with_header({"t": entry(offsets=(4, 8))}, bytes(8)), "hole"),
    "overlap": (with_header({"t": entry(), "u": entry()}, bytes(4)), "overlaps"),
    "left over": (with_header({"t": entry()}, bytes(9)), "5 bytes behind"),
    "no object": (with_header({"t": 3}), "no JSON object"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_defect_has_its_own_message(name, tmp_path):
    data, message = BAD[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidFormat, match=message):
        SafetensorsFile.open(path)


def test_every_cut_is_refused(theirs, tmp_path):
    data = theirs.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(1, len(data), 5):
        cut.write_bytes(data[:length])
        with pytest.raises((CorruptFile, InvalidFormat)):
            SafetensorsFile.open(cut)


def test_random_damage_to_the_header_never_escapes(theirs, tmp_path):
    data = theirs.read_bytes()
    rng = random.Random(1)
    path = tmp_path / "damaged.safetensors"
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(1000):
        broken = bytearray(data)
        broken[rng.randrange(header)] = rng.randrange(256)
        path.write_bytes(broken)
        try:
            file = SafetensorsFile.open(path)
            assert all(t.raw().size == t.nbytes for t in file.tensors.values())
        except InvalidFormat:
            pass


def test_views_are_not_copies(theirs):
    array = SafetensorsFile.open(theirs).tensors["a.f32"].numpy()
    assert not array.flags.owndata and not array.flags.writeable
    assert np.array_equal(array, TENSORS["a.f32"].numpy())
