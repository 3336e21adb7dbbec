"""Every byte counts: cuts, flips, padding; and what a sound file reports."""

import random

import numpy as np
import pytest

from apr.checkpoint import AprFile, verify, verify_bytes
from apr.errors import AprError, CorruptFile, InvalidFormat


def test_a_sound_file_reports_what_was_checked(golden):
    report = verify(golden)
    assert (report.size_bytes, report.tensors, report.parameters) == (516, 2, 9)
    assert report.checksum == AprFile.open(golden).stored_checksum
    assert "body checksum" in report.checks


def test_a_cut_at_any_byte_is_refused_on_opening_and_by_verify(golden):
    data = golden.read_bytes()
    for length in range(1, len(data)):
        for check in (verify_bytes, lambda p, d: AprFile(p, d, len(d))):
            with pytest.raises(CorruptFile) as caught:
                check("x.apr", data[:length])
            assert caught.value.exit_code == 4


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_a_checkpoint_cut_at_any_byte_is_refused_on_opening(model_bytes, step):
    whole = AprFile("x.apr", model_bytes, len(model_bytes))
    assert len(whole.tensors) > 10
    for length in range(1, len(model_bytes), step):
        with pytest.raises(CorruptFile):
            AprFile("x.apr", model_bytes[:length], length)


def test_a_truncated_file_names_both_lengths(golden):
    golden.write_bytes(golden.read_bytes()[:500])
    with pytest.raises(CorruptFile, match="has 500 bytes, its index accounts for 516"):
        AprFile.open(golden)
    golden.write_bytes(golden.read_bytes()[:470])
    with pytest.raises(CorruptFile, match=r"'weights' ends at byte 480 of the file, which has 470"):
        AprFile.open(golden)


def test_any_flipped_bit_of_a_small_file_is_refused(golden):
    data = golden.read_bytes()
    for bit in range(len(data) * 8):
        assert_flip_is_refused(data, bit)


@pytest.mark.parametrize("flips", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_any_of_many_random_bit_flips_of_a_checkpoint_is_refused(model_bytes, flips):
    rng = random.Random(5)
    verify_bytes("x.apr", model_bytes)
    for _ in range(flips):
        assert_flip_is_refused(model_bytes, rng.randrange(len(model_bytes) * 8))


def assert_flip_is_refused(data: bytes, bit: int) -> None:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidFormat) as caught:
        verify_bytes("x.apr", bytes(damaged))
    assert caught.value.exit_code == 4
    try:  # opening reads no weights, so it may not see the flip; but it must not crash
        _ = AprFile("x.apr", bytes(damaged), len(damaged)).metadata
    except AprError as error:
        assert error.exit_code == 4


def test_a_flipped_bit_in_a_weight_names_both_checksums(golden):
    data = bytearray(golden.read_bytes())
    data[450] ^= 4
    golden.write_bytes(data)
    with pytest.raises(CorruptFile, match=r"body checksum is [0-9a-f]{8}, its 512 bytes give"):
        verify(golden)


@pytest.mark.parametrize("at", [255, 383, 388, 447, 511])
def test_padding_that_is_not_zero_is_refused(golden, at, patched):
    with pytest.raises(CorruptFile, match="the padding between bytes .* is not zero"):
        verify_bytes("x.apr", patched(golden.read_bytes(), at, b"\x01"))


def test_verifying_keeps_the_views_alive(golden):
    file = AprFile.open(golden)
    view = file.tensors["weights"].numpy()
    verify(golden)
    assert np.array_equal(view, [1, 2, 0.5, -0.5, 4, -2, 0.25, 8])
