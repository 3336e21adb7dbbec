"""Opening: what is refused, with which message, and that views are views."""

import os
import random
import struct

import numpy as np
import pytest
import torch

from apr.checkpoint import AprFile, verify, verify_bytes, write_apr
from apr.errors import AprError, CorruptFile, InvalidFormat, NotFound, StorageError
from apr.tensors import from_array

INDEX, DATA = 256, 384  # of the golden file; entries: bias at 256 (32 bytes), weights at 288


def opening(path, data: bytes) -> AprFile:
    path.write_bytes(data)
    return AprFile.open(path)


# --- what is right ---------------------------------------------------------------------------


def test_tensors_are_views_of_the_mapped_file(golden):
    file = AprFile.open(golden)
    weights = file.tensors["weights"]
    view = weights.numpy()
    assert view.tolist() == [1, 2, 0.5, -0.5, 4, -2, 0.25, 8]
    assert not view.flags.writeable
    assert np.shares_memory(view, np.frombuffer(file.buffer, dtype=np.uint8))
    assert weights.torch().data_ptr() == view.__array_interface__["data"][0]
    assert torch.equal(weights.torch(), torch.tensor(view.tolist()))


def test_views_outlive_the_file_object_and_a_replaced_file(golden):
    view = AprFile.open(golden).tensors["weights"].numpy()
    write_apr(golden, {}, [], force=True)
    assert view[7] == 8


def test_every_tensor_starts_on_a_64_byte_boundary(tmp_path):
    tensors = [from_array(f"t{i}", np.zeros(i, dtype=np.uint8)) for i in range(1, 130)]
    write_apr(tmp_path / "a.apr", {}, tensors)
    for tensor in AprFile.open(tmp_path / "a.apr").tensors.values():
        assert tensor.raw().__array_interface__["data"][0] % 64 == 0


def test_opening_reads_no_weights(tmp_path):
    """A file with a hole of 64 GB for weights opens; nothing of its size is read or allocated."""
    path = tmp_path / "a.apr"
    write_apr(path, {}, [from_array("w", np.zeros(16, dtype=np.float32))])
    data = path.read_bytes()
    elements = 1 << 34
    at = data.index(b"\x01\x00w") + 3
    tail = struct.pack("<BBQQQ", 0, 1, elements, 0, elements * 4)
    data_at = struct.unpack_from("<Q", data, 32)[0]
    path.write_bytes(data[:at] + tail + data[at + len(tail) :])
    os.truncate(path, data_at + elements * 4 + 4)
    assert AprFile.open(path).tensors["w"].shape == (elements,)


def test_metadata_is_parsed_only_when_asked_for(golden, patched):
    broken = patched(golden.read_bytes(), 64, b"[")
    file = opening(golden, broken)
    with pytest.raises(CorruptFile, match="metadata is not JSON"):
        _ = file.metadata


# --- what is not a file ----------------------------------------------------------------------


def test_a_missing_path_a_folder_and_a_pipe_are_not_found(tmp_path):
    with pytest.raises(NotFound, match="does not exist"):
        AprFile.open(tmp_path / "no.apr")
    with pytest.raises(NotFound, match="is a folder"):
        AprFile.open(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotFound, match="is not a file"):
        AprFile.open(tmp_path / "pipe")
    with pytest.raises((NotFound, StorageError)):
        AprFile.open("no\0such")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"AP", "has 2 bytes, the header alone takes 64"),
        (b"APR\0" + bytes(50), "has 54 bytes, the header alone takes 64"),
        (b"APRN" + bytes(100), "APR v1 file"),
        (b"APR1" + bytes(100), "older .apr file"),
        (b"APR2" + bytes(100), "early APR v2 file"),
        (b"GGUF\x03\0\0\0" + bytes(100), "GGUF file renamed"),
        (b"PK\x03\x04" + bytes(100), "zip archive"),
        (struct.pack("<Q", 50) + b'{"a":1}' + bytes(100), "safetensors file"),
        (b"\x80\x02}q" + bytes(100), "pickle"),
        (b"hello, world" + bytes(100), "it starts with b'hell'"),
    ],
)
def test_another_format_is_named(tmp_path, start, message):
    with pytest.raises(InvalidFormat, match=message) as caught:
        opening(tmp_path / "a.apr", start)
    assert caught.value.exit_code == 4


# --- one defect, one message -----------------------------------------------------------------

U32, U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
HEADER_DEFECTS = [
    (4, b"\x03", "is APR version 3.0"),
    (5, b"\x01", "is APR version 2.1"),
    (6, b"\x01\x04", "flag LZ4"),
    (6, b"\x02\x04", "flag ZSTD"),
    (6, b"\x04\x04", "flag ENCRYPTED"),
    (6, b"\x08\x04", "flag SIGNED"),
    (6, b"\x10\x04", "flag SHARDED"),
    (6, b"\x00\x08", "column-major"),
    (6, b"\x00\x0c", "column-major"),
    (6, b"\x00\x14", "unknown flags 0x1000"),
    (8, U32(3), "index entry 2 has a name of 0 bytes"),
    (8, U32(2**32 - 1), "counts 4294967295 tensors, the index has 128 bytes"),
    (12, U64(128), "metadata starts at byte 128, not at 64"),
    (20, U32(1 << 25), "metadata of 33554432 bytes"),
    (20, U32(250), "tensor index starts at byte 256, inside what ends at 314"),
    (24, U64(257), "tensor index starts at byte 257, no multiple of 64"),
    (24, U64(64), "tensor index starts at byte 64, inside what ends at 254"),
    (24, U64(2**63), "tensor data starts at byte 384, inside what ends at 9223372036854775808"),
    (32, U64(385), "tensor data starts at byte 385, no multiple of 64"),
    (32, U64(192), "tensor data starts at byte 192, inside what ends at 256"),
    (32, U64(2**64 - 64), "index end at byte 18446744073709551552"),
    (50, b"\x01", "reserved bytes"),
]


@pytest.mark.parametrize(("at", "new", "message"), HEADER_DEFECTS)
def test_each_header_defect_has_its_own_message(golden, at, new, message, patched):
    with pytest.raises(InvalidFormat, match=message):
        opening(golden, patched(golden.read_bytes(), at, new))


def test_a_changed_header_is_caught_by_its_checksum_first(golden):
    data = bytearray(golden.read_bytes())
    data[8] ^= 1
    with pytest.raises(CorruptFile, match="header checksum is [0-9a-f]{8}, its bytes give"):
        opening(golden, bytes(data))


INDEX_DEFECTS = [
    (INDEX, b"\x01\x02", "a name of 513 bytes"),
    (INDEX, b"\x00\x00", "a name of 0 bytes"),
    (INDEX + 2, b"\xff", "not UTF-8"),
    (INDEX + 2, b"z", "'weights' stands in the index after 'zias': not sorted"),
    (INDEX + 6, b"\xc8", "tensor 'bias' has the unknown dtype id 200"),
    (INDEX + 7, b"\x09", "has 9 dimensions"),
    (INDEX + 6, b"\x0c", r"'bias', Q4_K \[1\]: a last dimension of 1"),
    (INDEX + 6, b"\x01", r"stored in 4 bytes, F16 \[1\] takes 2"),
    (INDEX + 8, U64(2), r"stored in 4 bytes, F32 \[2\] takes 8"),
    (INDEX + 8, U64(2**62), "impossible shape"),
    (INDEX + 16, U64(4), "'bias' starts at 4, no multiple of 64"),
    (INDEX + 16, U64(2**64 - 64), "ends at byte 18446744073709551940"),
    (INDEX + 16, U64(128), "ends at byte 516 of the file, which has 516"),
    (INDEX + 16, U64(64), "'weights' starts at 64, inside 'bias', which ends at 68"),
    (INDEX + 24, U64(8), r"stored in 8 bytes, F32 \[1\] takes 4"),
    (INDEX + 32, b"\x64\x00", "index entry 1 ends at byte 136, the index has 128"),
]


@pytest.mark.parametrize(("at", "new", "message"), INDEX_DEFECTS)
def test_each_index_defect_has_its_own_message(golden, at, new, message, patched):
    with pytest.raises(InvalidFormat, match=message):
        opening(golden, patched(golden.read_bytes(), at, new))


def test_a_name_that_occurs_twice_is_refused(tmp_path, patched):
    path = tmp_path / "a.apr"
    write_apr(path, {}, [from_array(n, np.zeros(2, dtype=np.float32)) for n in ("a", "b")])
    data = path.read_bytes()
    with pytest.raises(CorruptFile, match="'a' stands in the index twice"):
        opening(path, patched(data, data.index(b"\x01\x00b"), b"\x01\x00a"))


def test_bytes_appended_to_the_file_are_counted(golden):
    with pytest.raises(CorruptFile, match="has 519 bytes, 3 more than its index accounts for"):
        opening(golden, golden.read_bytes() + b"abc")


def test_data_in_another_order_than_the_index_is_read(golden, patched):
    """The Rust streaming writer keeps the order in which tensors came."""
    data = golden.read_bytes()
    data = patched(data, INDEX + 16, U64(64))
    data = patched(data, INDEX + 32 + 2 + 7 + 2 + 8, U64(0))
    swapped = patched(data, DATA, data[DATA + 64 : DATA + 128] + data[DATA : DATA + 64])
    verify_bytes("x.apr", swapped)
    assert opening(golden, swapped).tensors["bias"].numpy().tolist() == [0.125]


# --- garbage ---------------------------------------------------------------------------------


def test_random_bytes_raise_nothing_but_our_errors(golden, patched):
    """Random fields behind a right magic and right checksums reach every check; none may crash."""
    rng = random.Random(11)
    good = golden.read_bytes()
    special = [b"\0" * 8, b"\xff" * 8, U64(64), U64(2**63), U64(2**32), U64(511), b"APR\0APR\0"]
    refused = 0
    for _ in range(8_000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(4, len(data) - 12)
            new = rng.choice(special) if rng.random() < 0.5 else rng.randbytes(rng.randint(1, 8))
            data[at : at + len(new)] = new
        data = bytearray(patched(bytes(data), 6, b"\x00\x04"))
        try:
            verify_bytes("x.apr", bytes(data))
            file = AprFile("x.apr", bytes(data), len(data))
            for tensor in file.tensors.values():
                tensor.numpy()
        except AprError as error:
            assert error.exit_code == 4
            assert "\n" not in error.line()
            refused += 1
    assert refused > 4_000


def test_random_files_raise_nothing_but_our_errors():
    rng = random.Random(12)
    for _ in range(3_000):
        data = b"APR\0" + rng.randbytes(rng.randint(0, 400))
        with pytest.raises(InvalidFormat):
            verify_bytes("x.apr", data)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"[1]", "JSON list, not an object"),
        (b"{" * 4000, "not JSON"),
        (b"[" * 200_000, "nested too deeply|not JSON"),
        (b'{"a":NaN}', "NaN is not a JSON number"),
        (b'{"a":"\xff"}', "not UTF-8 at byte 6"),
        (b'{"a":"\\ud800"}', "half a surrogate pair"),
        (b'{"a":' + b"9" * 5000 + b"}", "not JSON"),
        (b"", "not JSON"),
    ],
    ids=range(8),
)
def test_metadata_that_is_no_json_object_is_refused(tmp_path, metadata, message, resealed):
    from apr.checkpoint.layout import plan

    laid_out = plan("x", metadata, [], 0)
    path = tmp_path / "a.apr"
    path.write_bytes(resealed(laid_out.front + bytes(4)))
    with pytest.raises(CorruptFile, match=message):
        verify(path)


def test_duplicate_keys_and_aliases_are_tolerated_on_reading(tmp_path, resealed):
    from apr.checkpoint.layout import plan

    raw = b'{"num_layers":1,"num_layers":2,"n_layer":2,"emoji":"\\ud83d\\ude00"}'
    path = tmp_path / "a.apr"
    path.write_bytes(resealed(plan("x", raw, [], 0).front + bytes(4)))
    assert verify(path).tensors == 0
    assert AprFile.open(path).metadata["num_layers"] == 2
