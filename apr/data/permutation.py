"""A pseudo-random permutation of 0 .. n - 1 that takes no memory: any part of it is computed.

A Feistel network over the next even power of two, walked until the value is below n (Black and
Rogaway 2002, "Ciphers with arbitrary finite domains"). Integer arithmetic only, so every machine
and every version of numpy gives the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ROUNDS = 6
_MASK = (1 << 64) - 1


def mixed(*values: int) -> int:
    """64 well-mixed bits of some integers (splitmix64, Steele et al. 2014, chained)."""
    state = 0
    for value in values:
        state = (state ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


class Permutation:
    """The permutation of `size` numbers that `key` (64 bits) chooses."""

    def __init__(self, size: int, key: int) -> None:
        self._size = size
        self._bits = max((max(size - 1, 1).bit_length() + 1) // 2, 1)  # of each half
        self._keys = [mixed(key, number) for number in range(ROUNDS)]

    def __len__(self) -> int:
        return self._size

    def at(self, start: int, stop: int) -> npt.NDArray[np.uint64]:
        """Elements `start` to `stop`, uint64 `[stop - start]`."""
        import numpy as np

        values = self._once(np.arange(start, stop, dtype=np.uint64))
        # The domain is less than 4 times as large, so this ends after a few turns.
        while (outside := values >= self._size).any():
            values[outside] = self._once(values[outside])
        return values

    def _once(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        import numpy as np

        bits, mask = np.uint64(self._bits), np.uint64((1 << self._bits) - 1)
        left, right = values >> bits, values & mask
        for key in self._keys:
            # uint64 arrays wrap around silently, which is what a hash wants.
            hashed = (right ^ np.uint64(key)) * np.uint64(0xBF58476D1CE4E5B9)
            hashed ^= hashed >> np.uint64(31)
            hashed *= np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ (hashed >> np.uint64(32)) & mask
        return left << bits | right
