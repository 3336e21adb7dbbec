"""What the writer puts where: check values, layout byte by byte, streaming, atomicity."""

import errno
import json
import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest

from apr import quant
from apr.checkpoint import AprFile, Flag, verify, verify_bytes, write_apr
from apr.checkpoint.layout import plan
from apr.checkpoint.metadata import serialize
from apr.dtypes import DTYPES
from apr.errors import InvalidFormat, StorageError
from apr.tensors import Tensor, from_array


def test_check_value_516_bytes_when_unset_keys_are_left_out(golden):
    assert golden.stat().st_size == 516
    verify(golden)


def test_check_value_1092_bytes_when_unset_keys_are_null(
    golden, golden_metadata, golden_tensors, resealed
):
    raw = serialize(golden, golden_metadata, unset_as_null=True)
    front = plan(golden, raw, golden_tensors, Flag.ROW_MAJOR).front
    old = resealed(front + golden.read_bytes()[-132:])  # the same tensors and a footer
    assert len(old) == 1092
    verify_bytes(golden, old)
    before, after = AprFile.open(golden), AprFile(golden, old, len(old))
    assert {k: v for k, v in after.metadata.items() if v is not None}.items() <= {
        **before.metadata,
        "total_size": 0,
    }.items()
    assert len(after.metadata) == 35
    assert after.tensors["weights"].numpy().tolist() == before.tensors["weights"].numpy().tolist()


def test_every_field_stands_where_the_format_says(golden):
    data = golden.read_bytes()
    assert data[:8] == b"APR\0\x02\x00\x00\x04"  # version 2.0, flags 0x400
    count, meta_at, meta_size, index_at, data_at, checksum = struct.unpack("<IQIQQI", data[8:44])
    assert (count, meta_at, index_at, data_at) == (2, 64, 256, 384)
    assert checksum == zlib.crc32(data[:40] + data[44:64])
    assert data[44:64] == bytes(20)
    metadata = data[64 : 64 + meta_size]
    assert metadata == (
        b'{"model_type":"linear_regression","name":"golden-v2","license":null,"data_source":null,'
        b'"data_license":null,"version":"0.0.0-golden","created_at":"1700000000","total_size":36,'
        b'"param_count":8}'
    )
    assert data[64 + meta_size : 256] == bytes(192 - meta_size)
    index = struct.pack("<H4sBBQQQ", 4, b"bias", 0, 1, 1, 0, 4)
    index += struct.pack("<H7sBBQQQ", 7, b"weights", 0, 1, 8, 64, 32)
    assert data[256:384] == index + bytes(128 - len(index))
    assert data[384:388] == np.float32(0.125).tobytes()
    assert data[388:448] == bytes(60)
    assert np.frombuffer(data[448:480], "<f4").tolist() == [1, 2, 0.5, -0.5, 4, -2, 0.25, 8]
    assert data[512:] == struct.pack("<I", zlib.crc32(data[:512]))


def test_unset_totals_are_filled_in_from_the_tensors(tmp_path, golden_tensors):
    write_apr(tmp_path / "a.apr", {"model_type": "x"}, golden_tensors)
    metadata = AprFile.open(tmp_path / "a.apr").metadata
    assert (metadata["total_size"], metadata["param_count"]) == (36, 9)


def test_keys_come_in_the_order_of_the_rust_struct_and_ours_behind(tmp_path):
    given = {"zeta": 1, "head_dim": 8, "alpha": 2, "hidden_size": 32, "model_type": "llama"}
    raw = serialize(tmp_path, given)
    assert list(json.loads(raw)) == [
        *("model_type", "license", "data_source", "data_license", "total_size", "param_count"),
        *("hidden_size", "head_dim", "zeta", "alpha"),
    ]


def test_names_are_sorted_by_their_bytes(tmp_path):
    names = ["b", "a.10", "a.2", "é", "z", "Z", "\U0001f600", "\uffff"]
    tensors = [from_array(name, np.zeros(3, dtype=np.float32)) for name in names]
    write_apr(tmp_path / "a.apr", {}, tensors)
    assert list(AprFile.open(tmp_path / "a.apr").tensors) == sorted(names, key=str.encode)
    verify(tmp_path / "a.apr")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda d: d.name)
def test_every_type_comes_back_byte_for_byte(tmp_path, dtype):
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 256, dtype.nbytes((3, 256)), dtype=np.uint8)
    path = tmp_path / "a.apr"
    write_apr(path, {}, [Tensor("w", dtype, (3, 256), lambda: raw)])
    tensor = AprFile.open(path).tensors["w"]
    assert (tensor.dtype, tensor.shape) == (dtype, (3, 256))
    assert np.array_equal(tensor.raw(), raw)
    assert bool(AprFile.open(path).flags & Flag.QUANTIZED) == dtype.is_block
    verify(path)


def test_legacy_ids_are_read_as_our_types_and_never_written(tmp_path, patched):
    values = np.arange(64, dtype=np.float32)
    for name, legacy in (("APR_Q4", 8), ("APR_Q8", 9)):
        path = tmp_path / f"{name}.apr"
        raw = quant.encode(DTYPES[name], values)
        write_apr(path, {}, [Tensor("w", DTYPES[name], (64,), lambda raw=raw: raw)])
        data = path.read_bytes()
        at = data.index(bytes([1, 0]) + b"w") + 3
        assert data[at] == DTYPES[name].apr_id >= 128
        path.write_bytes(patched(data, at, bytes([legacy])))
        tensor = AprFile.open(path).tensors["w"]
        assert tensor.dtype is DTYPES[name]
        assert np.array_equal(tensor.float32(), quant.decode(DTYPES[name], raw, (64,)))


def test_scalars_and_empty_tensors_and_eight_dimensions_are_kept(tmp_path):
    shapes = [(), (0,), (3, 0), (1, 2, 1, 2, 1, 2, 1, 2)]
    tensors = [from_array(f"t{i}", np.ones(s, dtype=np.float32)) for i, s in enumerate(shapes)]
    write_apr(tmp_path / "a.apr", {}, tensors)
    verify(tmp_path / "a.apr")
    opened = AprFile.open(tmp_path / "a.apr").tensors
    assert [opened[f"t{i}"].numpy().shape for i in range(4)] == shapes


def test_the_same_input_in_another_order_gives_the_same_bytes(
    tmp_path, golden_metadata, golden_tensors
):
    write_apr(tmp_path / "a", golden_metadata, golden_tensors)
    write_apr(tmp_path / "b", golden_metadata, golden_tensors[::-1])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- streaming -------------------------------------------------------------------------------


def test_memory_stays_flat_however_large_the_tensors_are(tmp_path):
    piece = np.zeros(1 << 20, dtype=np.uint8)

    def tensor(name: str, pieces: int) -> Tensor:
        def whole():
            raise AssertionError("the writer asked for the whole tensor")

        shape = (pieces, piece.size)
        return Tensor(name, DTYPES["U8"], shape, whole, lambda: (piece for _ in range(pieces)))

    tracemalloc.start()
    written = write_apr(tmp_path / "a.apr", {}, [tensor("a", 50), tensor("b", 150)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written.size_bytes == (tmp_path / "a.apr").stat().st_size > 200 << 20
    assert peak < 8 << 20


def test_one_tensor_is_loaded_at_a_time_and_let_go(tmp_path):
    alive = []

    def tensor(number: int) -> Tensor:
        def load():
            alive.append(number)
            return np.full(1 << 20, number, dtype=np.uint8)

        return Tensor(f"t{number:02}", DTYPES["U8"], (1 << 20,), load)

    tracemalloc.start()
    write_apr(tmp_path / "a.apr", {}, [tensor(i) for i in range(16)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert alive == list(range(16))
    assert peak < 6 << 20


def test_copying_a_mapped_file_keeps_its_bytes(tmp_path):
    values = np.random.default_rng(0).standard_normal((700, 4001)).astype(np.float32)
    write_apr(tmp_path / "a.apr", {"model_type": "x"}, [from_array("w", values)])
    source = AprFile.open(tmp_path / "a.apr")
    write_apr(tmp_path / "b.apr", source.metadata, list(source.tensors.values()))
    assert (tmp_path / "a.apr").read_bytes() == (tmp_path / "b.apr").read_bytes()
    assert np.array_equal(source.tensors["w"].numpy(), values)  # released pages come back


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"num_hidden_layers": 2, "num_layers": 2}, "alias of 'num_layers'"),
        ({"n_embd": 2}, "alias of 'hidden_size'"),
        ({"loss": float("nan")}, "'loss' cannot be written"),
        ({"training": {"lr": [1.0, float("inf")]}}, "'training' cannot be written"),
        ({"name": "\ud800"}, "'name' cannot be written: is not valid Unicode"),
        ({"when": object()}, "'when' cannot be written: a object is not JSON"),
        ({1: 2}, "no string"),
        ({"note": "x" * (16 << 20)}, "the format ends at 16,777,216"),
    ],
    ids=lambda v: next(iter(v.items()))[0] if isinstance(v, dict) else "",
)
def test_metadata_that_another_reader_would_choke_on_is_refused(tmp_path, metadata, message):
    with pytest.raises(InvalidFormat, match=message):
        write_apr(tmp_path / "a.apr", metadata, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (from_array("x" * 257, np.zeros(1, np.float32)), "257 bytes long"),
        (from_array("é" * 129, np.zeros(1, np.float32)), "258 bytes long"),
        (from_array("", np.zeros(1, np.float32)), "0 bytes long"),
        (from_array("\udcff", np.zeros(1, np.float32)), "UTF-8"),
        (from_array("x", np.zeros((1,) * 9, np.float32)), "9 dimensions"),
        (Tensor("x", DTYPES["Q4_K"], (4, 100), bytes), "'x': a last dimension of 100"),
        (replace(from_array("x", np.zeros(4, np.float32)), shape=(5,)), "takes 20"),
        (replace(from_array("x", np.zeros(4, np.float32)), shape=(3,)), "takes 12"),
    ],
)
def test_a_tensor_that_the_format_cannot_hold_is_refused(tmp_path, tensor, message):
    with pytest.raises(InvalidFormat, match=message):
        write_apr(tmp_path / "a.apr", {}, [tensor])
    assert list(tmp_path.iterdir()) == []


def test_two_tensors_of_one_name_are_refused(tmp_path, golden_tensors):
    with pytest.raises(InvalidFormat, match="two tensors are named 'bias'"):
        write_apr(tmp_path / "a.apr", {}, [*golden_tensors, golden_tensors[1]])


def test_flags_that_change_the_layout_are_not_written(tmp_path):
    with pytest.raises(InvalidFormat, match="LZ4"):
        write_apr(tmp_path / "a.apr", {}, [], flags=Flag.LZ4)


def test_an_existing_file_is_kept_unless_forced(golden):
    before = golden.read_bytes()
    with pytest.raises(StorageError, match="exists already"):
        write_apr(golden, {}, [])
    assert golden.read_bytes() == before
    write_apr(golden, {}, [], force=True)
    assert golden.read_bytes() != before


def test_a_full_disk_leaves_the_old_file_and_nothing_else(golden):
    before = golden.read_bytes()

    def full():
        yield np.zeros(100, dtype=np.uint8)
        raise OSError(errno.ENOSPC, "No space left on device")

    tensor = Tensor("w", DTYPES["U8"], (200,), bytes, full)
    with pytest.raises(StorageError, match="no space left on device"):
        write_apr(golden, {}, [tensor], force=True)
    assert golden.read_bytes() == before
    assert [p.name for p in golden.parent.iterdir()] == [golden.name]
