"""A SentencePiece `tokenizer.model`, read as what it is: a protobuf message of pieces and settings.

Only what decides encoding and decoding is read; the settings of its training are passed over.
Source: field numbers and defaults of sentencepiece_model.proto (the `sentencepiece` package 0.2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from apr.errors import InvalidFormat, StorageError, StrPath
from apr.tokenizer import spec as specs

UNIGRAM, BPE = 1, 2
_MODELS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
# Types of a piece; the same numbers as GGUF's token types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_Field = tuple[int, int, int | bytes]


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; `score` is a float32, `type` one of the numbers above."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class Model:
    """A SentencePiece model.

    Attributes:
        pieces: by id.
        kind: `UNIGRAM` or `BPE`.
        charsmap: the compiled normalization rules; empty where there are none.
        bos_id: -1 where there is none, as for `eos_id` and `pad_id`.
    """

    pieces: tuple[Piece, ...]
    kind: int
    byte_fallback: bool
    unk_id: int
    bos_id: int
    eos_id: int
    pad_id: int
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def read(file: Path) -> Model:
    """The model of a file.

    Raises:
        StorageError: the file cannot be read.
        InvalidFormat: it is no SentencePiece model, or of a kind that is not supported.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise StorageError(file, f"cannot be read ({error.strerror})") from error
    return parse(data, file)


def parse(data: bytes, where: StrPath) -> Model:
    """The model that the bytes of a file state; see `read`."""
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    pieces = []
    try:
        for number, wire, value in _fields(data):
            if wire != _BYTES or not isinstance(value, bytes):
                continue
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                trainer |= {field: found for field, _, found in _fields(value)}
            elif number == 3:
                normalizer |= {field: found for field, _, found in _fields(value)}
    except (ValueError, IndexError, struct.error) as error:
        raise InvalidFormat(where, f"is no SentencePiece model ({error})") from error
    if not pieces:
        raise InvalidFormat(where, "is no SentencePiece model: it has no pieces")
    if len(pieces) > specs.MAX_TOKENS:
        raise InvalidFormat(where, f"has {len(pieces)} pieces, more than {specs.MAX_TOKENS}")

    def setting(fields: dict[int, int | bytes], number: int, default: int) -> int:
        value = fields.get(number, default)
        return value if isinstance(value, int) else default

    kind = setting(trainer, 3, UNIGRAM)
    if kind not in (UNIGRAM, BPE):
        raise InvalidFormat(
            where,
            f"its model is {_MODELS.get(kind, kind)!r}, which apr does not support",
            "supported: unigram, bpe",
        )
    if setting(trainer, 24, 0) or not setting(normalizer, 5, 1):
        raise InvalidFormat(where, "marks spaces behind words, or not at all; not supported")
    charsmap = normalizer.get(2, b"")
    return Model(
        pieces=tuple(pieces),
        kind=kind,
        byte_fallback=bool(setting(trainer, 35, 0)),
        unk_id=_signed(setting(trainer, 40, 0)),
        bos_id=_signed(setting(trainer, 41, 1)),
        eos_id=_signed(setting(trainer, 42, 2)),
        pad_id=_signed(setting(trainer, 43, -1)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        add_dummy_prefix=bool(setting(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(setting(normalizer, 4, 1)),
    )


def _piece(data: bytes) -> Piece:
    text, score, type = "", 0.0, NORMAL
    for number, wire, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and wire == _FOUR and isinstance(value, bytes):
            score = struct.unpack("<f", value)[0]
        elif number == 3 and isinstance(value, int):
            type = value
    return Piece(text, score, type)


def _fields(data: bytes) -> Iterator[_Field]:
    """The fields of a protobuf message, as (number, wire type, value)."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position)
        elif wire in (_FOUR, _EIGHT):
            size = 4 if wire == _FOUR else 8
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + size > len(data):
            raise ValueError(f"a field ends at byte {position + size} of {len(data)}")
        yield number, wire, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError(f"a number does not end before byte {position}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def _signed(value: int) -> int:
    """A protobuf int32: negative numbers are written as 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value
