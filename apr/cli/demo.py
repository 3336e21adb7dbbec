"""`apr demo`: the whole pipeline in one command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def demo(
    out: Path = typer.Option(..., "--out", "-o", help="The folder to make."),
    num_steps: int | None = typer.Option(
        None, "--num-steps", min=1, help="Training steps. Default: what the data budget asks for."
    ),
    force: bool = typer.Option(False, "--force", help="Start over in a folder that exists."),
    as_json: bool = typer.Option(False, "--json", help="The summary as JSON on stdout."),
) -> None:
    """Text -> tokenizer -> training -> qa -> bench -> GGUF and Hugging Face, in minutes."""
    from rich.console import Console
    from rich.text import Text

    from apr.demo import demo as run
    from apr.train.display import for_terminal

    console = Console(stderr=True, width=None if sys.stderr.isatty() else 140)
    styles = {"command": "dim", "said": "green"}

    def say(kind: str, text: str) -> None:
        if kind == "stage":
            console.print()
            console.rule(Text(text, style="bold"), align="left")
            return
        mark = "$ " if kind == "command" else ""
        console.print(Text(mark + text, style=styles.get(kind, "")), soft_wrap=True)

    result = run(out, num_steps=num_steps, force=force, say=say, display=for_terminal())
    console.print()
    console.rule(Text(f"done in {result.seconds:.0f} s", style="bold"), align="left")
    agreed = " and ".join(result.agreed)
    if agreed:
        console.print(f"{agreed} continued with exactly the tokens of apr", markup=False)
    console.print(f"left in {out}: model.apr model.gguf hf/ loss.png summary.md run/", markup=False)
    console.print(f"look: apr inspect {out}/model.apr", markup=False)
    if as_json:
        print(json.dumps(result.to_json()))
