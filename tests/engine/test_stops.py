"""Stop strings: the text ends before them, however it was cut into pieces."""

import itertools
import random

import pytest

from apr.engine.stops import StopStrings
from apr.errors import UsageError


def streamed(pieces, stops):
    machine = StopStrings(stops)
    out = "".join(machine.feed(piece) for piece in pieces)
    return out + machine.finish(), machine.found


def whole(text, stops):
    """The definition, character by character."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stops if text[:end].endswith(s)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_a_stop_string_across_pieces_ends_the_text_before_it():
    assert streamed(["one\n", "\nUs", "er: two"], ["\n\nUser:"]) == ("one", "\n\nUser:")
    assert streamed(["a", "b"], []) == ("ab", None)


def test_what_could_become_a_stop_string_is_held_back_and_given_out_at_the_end():
    machine = StopStrings(["<end>"])
    assert machine.feed("text <en") == "text "
    assert machine.feed("t <e") == "<ent "
    assert machine.finish() == "<e"
    assert machine.found is None


def test_nothing_comes_after_a_stop_string():
    machine = StopStrings(["."])
    assert machine.feed("a.b") == "a"
    assert machine.feed("c") == machine.finish() == ""


def test_the_cut_into_pieces_never_matters():
    rng = random.Random(5)
    for _ in range(2000):
        text = "".join(rng.choice("ab") for _ in range(rng.randrange(12)))
        stops = ["".join(rng.choice("ab") for _ in range(rng.randrange(1, 5))) for _ in range(2)]
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(4)))
        pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        assert streamed(pieces, stops) == whole(text, stops), (pieces, stops)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UsageError, match="stop"):
        StopStrings(["x", ""])
