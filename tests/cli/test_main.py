"""The command line as a process: help without torch, errors on one line with their exit code."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from apr.cli import main as cli
from apr.cli.main import VERBS


def apr(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "apr", *args], capture_output=True, text=True, **kwargs
    )


def apr_and_what_it_imports(*args):
    """The finished process, and the packages that it imported."""
    code = (
        "import sys; from apr.cli.main import run; code = run(sys.argv[1:]);"
        "print('MODULES', *sorted({m.split('.')[0] for m in sys.modules})); sys.exit(code)"
    )
    out = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    out.stdout, _, modules = out.stdout.rpartition("MODULES")
    return out, set(modules.split())


def test_help_lists_every_verb_and_loads_nothing_heavy():
    out, modules = apr_and_what_it_imports("--help")
    assert out.returncode == 0
    for verb in VERBS:
        assert verb in out.stdout
    heavy = {"torch", "numpy", "rich", "tokenizers", "matplotlib", "gguf", "transformers", "yaml"}
    assert "apr" in modules and not heavy & modules


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_without_torch(verb):
    out, modules = apr_and_what_it_imports(verb, "--help")
    assert out.returncode == 0, out.stderr
    assert "Usage: apr" in out.stdout
    assert "apr" in modules and "torch" not in modules


def test_an_unknown_verb_is_a_usage_error_on_one_line():
    out = apr("trian")
    assert out.returncode == 2
    assert out.stderr.startswith("error: ")
    assert out.stderr.count("\n") == 1


def test_json_stays_json_when_the_verb_fails():
    out = apr("inspect", "no-such-file.apr", "--json")
    assert out.returncode == 3
    assert json.loads(out.stdout)["error"]["exit_code"] == 3


def test_a_receipt_names_the_command_as_it_can_be_typed(monkeypatch):
    from apr import receipt

    module = Path(receipt.__file__).with_name("__main__.py")
    for program, name in ((module, "apr"), ("/bin/apr", "apr"), ("/x/__main__.py", "__main__.py")):
        monkeypatch.setattr(sys, "argv", [str(program), "eval", "a b.gguf"])
        assert receipt.command_line() == f"{name} eval 'a b.gguf'"


def test_version_is_printed():
    out = apr("--version")
    assert out.returncode == 0
    assert out.stdout.startswith("apr ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_verb_with_one_line_and_nothing_left(number, tmp_path, monkeypatch, capsys):
    from apr import importing
    from apr.atomic import atomic_file

    def killed(source, output, **options):
        with atomic_file(output) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), number)

    monkeypatch.setattr(importing, "import_model", killed)
    monkeypatch.setattr(sys, "argv", ["apr", "import", "hf", "-o", str(tmp_path / "m.apr")])
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    # As in a terminal: a background job of a shell is started with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as left:
            cli.main()
    finally:
        for changed, handler in before.items():
            signal.signal(changed, handler)
    assert left.value.code == 130 and not list(tmp_path.iterdir())
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: apr: stopped by the user")
