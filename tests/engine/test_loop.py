"""Generation on a model that says what it is told: stops, streams, the context, Ctrl-C, batches."""

import numpy as np
import pytest

from apr import engine as engines
from apr import tokenizer as tokenizers
from apr.engine import GenerationStopped, Sampler, TextStream, loop
from apr.errors import InferenceError, UsageError

TEXT = "Größe 中文字 😀👩‍💻 naïve\nsaid so. "


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(iter([TEXT] * 3), 262, "qwen2")


class Script:
    """A sequence whose next tokens are given; `fails_at` is the step at which Ctrl-C comes."""

    def __init__(self, ids, vocab=262, fails_at=None):
        self.ids, self.vocab, self.fails_at, self.length, self.given = ids, vocab, fails_at, 0, 0

    def prefill(self, ids):
        self.length += len(ids)
        if self.given == self.fails_at:
            raise KeyboardInterrupt
        logits = np.zeros(self.vocab, dtype=np.float32)
        logits[self.ids[self.given]] = 9
        self.given += 1
        return logits

    def decode(self, id):
        return self.prefill([id])


def write(script, *, room=100, bounded=True, stops=(261,), stream=None, on_token=None):
    writing = loop.Writing(
        [1, 2], Sampler(), cached=0, room=room, bounded=bounded, stops=stops, on_token=on_token,
        stream=stream,
    )  # fmt: skip
    return loop.write(script, [1, 2], writing)


def test_pieces_of_a_stream_are_whole_characters_and_joined_the_whole(tokenizer):
    ids = tokenizer.encode(TEXT)
    pieces = []
    stream = TextStream(tokenizer, on_text=pieces.append)
    done = write(Script([*ids, 261]), stream=stream)
    assert "".join(pieces) == done.text == TEXT == tokenizer.decode(done.ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert (done.stop_reason, done.stop_id, done.ids) == ("stop", 261, ids)


def test_a_text_that_is_cut_off_inside_a_character_shows_it_as_decoding_the_whole_does(tokenizer):
    ids = tokenizer.encode("a😀")
    done = write(Script(ids), room=len(ids) - 1, stream=TextStream(tokenizer))
    assert done.text == tokenizer.decode(done.ids) == "a\ufffd"
    assert done.stop_reason == "length"


def test_a_stop_string_ends_the_text_and_is_not_in_it(tokenizer):
    pieces = []
    stream = TextStream(tokenizer, stop_strings=["\nsaid", "中文"], on_text=pieces.append)
    done = write(Script(tokenizer.encode(TEXT)), stream=stream)
    assert done.text == "".join(pieces) == "Größe "
    assert (done.stop_reason, done.stop_string, done.stop_id) == ("stop", "中文", None)
    assert tokenizer.decode(done.ids).startswith("Größe 中文")
    assert done.decode_steps == len(done.ids) - 1


def test_the_end_of_the_context_is_another_reason_than_the_number_asked_for():
    assert write(Script([5] * 9), room=4, bounded=False).stop_reason == "context"
    assert write(Script([5] * 9), room=4).stop_reason == "length"
    assert loop.room(10, 4, None) == 7
    assert loop.room(10, 4, 7) == 7
    with pytest.raises(InferenceError, match="4 prompt tokens and 8 new ones need 11 positions"):
        loop.room(10, 4, 8)
    with pytest.raises(InferenceError, match="11 prompt tokens are too many.*context has 10"):
        loop.room(10, 11, None)
    with pytest.raises(UsageError, match="max_tokens"):
        loop.room(10, 4, 0)


def test_ctrl_c_carries_what_there_was(tokenizer):
    ids = tokenizer.encode(TEXT)
    stream = TextStream(tokenizer)
    with pytest.raises(KeyboardInterrupt) as caught:
        write(Script(ids, fails_at=6), stream=stream)
    assert isinstance(caught.value, GenerationStopped)
    (done,) = caught.value.generations
    assert done.stop_reason == "interrupted"
    assert done.ids == ids[:6]
    assert done.text == stream.text == tokenizer.decode(ids[:6])
    assert "ended by the user" in str(done)


def test_ctrl_c_before_the_first_token_leaves_nothing_and_no_time_to_it():
    with pytest.raises(GenerationStopped) as caught:
        write(Script([5], fails_at=0))
    (done,) = caught.value.generations
    assert (done.ids, done.time_to_first_token, done.decode_steps) == ([], None, 0)
    assert done.statistics()["generated_tokens"] == 0
    assert "no token came" in str(done)


def test_a_batch_gives_each_text_that_its_prompt_has_alone(build):
    _, model = build()
    engine = engines.load(model, device="cpu")
    prompts = [[5, 6, 7], [9], list(range(40, 80)), [3, 3]]
    free = engine.generate(prompts[1], 30, stop_ids=()).ids
    stop = [free[7]]  # one of them ends early
    for settings in ({}, {"temperature": 1.0, "top_k": 50, "seed": 4, "presence_penalty": 0.5}):
        together = engine.generate_batch(prompts, 30, stop_ids=stop, **settings)
        for number, prompt in enumerate(prompts):
            own = {**settings, "seed": 4 + number} if "seed" in settings else settings
            alone = engine.generate(prompt, 30, stop_ids=stop, **own)
            assert together[number].ids == alone.ids
            assert together[number].stop_reason == alone.stop_reason
    assert len({len(one.ids) for one in engine.generate_batch(prompts, 30, stop_ids=stop)}) > 1


def test_a_batch_with_a_sequence_that_does_not_fit_computes_nothing(build):
    _, model = build()
    engine = engines.load(model, device="cpu")
    engine.run = None
    with pytest.raises(InferenceError, match="120 prompt tokens and 30"):
        engine.generate_batch([[1], [1] * 120], 30)
    assert engine.generate_batch([], 5) == []


def test_ctrl_c_in_a_batch_keeps_every_sequence(build, monkeypatch):
    _, model = build()
    engine = engines.load(model, device="cpu")
    original, calls = engine.decode_batch, []

    def step(sessions, ids):
        calls.append(ids)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(sessions, ids)

    monkeypatch.setattr(engine, "decode_batch", step)
    with pytest.raises(GenerationStopped) as caught:
        engine.generate_batch([[1, 2], [3]], 30, stop_ids=())
    assert [len(one.ids) for one in caught.value.generations] == [4, 4]
    assert {one.stop_reason for one in caught.value.generations} == {"interrupted"}


def test_a_session_goes_on_where_the_last_generation_ended(build):
    _, model = build()
    engine = engines.load(model, device="cpu")
    session = engine.session()
    first = engine.generate([5, 6, 7], 10, stop_ids=(), session=session)
    assert session.length == 12
    longer = [5, 6, 7, *first.ids, 8, 9]
    more = engine.generate(longer, 10, stop_ids=(), session=session)
    assert more.cached_tokens == 12
    assert more.prompt_tokens == len(longer)
    assert more.ids == engine.generate(longer, 10, stop_ids=()).ids
    assert more.prefill_tokens_per_second == pytest.approx(3 / more.prefill_seconds)


def test_a_session_can_be_wound_back_where_its_cache_allows_it(build):
    _, model = build()
    engine = engines.load(model, device="cpu")
    session = engine.session()
    session.prefill([5, 6, 7, 8, 9])
    assert session.rewind(3)
    assert session.length == 3
    assert np.allclose(session.decode(1), engine.logits([5, 6, 7, 1])[-1], atol=2e-5)
    assert not session.rewind(9)
    _, model = build(rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    following = engines.load(model, device="cpu").session()
    following.prefill([5, 6, 7])
    assert not following.rewind(2)
    assert following.length == 3
    assert following.rewind(0)  # nothing is left that angles could be wrong for
    assert np.array_equal(
        following.prefill([1, 2]), engines.load(model, device="cpu").logits([1, 2])[-1]
    )


def test_statistics_hold_all_that_is_promised(build):
    _, model = build()
    done = engines.load(model, device="cpu").generate([5] * 10, 8, stop_ids=())
    found = done.statistics()
    assert found["prompt_tokens"] == 10
    assert found["generated_tokens"] == 8
    assert found["decode_steps"] == 7
    assert found["stop_reason"] == "length"
    assert {
        "prefill_seconds", "decode_seconds", "prefill_tokens_per_second",
        "decode_tokens_per_second", "time_to_first_token", "stop_id", "stop_string",
        "cached_tokens",
    } <= set(found)  # fmt: skip
