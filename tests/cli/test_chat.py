"""`apr chat`: questions from an argument, a pipe and a terminal; its errors; Ctrl-C."""

import io
import json
import os
import pty
import sys
import time

import pytest

SHORT = ("-n", "5", "-t", "1")


def pipe(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_one_question_one_answer(apr, chat_apr):
    code, out, err = apr("chat", chat_apr, "hello", *SHORT, "-v")
    assert code == 0
    assert out.endswith("\n")
    assert "ended by the token limit" in err
    assert apr("chat", chat_apr, "hello", *SHORT)[:2] == (0, out)


def test_a_pipe_asks_line_by_line_and_json_is_one_document(apr, chat_apr, monkeypatch):
    pipe(monkeypatch, "hello\n\n/set system Be kind.\nagain\n")
    code, out, _ = apr("chat", chat_apr, *SHORT, "--json", "--system", "Be brief.")
    document = json.loads(out)
    assert code == 0
    assert [m["role"] for m in document["messages"]] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert document["messages"][0]["content"] == "Be kind."
    assert [one["text"] for one in document["answers"]] == [
        document["messages"][2]["content"], document["messages"][4]["content"],
    ]  # fmt: skip
    pipe(monkeypatch, "hello\nagain\n")
    code, out, _ = apr("chat", chat_apr, *SHORT)
    assert (code, out.count("\n") >= 2) == (0, True)


def test_a_question_may_be_stdin_as_a_whole(apr, chat_apr, monkeypatch):
    pipe(monkeypatch, "/two\nlines")
    code, out, _ = apr("chat", chat_apr, "-", *SHORT, "--json")
    assert (code, json.loads(out)["messages"][0]["content"]) == (0, "/two\nlines")


def test_a_model_without_a_template_is_an_error_that_says_what_to_do(apr, plain_apr, tmp_path):
    code, out, err = apr("chat", plain_apr, "hello")
    assert (code, out) == (6, "")
    assert "plain.apr: has no chat template; choose one: --template chatml" in err
    assert apr("chat", plain_apr, "hello", "--template", "chatml", *SHORT)[0] == 0
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    assert apr("chat", plain_apr, "hello", "--template", own, *SHORT)[0] == 0


@pytest.mark.parametrize(
    ("template", "code", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", 8, "refuses this conversation: roles"),
        ("{% for %}", 4, "is no valid Jinja"),
        ("{{ nothing.at.all }}", 4, "fails"),
        ("{{ 'x' * 99999999999 }}", 4, "fails: makes a value of 99,999,999,999 elements"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", 4, "fails"),
    ],
)
def test_a_template_that_raises_is_one_line_and_its_exit_code(
    apr, chat_apr, tmp_path, template, code, says
):
    file = tmp_path / "t.jinja"
    file.write_text(template)
    found, out, err = apr("chat", chat_apr, "hello", "--template", file)
    assert (found, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1


def test_other_bad_input(apr, chat_apr, monkeypatch, tmp_path):
    assert apr("chat", chat_apr, "word " * 200)[0] == 8
    assert apr("chat", chat_apr, "x", "--template", tmp_path / "none")[0] == 3
    assert apr("chat", chat_apr, "x", "--min-p", "3")[0] == 2
    code, _, err = apr("chat", chat_apr, "")
    assert (code, "--file" in err) == (2, False)
    pipe(monkeypatch, "hello\n/nope\n")
    assert apr("chat", chat_apr, *SHORT)[0] == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"gr\xf6sse\n")))
    code, _, err = apr("chat", chat_apr)
    assert (code, "UTF-8" in err) == (4, True)


def read_until(fd, wanted, seconds=60):
    shown, end = b"", time.monotonic() + seconds
    while wanted not in shown:
        assert time.monotonic() < end, shown
        shown += os.read(fd, 4096)
    return shown


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_ends_the_answer_and_not_the_conversation(endless_apr):
    pid, fd = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "apr", "chat", str(endless_apr), "-n", "40000", "-t", "1"]
        os.execv(sys.executable, command)
    read_until(fd, b">>> ")
    os.write(fd, b"hello\n")
    read_until(fd, b"hello\r\n")
    os.read(fd, 1)  # the answer has begun
    os.write(fd, b"\x03")
    shown = read_until(fd, b">>> ")
    assert b"interrupted; what there is of the answer is kept\r\n" in shown
    os.write(fd, b"/show history\n")
    assert b"user: hello\r\nassistant: " in read_until(fd, b"assistant: ")
    os.write(fd, b"\x03")
    read_until(fd, b"/bye ends the conversation")
    os.write(fd, b"/bye\n")
    while True:
        try:
            if not os.read(fd, 4096):
                break
        except OSError:
            break
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    os.close(fd)
