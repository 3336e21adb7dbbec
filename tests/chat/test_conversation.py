"""A conversation: history, cache, where answers end, and what a failure leaves of it."""

import pytest

from apr.chat import ChatTemplate, Conversation, open_text_model
from apr.errors import InferenceError, InvalidFormat, UsageError
from apr.formats import open_model
from apr.formats.hf_writer import write_hf

IM_END = "<|im_end|>"


@pytest.fixture
def end(chat_tokenizer):
    return chat_tokenizer.encode(IM_END)[0]


@pytest.fixture
def template(chat_tokenizer):
    return ChatTemplate.of(chat_tokenizer)


def test_answers_end_where_the_template_would_go_on_and_are_kept(speak, template, end):
    model = speak(("I am fine.", end), ("Yes, 中文.", 257))
    talk = Conversation(model, template, system="Be brief.")
    pieces = []
    assert end in talk.stop_ids
    assert talk.ask("How are you?", pieces.append).text == "".join(pieces) == "I am fine."
    answer = talk.ask("Sure?")
    assert talk.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "I am fine."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": answer.text},
    ]


def test_the_cache_is_kept_and_holds_exactly_what_the_template_writes(
    speak, template, end, chat_tokenizer
):
    model = speak(("one", end), ("two", end), ("three", end))
    talk = Conversation(model, template)
    talk.ask("a")
    second = talk.ask("b")
    (session,) = model.engine.sessions
    text = template.render(talk.messages[:3]) + chat_tokenizer.decode(second.generation.ids)
    assert chat_tokenizer.decode(session.fed) == text
    assert 0 < second.generation.cached_tokens < second.generation.prompt_tokens
    talk.instruct("Another beginning.")
    kept = talk.ask("c").generation.cached_tokens
    assert chat_tokenizer.decode(session.fed[:kept]) == "<|im_start|>"  # "system" is not "user"
    assert len(model.engine.sessions) == 1


def test_a_real_model_says_the_same_with_the_cache_as_without(chat_apr, template):
    model = open_text_model(chat_apr, device="cpu", threads=1)
    kept, anew = (Conversation(model, template, max_tokens=6) for _ in range(2))
    for question in ("x = 1", "y", "z"):
        answer = kept.ask(question)
        anew._session = None
        assert anew.ask(question).text == answer.text
    assert answer.generation.cached_tokens > 20


def test_a_conversation_may_outgrow_the_context_and_says_how_often(chat_apr, template):
    model = open_text_model(chat_apr, device="cpu", threads=1)
    talk = Conversation(model, template, system="Be brief.", max_tokens=30, keep=-1)
    talk.stop_ids = []
    answers = [talk.ask(f"question {number} of many") for number in range(5)]
    assert answers[0].generation.context_shifts == 0
    assert all(len(one.generation.ids) == 30 for one in answers)
    assert answers[-1].generation.context_shifts >= 1
    assert len(talk.messages) == 11
    # What is kept is all up to the first question, and the cache of it is used again.
    before = template.render(talk.messages).partition("question 0")[0]
    kept = model.tokenizer.encode(before)
    assert talk._processed[: len(kept)] == kept
    assert answers[-1].generation.cached_tokens >= len(kept)
    with pytest.raises(UsageError, match="200 tokens leave no room in the model's context of 128"):
        Conversation(model, template, keep=200).ask("hi")


def test_transformers_says_the_same_in_a_conversation_of_several_turns(
    chat_apr, template, tmp_path
):
    transformers = pytest.importorskip("transformers")
    write_hf(tmp_path / "hf", open_model(chat_apr))
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="float32")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    talk = Conversation(
        open_text_model(chat_apr, device="cpu", threads=1), template, max_tokens=8, system="Be 😀."
    )
    history = [{"role": "system", "content": "Be 😀."}]
    for question in ("größe?", "x = [1]"):
        history.append({"role": "user", "content": question})
        given = words.apply_chat_template(
            history, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = peer.generate(**given, max_new_tokens=8, do_sample=False)[0]
        theirs = words.decode(ids[given["input_ids"].shape[1] :], skip_special_tokens=True)
        assert talk.ask(question).text == theirs
        history.append({"role": "assistant", "content": theirs})


def test_where_no_control_token_ends_an_answer_the_next_question_does(speak, tokenizer):
    plain = ChatTemplate(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    model = speak((" fine\n\nuser: and", None), tokenizer=tokenizer)
    talk = Conversation(model, plain)
    assert talk.stop_strings == ("user:",)
    answer = talk.ask("hello")
    assert answer.text == " fine\n\n"
    assert answer.generation.stop_string == "user:"


def test_an_interrupted_answer_is_kept_and_the_cache_is_not(speak, template, end):
    model = speak(("a long answer", end), ("next", end), fails_at=4)
    talk = Conversation(model, template)
    answer = talk.ask("tell")
    assert answer.generation.stop_reason == "interrupted"
    assert answer.text
    assert "a long answer".startswith(answer.text)
    assert talk.messages[-1] == {"role": "assistant", "content": answer.text}
    model.engine.fails_at = None
    assert talk.ask("go on").generation.cached_tokens == 0


def test_an_answer_that_never_began_leaves_no_trace(speak, template, end):
    talk = Conversation(speak(("never", end), fails_at=0), template)
    answer = talk.ask("tell")
    assert (answer.text, answer.generation.stop_reason) == ("", "interrupted")
    assert talk.messages == []


def test_a_conversation_that_outgrows_the_context_says_so_and_is_as_it_was(speak, template, end):
    talk = Conversation(speak(("ok", end), ("ok", end), context=60), template)
    talk.ask("short")
    before = list(talk.messages)
    with pytest.raises(InferenceError, match=r"the conversation has \d+ tokens.*60.*/clear"):
        talk.ask("long " * 60)
    assert talk.messages == before
    talk.max_tokens = 50
    with pytest.raises(InferenceError, match=r"tokens and its answer up to 50, .*60.*/clear"):
        talk.ask("short")
    assert talk.messages == before
    talk.max_tokens = None
    talk.reset()
    assert talk.ask("short").text == "ok"


def test_an_answer_may_fill_the_context_and_says_so(speak, template):
    talk = Conversation(speak(("a" * 500, None), context=60), template)
    answer = talk.ask("hi")
    assert answer.generation.stop_reason == "context"
    assert answer.generation.prompt_tokens + len(answer.generation.ids) == 61


def test_a_template_that_leaves_questions_out_is_an_error(speak):
    for source in ("hello", "{{ messages[0].role }}: ", "{{ bos_token }}"):
        with pytest.raises(InvalidFormat, match="template: leaves the question out of the prompt"):
            Conversation(speak(("never", None)), ChatTemplate(source))
    for source in ("{{ messages[-1].content | upper }}", "{{ messages | tojson }}"):
        Conversation(speak(("never", None)), ChatTemplate(source))


def test_a_system_prompt_that_the_template_leaves_out_or_refuses_is_an_error(speak):
    users = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(UsageError, match="leaves it out"):
        Conversation(speak(), ChatTemplate(users), system="Be brief.")
    strict = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    with pytest.raises(UsageError, match="no system role"):
        Conversation(speak(), ChatTemplate(strict), system="Be brief.")


def test_a_template_that_raises_leaves_the_history_as_it_was(speak):
    strict = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    talk = Conversation(speak(), strict)
    with pytest.raises(InferenceError, match="roles must alternate"):
        talk.ask("hi")
    assert talk.messages == []


def test_each_answer_draws_anew_and_a_seed_repeats_the_whole_conversation(chat_apr, template):
    model = open_text_model(chat_apr, device="cpu", threads=1)

    def talked(seed):
        talk = Conversation(
            model, template, max_tokens=8, sampling={"temperature": 1.0, "seed": seed}
        )
        return [talk.ask("same").text for _ in range(3)]

    assert talked(1) == talked(1) != talked(2)
    drawn = Conversation(model, template, sampling={"temperature": 1.0}).sampling
    assert drawn["seed"] >= 0  # a fresh one, which can be shown
    with pytest.raises(UsageError, match="top_p"):
        Conversation(model, template, sampling={"top_p": 2.0})
