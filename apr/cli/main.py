"""The entry point: finds the verb, and turns every failure into one line and an exit code.

Verbs are loaded only when they are called, so `apr --help` stays fast; the table below is all that
it needs. Results for programs (`--json`) go to stdout alone, also when a verb fails; all else goes
to stderr.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from apr.errors import AprError, InferenceError, Interrupted

# verb -> (module below apr.cli, one line of help). The module has `app`, a typer.Typer.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "The whole pipeline in one command, on an embedded corpus."),
    "tokenize": ("tokenize", "Train a tokenizer; turn text into token shards."),
    "pretrain": ("pretrain", "Train a model from a corpus, behind the budget gate."),
    "run": ("run", "Continue a prompt; the text streams to the terminal."),
    "chat": ("chat", "Talk with a model, through its own chat template."),
    "qa": ("qa", "Judge a checkpoint by gates; exit 5 if one fails."),
    "bench": ("bench", "Measure prefill and decode, with the receipt."),
    "eval": ("eval_", "Perplexity of text, or pass@k of the code that a model writes."),
    "import": ("import_", "Make one .apr file of a Hugging Face folder or a GGUF, proven."),
    "export": ("export", "Write GGUF or a Hugging Face folder, and prove it."),
    "inspect": ("inspect", "Show what a file holds and what it lacks, without reading weights."),
    "diff": ("diff", "Compare two models, of any format; exit 5 if they differ."),
}


class _Verbs(TyperGroup):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        module, summary = VERBS[cmd_name]
        if ctx.resilient_parsing or cmd_name not in sys.argv:
            # Only listed, not called: the help text is enough.
            stub = typer.Typer(add_completion=False)
            stub.command(name=cmd_name, help=summary)(lambda: None)
            return get_command(stub)
        app: typer.Typer = import_module(f"apr.cli.{module}").app
        command = get_command(app)
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # typer would leave with 130 and without a word
            raise Interrupted("apr", "stopped by the user") from None


app = typer.Typer(
    cls=_Verbs,
    name="apr",
    help="From a corpus to llama.cpp and transformers, around one self-contained file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from apr.receipt import apr_version

        typer.echo(f"apr {apr_version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """From a corpus to llama.cpp and transformers, around one self-contained file."""


def _fail(error: AprError) -> int:
    if "--json" in sys.argv:
        print(json.dumps(error.as_json()))
    print(f"error: {error.line()}", file=sys.stderr)
    return error.exit_code


def _stopped() -> Interrupted:
    return Interrupted("apr", "stopped by the user", "nothing was left half-written")


# How rarely unused cycles are looked for. With Python's own figures the first thing made after
# torch's import walks through torch's millions of objects: 60 ms of every command.
COLLECTIONS = (200_000, 50, 100)


def main() -> None:
    """Run the command line and leave with the documented exit code."""
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C: what is half-written is removed on the way out
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    gc.set_threshold(*COLLECTIONS)
    sys.exit(run())


def run(argv: list[str] | None = None) -> int:
    """Run the command line on `argv` (default: this process' own); the exit code."""
    if argv is not None:
        sys.argv = ["apr", *argv]
    # Threads of torch that wait for each other spin, and on cores that something else uses too,
    # one busy neighbour then made training ten times slower. Ten thousand turns and then sleeping
    # costs nothing on a quiet machine (docs/spec/decisions/training-on-the-cpu.md). Read when torch
    # loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        result = app(args=sys.argv[1:], prog_name="apr", standalone_mode=False)
        if result == Interrupted.exit_code:  # what typer makes of a KeyboardInterrupt, wordless
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except AprError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return _fail(_stopped())
    except BrokenPipeError:  # `apr inspect | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    from apr.errors import UsageError

    if os.environ.get("APR_DEBUG"):
        raise error
    name = type(error).__name__
    if hasattr(error, "format_message"):  # click's own usage errors
        path = getattr(getattr(error, "ctx", None), "command_path", "apr")
        message = error.format_message()
        return _fail(UsageError(path, message, f"see {path} --help"))
    if name in ("Exit",):
        return int(getattr(error, "exit_code", 0))
    if name == "Abort":
        return _fail(_stopped())
    if isinstance(error, OSError):
        from apr.atomic import explain

        return _fail(explain(error, error.filename or "apr"))
    if isinstance(error, MemoryError):
        hint = "use a smaller model, batch or context"
        return _fail(InferenceError("memory", "there is not enough for this", hint))
    text = str(error).splitlines()[0] if str(error) else "no message"
    return _fail(AprError("internal error", f"{name}: {text}", "set APR_DEBUG=1 for the traceback"))


if __name__ == "__main__":
    main()
