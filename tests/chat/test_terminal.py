"""What a terminal is shown, and what anything else gets."""

import io
import os
import signal

import pytest

from apr.chat.terminal import Screen, signals_as_interrupt, visible


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_model_cannot_command_the_terminal():
    assert visible("a\x1b[2Jb\x07\r\n\tc\x9b\x7f 😀") == "a\\x1b[2Jb\\x07\n\tc\\x9b\\x7f 😀"
    out = Terminal()
    screen = Screen(out)
    screen.write("x\x1b]0;title\x07")
    screen.end()
    screen.end()
    assert out.getvalue() == "x\\x1b]0;title\\x07\n"


def test_a_file_gets_the_text_as_it_is_in_utf8_and_no_line_end_of_ours():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    screen = Screen(out)
    screen.write("größe\x1b\r\n😀")
    screen.end()
    assert raw.getvalue() == "größe\x1b\r\n😀".encode()


def test_sigterm_interrupts_as_ctrl_c_and_is_told_apart():
    before = signal.getsignal(signal.SIGTERM)
    with signals_as_interrupt() as came:
        assert not came.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert came.is_set()
    assert signal.getsignal(signal.SIGTERM) == before
