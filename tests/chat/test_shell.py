"""The prompt: questions, commands, errors that do not end it, Ctrl-C."""

import io
import json

import pytest

from apr.chat import ChatTemplate, Conversation
from apr.chat.shell import HELP, Shell
from apr.chat.terminal import Screen
from apr.errors import InferenceError


@pytest.fixture
def talk(speak, chat_tokenizer):
    """`talk(lines, *answers, **options)` -> (shell, what was shown, what was said, its end)."""
    end = chat_tokenizer.encode("<|im_end|>")[0]

    def make(lines, *answers, fails_at=None, context=1000, **options):
        model = speak(*((text, end) for text in answers), fails_at=fails_at, context=context)
        conversation = Conversation(model, ChatTemplate.of(chat_tokenizer))
        out, said = io.StringIO(), []
        shell = Shell(conversation, Screen(out), said.append, **options)
        lines = iter(lines)

        def read(prompt):
            line = next(lines, None)
            if line is None:
                raise EOFError
            if isinstance(line, BaseException):
                raise line
            return line

        whole = shell.run(read)
        return shell, out.getvalue(), said, whole

    return make


def test_each_line_is_a_question_and_its_answer_appears(talk):
    shell, shown, said, whole = talk(["hello", "", "  ", "again"], "hi", "yes")
    assert shown == "hi\nyes\n"
    assert (said, whole) == ([], True)
    assert [one.text for one in shell.answers] == ["hi", "yes"]


def test_several_lines_and_a_slash_can_be_asked(talk):
    shell, _, _, _ = talk(['"""one', "two", 'three"""', "//etc/passwd?"], "a", "b")
    asked = [m["content"] for m in shell.conversation.messages if m["role"] == "user"]
    assert asked == ["one\ntwo\nthree", "/etc/passwd?"]


def test_bye_leaves_and_the_rest_is_not_asked(talk):
    shell, shown, _, whole = talk(["/bye", "hello"], "never")
    assert (shown, whole, shell.answers) == ("", True, [])


def test_clear_forgets_all_but_the_system_prompt(talk):
    shell, _, said, _ = talk(["/set system Be kind.", "hello", "/clear", "/show history"], "hi")
    assert shell.conversation.messages == [{"role": "system", "content": "Be kind."}]
    assert said[-1] == "system: Be kind."
    shell, _, said, _ = talk(["/set system Be kind.", "/set system", "/show system"])
    assert said[-1] == "there is no system prompt"


def test_parameters_are_set_shown_and_checked(talk):
    shell, _, said, _ = talk(
        ["/set parameter temperature 0.5", "/set parameter top_k 40", "/set parameter seed 3",
         "/set parameter max_tokens 9", "/show parameters", "/set parameter top_p 7",
         "/set parameter top_k many", "/set parameter max_tokens 0", "/set parameter colour 1"]
    )  # fmt: skip
    assert shell.conversation.sampling == {"temperature": 0.5, "top_k": 40, "seed": 3}
    assert shell.conversation.max_tokens == 9
    assert "temperature          0.5" in said[4]
    assert all(line.startswith("error: ") for line in said[5:])
    assert "top_p" in said[5]
    assert "no whole number" in said[6]
    assert "repetition_penalty" in said[8]


def test_info_template_help_and_verbose(talk, chat_tokenizer):
    _, _, said, _ = talk(
        ["/?", "/show info", "/show template", "/set verbose", "hello", "/set quiet", "more"],
        "hi", "ho",
    )  # fmt: skip
    assert said[0] == HELP
    assert said[1] == "script.apr\nengine script"
    assert said[2] == chat_tokenizer.chat_template
    assert "tok/s" in said[4]
    assert len(said) == 6


@pytest.mark.parametrize("line", ["/nope", "/show", "/show me", "/set", "/set fire", "/save"])
def test_a_wrong_command_says_so_and_the_conversation_goes_on(talk, line):
    _, shown, said, whole = talk([line, "hello"], "hi")
    assert said[0].startswith("error: /")
    assert (shown, whole) == ("hi\n", True)


def test_save_writes_the_conversation_and_never_over_a_file(talk, tmp_path):
    file = tmp_path / "talk.json"
    _, _, said, _ = talk(["größe", f"/save {file}", f"/save {file}"], "hi")
    document = json.loads(file.read_text(encoding="utf-8"))
    assert [m["content"] for m in document["messages"]] == ["größe", "hi"]
    assert document["answers"][0]["generated_tokens"] > 0
    assert said[0].endswith("is written")
    assert "exists already" in said[1]


def test_an_error_ends_it_only_where_nobody_watches(talk):
    _, shown, said, whole = talk(["long " * 90, "hi"], "ok", context=60)
    assert "error: context" in said[0]
    assert (shown, whole) == ("ok\n", True)
    with pytest.raises(InferenceError, match="context"):
        talk(["long " * 90], context=60, patient=False)


def test_ctrl_c_ends_an_answer_and_the_conversation_only_where_nobody_watches(talk):
    shell, shown, said, whole = talk(["tell"], "a long answer", fails_at=4)
    assert whole
    assert "interrupted; what there is of the answer is kept" in said
    assert shown.strip() == shell.answers[0].text != ""
    assert talk(["tell"], "a long answer", fails_at=4, patient=False)[3] is False
    assert talk(["tell"], "a long answer", fails_at=4, over=lambda: True)[3] is False


def test_ctrl_c_at_the_prompt_says_how_to_leave(talk):
    _, shown, said, whole = talk([KeyboardInterrupt(), "hello"], "hi")
    assert "/bye" in said[0]
    assert (shown, whole) == ("hi\n", True)
    assert talk([KeyboardInterrupt()], over=lambda: True)[3] is False
