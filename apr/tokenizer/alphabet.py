"""The byte alphabet of byte-level BPE: every byte has one printable character.

GPT-2's rule, which `tokenizers` (ByteLevel) and llama.cpp share: bytes that print in Latin-1 stand
for themselves, the others follow from U+0100 on, in the order of their value.
"""

from __future__ import annotations

from functools import cache


def _prints(byte: int) -> bool:
    return 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF


@cache
def characters() -> tuple[str, ...]:
    """The character of each byte, by value."""
    hidden = [byte for byte in range(256) if not _prints(byte)]
    return tuple(
        chr(byte) if _prints(byte) else chr(0x100 + hidden.index(byte)) for byte in range(256)
    )


@cache
def values() -> dict[str, int]:
    """The byte of each character of the alphabet."""
    return {character: byte for byte, character in enumerate(characters())}


def to_bytes(token: str) -> bytes:
    """The raw bytes of a byte-level token; characters outside the alphabet give their UTF-8."""
    table = values()
    out = bytearray()
    for character in token:
        byte = table.get(character)
        if byte is None:
            out += character.encode("utf-8", "surrogatepass")
        else:
            out.append(byte)
    return bytes(out)
