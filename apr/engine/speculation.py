"""Guesses for tokens to come, out of the text itself, and the context that goes on when it is full.

Prompt look-up (LLMA: Yang et al. 2023, arXiv 2304.04487): where the last tokens stood before, what
followed them there is likely to follow again. A guess costs nothing and decides nothing: one pass
over all of it tells what each token would have been (`Steps.verify`), and the first that differs
ends it.
"""

from __future__ import annotations

from collections.abc import Sequence

from apr.errors import UsageError

LONGEST, SHORTEST = 3, 2  # tokens that must have stood there before
MOST = 64  # guesses at once


class PromptLookup:
    """The text so far, and what followed each of its pieces the last time.

    Args:
        most: guesses at once.

    Raises:
        UsageError: less than 1 or more than 64.
    """

    def __init__(self, most: int) -> None:
        check_most(most)
        self._most = most
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where what followed a piece begins
        self.drafted = self.accepted = self.passes = 0

    def extend(self, ids: Sequence[int]) -> None:
        """Further tokens of the text."""
        for id in ids:
            # A piece is known once something follows it: the text's end is never its own model.
            end = len(self._ids)
            for length in range(SHORTEST, LONGEST + 1):
                if length <= end:
                    self._after[tuple(self._ids[end - length :])] = end
            self._ids.append(id)

    def propose(self, room: int) -> list[int]:
        """What may follow the text, at most `room` tokens; nothing where its end is new. What
        repeats itself goes on to: a guess that reaches the text's end is copied from itself.
        """
        ids, room = self._ids, min(room, self._most)
        for length in range(min(LONGEST, len(ids)), SHORTEST - 1, -1):
            start = self._after.get(tuple(ids[-length:]))
            if start is not None:
                period = len(ids) - start
                return [ids[start + n % period] for n in range(room)]
        return []

    def judged(self, drafted: int, accepted: int) -> None:
        """A pass has told how many of its guesses were right."""
        self.passes += 1
        self.drafted += drafted
        self.accepted += accepted


def check_most(most: int) -> None:
    """Refuse a number of guesses that is out of range."""
    if not 1 <= most <= MOST:
        raise UsageError("speculate", f"{most} is not between 1 and {MOST}", "10 is a usual number")


def check_keep(keep: int, context: int) -> None:
    """Refuse to keep what leaves the context no room to go on.

    Raises:
        UsageError: `keep` is negative, or the context has not two positions beside it.
    """
    if keep < 0:
        raise UsageError("keep", f"{keep} is negative", "write 0 or more")
    if keep > context - 2:
        raise UsageError(
            "keep", f"{keep} tokens leave no room in the model's context of {context}",
            f"keep {max(0, context // 2)} or fewer",
        )  # fmt: skip


def shifted(ids: Sequence[int], keep: int) -> list[int]:
    """A text without the older half of what follows its first `keep` tokens."""
    drop = max(1, (len(ids) - keep) // 2)
    return [*ids[:keep], *ids[keep + drop :]]
