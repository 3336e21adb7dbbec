"""Guessed tokens change nothing but the number of passes; a full context goes on as it is told."""

import numpy as np
import pytest

from apr import engine as engines
from apr import native
from apr.engine import session as module
from apr.engine.speculation import LONGEST, SHORTEST, PromptLookup, shifted
from apr.errors import FeatureUnavailable, InferenceError, UsageError

SETS = [] if native.unavailable() else [s.name for s in native.kernel_sets() if s.usable]
PROMPT = [7, 8, 9, 10, 11, 12, 7, 8, 9, 10]
kernels = pytest.mark.parametrize("kernels", [*SETS, "torch"])


def naive(text, most):
    for length in range(LONGEST, SHORTEST - 1, -1):
        for end in range(len(text) - 1, length - 1, -1):
            if text[end - length : end] == text[len(text) - length :]:
                return (text[end:] * most)[:most]
    return []


def test_what_is_proposed_followed_the_last_time_that_the_texts_end_stood_in_it():
    rng = np.random.default_rng(3)
    found = 0
    for size in (2, 3, 6):
        text = [int(i) for i in rng.integers(0, size, 60)]
        lookup = PromptLookup(5)
        for count, token in enumerate(text, 1):
            lookup.extend([token])
            assert lookup.propose(9) == naive(text[:count], 5)
            assert lookup.propose(2) == naive(text[:count], 2)
            assert lookup.propose(-1) == []
            found += bool(lookup.propose(1))
    assert found > 60


@kernels
@pytest.mark.parametrize("changes", [{}, {"sliding_window": 16}], ids=["full", "window"])
def test_the_tokens_are_the_same_and_so_is_what_the_session_holds(build, changes, kernels):
    _, model = build(**changes, max_position_embeddings=400)
    engine = engines.load(model, device="cpu", kernels=kernels, threads=1)
    plain, guessing = engine.session(), engine.session()
    want = engine.generate(PROMPT, 120, stop_ids=(), session=plain)
    got = engine.generate(PROMPT, 120, stop_ids=(), session=guessing, speculate=6)
    assert got.ids == want.ids
    assert guessing.ids == plain.ids
    assert got.decode_steps == want.decode_steps == 119
    assert 0 < got.accepted_tokens <= got.drafted_tokens
    assert want.drafted_tokens is None
    assert f"{got.accepted_tokens} of {got.drafted_tokens} guessed tokens were right" in str(got)
    longer = [*PROMPT, *want.ids, 5]
    again, more = (engine.generate(longer, 20, stop_ids=(), session=s) for s in (guessing, plain))
    assert again.ids == more.ids
    assert again.cached_tokens == more.cached_tokens


@pytest.mark.skipif(not SETS, reason="no CPU kernels")
def test_on_the_cpu_kernels_draws_and_penalties_are_the_same_too(build):
    _, model = build()
    for name in SETS:
        engine = engines.load(model, device="cpu", kernels=name, threads=2)
        prompt = PROMPT * 3
        for settings in (
            {"temperature": 0.05, "seed": 3},
            {"temperature": 0.3, "top_k": 5, "seed": 1},
            {"repetition_penalty": 1.02, "presence_penalty": 0.01},
        ):
            want = engine.generate(prompt, 90, stop_ids=(), **settings)
            got = engine.generate(prompt, 90, stop_ids=(), speculate=4, **settings)
            assert got.ids == want.ids
            assert got.speculative_passes > 0


@kernels
def test_a_stop_among_the_guesses_and_the_contexts_end_are_where_they_were(build, kernels):
    _, model = build(max_position_embeddings=96)
    engine = engines.load(model, device="cpu", kernels=kernels, threads=1)
    free = engine.generate(PROMPT, None, stop_ids=())
    assert (len(free.ids), free.stop_reason) == (87, "context")
    for stops in ((), (free.ids[60],), (free.ids[-1],)):
        for room in (None, 50, 51, 52, 53):
            want = engine.generate(PROMPT, room, stop_ids=stops)
            got = engine.generate(PROMPT, room, stop_ids=stops, speculate=8)
            assert (got.ids, got.stop_reason) == (want.ids, want.stop_reason)
    assert engine.generate(PROMPT, None, stop_ids=(), speculate=8).accepted_tokens > 0


def test_torch_computes_a_close_choice_again_alone(build, monkeypatch):
    _, model = build()
    engine = engines.load(model, device="cpu", kernels="torch", threads=1)
    want = engine.generate(PROMPT, 60, stop_ids=())
    monkeypatch.setattr(module, "_LEAD", np.inf)
    got = engine.generate(PROMPT, 60, stop_ids=(), speculate=6)
    assert got.ids == want.ids
    assert (got.speculative_passes > 0, got.accepted_tokens) == (True, 0)


def test_speculation_that_could_promise_nothing_is_refused_before_it_starts(build):
    _, model = build()
    torch32 = engines.load(model, device="cpu", kernels="torch")
    with pytest.raises(FeatureUnavailable, match="with sampling or penalties it needs the CPU"):
        torch32.generate(PROMPT, 5, temperature=1.0, speculate=3)
    torch16 = engines.load(model, device="cpu", dtype="bfloat16")
    with pytest.raises(FeatureUnavailable, match="round otherwise in bfloat16"):
        torch16.generate(PROMPT, 5, speculate=3)
    for most in (0, 65):
        with pytest.raises(UsageError, match=f"speculate: {most} is not between 1 and 64"):
            torch32.generate(PROMPT, 5, speculate=most)
    _, model = build(rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    for asked in ("torch", "native")[: 1 + bool(SETS)]:
        engine = engines.load(model, device="cpu", kernels=asked)
        with pytest.raises(FeatureUnavailable, match="rope_type dynamic change with the length"):
            engine.generate(PROMPT, 5, speculate=3)


@kernels
@pytest.mark.parametrize("keep", [0, 3])
@pytest.mark.parametrize("guesses", [None, 4])
def test_a_full_context_goes_on_without_its_older_half(build, kernels, keep, guesses):
    _, model = build(sliding_window=16, max_position_embeddings=48)
    engine = engines.load(model, device="cpu", kernels=kernels, threads=1)
    text, want, shifts = list(PROMPT), [], 0
    session = engine.session()
    logits = session.prefill(text)
    for _ in range(150):
        want.append(int(logits.argmax()))
        text.append(want[-1])
        if len(text) > 48:
            drop = (len(text) - keep) // 2
            text = text[:keep] + text[keep + drop :]
            shifts += 1
            session = engine.session()
            logits = session.prefill(text)
        else:
            logits = session.decode(want[-1])
    got = engine.generate(PROMPT, 150, stop_ids=(), keep=keep, speculate=guesses)
    assert (got.ids, got.context_shifts, got.stop_reason) == (want, shifts, "length")
    assert shifts > 3
    assert got.statistics()["context_shifts"] == shifts


def test_what_is_kept_leaves_room_and_a_prompt_must_fit(build):
    _, model = build(max_position_embeddings=48)
    engine = engines.load(model, device="cpu", threads=1)
    for keep, what in ((-1, "-1 is negative"), (47, "47 tokens leave no room.*context of 48")):
        with pytest.raises(UsageError, match=what):
            engine.generate(PROMPT, 5, keep=keep)
    assert len(engine.generate(PROMPT, 60, stop_ids=(), keep=46).ids) == 60
    with pytest.raises(InferenceError, match="49 prompt tokens are too many"):
        engine.generate([1] * 49, 5, keep=3)
    with pytest.raises(InferenceError, match="and 60 new ones need 69 positions"):
        engine.generate(PROMPT, 60)
    assert shifted([0, 1, 2, 3, 4, 5, 6], 2) == [0, 1, 4, 5, 6]
    assert shifted([0, 1, 2], 2) == [0, 1]
