"""`apr run`: what it prints where, its exit codes, and Ctrl-C while it streams."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import termios

import pytest

from apr import engine, native

PROMPT = "def f(x):"
lacking = native.unavailable()


@pytest.fixture(scope="module")
def expected(plain_apr):
    """The greedy continuation, computed without the verb."""
    loaded = engine.load(plain_apr, device="cpu", threads=1)
    done = loaded.generate(loaded.tokenizer.encode(PROMPT), 20)
    return loaded.tokenizer.decode(done.ids)


def test_stdout_has_the_continuation_alone(apr, plain_apr, expected):
    assert apr("run", plain_apr, PROMPT, "-n", 20) == (0, expected, "")
    code, out, err = apr("run", plain_apr, PROMPT, "-n", 20, "--echo", "-v")
    assert (code, out) == (0, PROMPT + expected)
    assert "engine " in err
    assert "tok/s" in err


def test_the_prompt_may_come_from_a_file_or_stdin(apr, plain_apr, expected, tmp_path, monkeypatch):
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT, encoding="utf-8")
    assert apr("run", plain_apr, "--file", file, "-n", 20)[:2] == (0, expected)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROMPT.encode())))
    assert apr("run", plain_apr, "-", "-n", 20)[:2] == (0, expected)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROMPT.encode())))
    assert apr("run", plain_apr, "-n", 20)[:2] == (0, expected)  # a pipe is meant to be read
    code, out, err = apr("run", plain_apr, "-n", 20)
    assert (code, out) == (2, "") and "stdin: the prompt is empty" in err


def test_nobody_is_waited_for_at_a_terminal_without_a_prompt(apr, plain_apr, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    code, out, err = apr("run", plain_apr)
    assert (code, out) == (2, "")
    assert "prompt: there is none; write it as an argument, --file FILE, or give it on std" in err


def test_json_is_one_document_with_text_statistics_and_what_ran(apr, plain_apr, expected):
    code, out, _ = apr("run", plain_apr, PROMPT, "-n", 20, "--json")
    document = json.loads(out)
    assert (code, document["text"]) == (0, expected)
    assert document["statistics"]["stop_reason"] == "length"
    assert document["plan"]["device"] == "cpu"
    assert "command" in document["receipt"]


def test_kernels_and_cache_are_those_asked_for_or_one_line_says_why_not(apr, plain_apr, expected):
    code, out, _ = apr("run", plain_apr, PROMPT, "-n", 20, "--json", "--kernels", "torch")
    plan = json.loads(out)["plan"]
    assert (code, plan["kernels"]) == (0, "torch linear + scaled_dot_product_attention")
    for flags, status, what in (
        (["--kernels", "torch", "--cache", "int8"], 2, "cache: int8 was asked for, torch keeps"),
        (["--cache", "int4"], 2, "cache: 'int4' is unknown; there are float32, float16 and int8"),
        (["--kernels", "torch9"], 9, "torch9: unknown; there are" if not lacking else "not built"),
        (["--kernels", "native", "--dtype", "float32"], 2, "dtype: float32 was asked for, the CPU"),
    ):
        code, out, err = apr("run", plain_apr, PROMPT, *flags)
        assert (code, out) == (status, ""), flags
        assert what in err
        assert len(err.splitlines()) == 1
    if lacking:
        pytest.skip(lacking)
    asked = ["--kernels", "portable", "--cache", "float32"]
    code, out, _ = apr("run", plain_apr, PROMPT, "-n", 20, "--json", *asked)
    document = json.loads(out)
    assert (code, document["text"]) == (0, expected)
    assert [document["plan"][key] for key in ("kernels", "cache")] == ["portable", "float32"]


def test_every_setting_reaches_the_sampler(apr, plain_apr):
    settings = {
        "temperature": 1.2, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1,
        "presence_penalty": 0.2, "frequency_penalty": 0.3, "seed": 7,
    }  # fmt: skip
    flags = [x for k, v in settings.items() for x in (f"--{k.replace('_', '-')}", v)]
    code, out, _ = apr("run", plain_apr, PROMPT, "-n", 30, "--json", *flags)
    document = json.loads(out)
    assert (code, document["sampling"]) == (0, settings)
    loaded = engine.load(plain_apr, device="cpu", threads=1)
    again = loaded.generate(document["prompt_ids"], 30, **settings)
    assert again.ids == document["ids"]


def test_guessed_tokens_leave_the_text_as_it_is(apr, plain_apr):
    flags = [] if not lacking else ["--kernels", "torch"]
    code, out, _ = apr("run", plain_apr, PROMPT * 4, "-n", 60, *flags)
    again = apr("run", plain_apr, PROMPT * 4, "-n", 60, "--json", "--speculate", 8, *flags)
    document = json.loads(again[1])
    assert (code, again[0], document["text"]) == (0, 0, out)
    assert document["statistics"]["drafted_tokens"] >= document["statistics"]["accepted_tokens"] > 0
    code, out, err = apr(
        "run", plain_apr, PROMPT, "--speculate", 4, "--kernels", "torch", "--temperature", 1
    )
    assert (code, out) == (9, "")
    assert "speculation: with sampling or penalties it needs the CPU kernels; leave it off" in err


def test_a_full_context_goes_on_where_that_is_asked_for(apr, plain_apr):
    code, out, _ = apr("run", plain_apr, PROMPT, "-n", 300, "--ignore-eos", "--context-shift",
                       "--keep", 4, "--json")  # fmt: skip
    document = json.loads(out)
    assert (code, len(document["ids"])) == (0, 300)
    assert document["statistics"]["stop_reason"] == "length"
    assert document["statistics"]["context_shifts"] > 1
    code, _, err = apr("run", plain_apr, PROMPT, "-n", 200, "--ignore-eos", "--context-shift", "-v")
    assert code == 0
    assert "the context was shifted" in err


def test_a_stop_string_ends_the_text_before_it(apr, plain_apr, expected):
    stop = expected[5:8]
    code, out, _ = apr("run", plain_apr, PROMPT, "-n", 20, "--stop", stop, "--stop", "never")
    assert (code, out) == (0, expected[: expected.index(stop)])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["word " * 200], 8, "prompt tokens are too many, the model's context has 128"),
        ([PROMPT, "-n", "500"], 8, "new ones need"),
        ([PROMPT, "-n", "0"], 2, "max_tokens: 0 is less than 1"),
        ([""], 2, "the prompt is empty"),
        (["x", "--file", "y"], 2, "is given twice"),
        (["--file", "no-such-file"], 3, "no-such-file: cannot be read"),
        ([PROMPT, "--temperature", "-1"], 2, "temperature"),
        ([PROMPT, "--temp", "-1"], 2, "temperature"),
        ([PROMPT, "--top-p", "1.5"], 2, "top_p"),
        ([PROMPT, "--stop", ""], 2, "a stop string is empty"),
        ([PROMPT, "--dtype", "float8"], 2, "float8"),
        ([PROMPT, "--keep", "4"], 2, "--keep: has no effect alone; add --context-shift"),
        ([PROMPT, "--context-shift", "--keep", "-2"], 2, "--keep: -2 is negative"),
        (
            [PROMPT, "--context-shift", "--keep", "127"],
            2,
            "127 tokens leave no room in the model's",
        ),
        (["word " * 200, "--context-shift"], 8, "prompt tokens are too many"),
        ([PROMPT, "--speculate", "0"], 2, "speculate: 0 is not between 1 and 64"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_its_exit_code(apr, plain_apr, arguments, code, says):
    found, out, err = apr("run", plain_apr, *arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1
    found, out, _ = apr("run", plain_apr, *arguments, "--json")
    assert (found, json.loads(out)["error"]["exit_code"]) == (code, code)


def test_no_model_is_an_error_too(apr, tmp_path):
    assert apr("run", tmp_path / "none.apr", "x")[0] == 3
    (tmp_path / "bad.apr").write_bytes(b"APR2 and nothing else")
    assert apr("run", tmp_path / "bad.apr", "x")[0] == 4


def start(endless, *arguments, **streams):
    command = [sys.executable, "-m", "apr", "run", str(endless), PROMPT, "-n", "40000",
               "--ignore-eos", "-t", "1", *arguments]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.PIPE, **streams)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_streaming_keeps_the_text_and_leaves_with_130(endless_apr, number):
    with start(endless_apr, stdout=subprocess.PIPE) as process:
        first = os.read(process.stdout.fileno(), 200)
        process.send_signal(number)
        rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    text = (first + rest).decode("utf-8")
    assert text
    assert err.decode().startswith(f"error: {endless_apr}: stopped by the user after ")
    assert err.count(b"\n") == 1


@pytest.mark.slow
def test_an_interrupted_json_document_is_whole(endless_apr):
    with start(endless_apr, "--json", "-v", stdout=subprocess.PIPE) as process:
        # Nothing shows that it generates; the signal must find it there, or loading.
        try:
            process.wait(timeout=8)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    document = json.loads(out)
    assert process.returncode == 130
    assert document["statistics"]["stop_reason"] == "interrupted"
    assert document["text"]
    assert document["error"]["kind"] == "interrupted"


@pytest.mark.slow
def test_a_terminal_is_left_clean(endless_apr):
    main, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    with start(endless_apr, stdout=terminal) as process:
        shown = os.read(main, 4096)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    os.set_blocking(main, False)
    while True:
        try:
            shown += os.read(main, 65536)
        except BlockingIOError:
            break
    assert process.returncode == 130
    assert termios.tcgetattr(terminal) == before
    assert shown.endswith(b"\r\n")  # the next prompt begins a line of its own
    assert b"\x1b" not in shown
    assert err.count(b"\n") == 1
    os.close(main)
    os.close(terminal)
