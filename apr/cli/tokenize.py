"""`apr tokenize train|encode`: learn a tokenizer; turn text into token shards."""

from __future__ import annotations

import json
from pathlib import Path

import typer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Train a tokenizer; turn text into token shards.",
)

_DATASET = typer.Option(
    ..., "--dataset", help="File, folder or glob of text, code, .jsonl or Parquet; may be repeated."
)
_TEXT_KEY = typer.Option("text", "--text-key", help="The key of the text in .jsonl and Parquet.")
_ON_BAD = typer.Option("skip", "--on-bad-record", help="skip (count and go on) or stop.")
_JSON = typer.Option(False, "--json", help="The result as JSON on stdout.")


@app.command("train")
def train_command(
    dataset: list[str] = _DATASET,
    vocab_size: int = typer.Option(..., "--vocab-size", help="Tokens in all, 257 or more."),
    pre: str = typer.Option(..., "--pre", help="Pre-tokenizer: qwen2, llama-bpe or gpt-2."),
    out: Path = typer.Option(..., "-o", "--output", help="The folder to write."),
    text_key: str = _TEXT_KEY,
    on_bad_record: str = _ON_BAD,
    force: bool = typer.Option(False, "--force", help="Replace the folder if it exists."),
    as_json: bool = _JSON,
) -> None:
    """Learn byte-level BPE from text, with a pre-tokenizer that llama.cpp has too."""
    from rich.console import Console

    from apr.data.vocabulary import learn_tokenizer

    errors = Console(stderr=True)
    with errors.status("training the tokenizer"):
        learned = learn_tokenizer(
            dataset,
            out,
            vocab_size=vocab_size,
            pre=pre,
            text_key=text_key,
            on_bad_record=on_bad_record,
            force=force,
        )
    for line in learned.report.lines():
        errors.print(line, style="", markup=False, highlight=False, soft_wrap=True)
    if learned.shortfall:
        errors.print(f"note: {learned.shortfall}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(learned.to_json(), allow_nan=False))
        return
    record = learned.tokenizer.record
    print(
        f"{learned.path}: {record['vocab_size']:,} tokens ({record['merges']:,} merges), "
        f"pre-tokenizer {record['pre_type']}, from {record['documents']:,} documents, "
        f"{record['bytes']:,} bytes, in {learned.seconds:.1f} s"
    )


@app.command("encode")
def encode_command(
    dataset: list[str] = _DATASET,
    tokenizer: Path = typer.Option(..., "--tokenizer", help="A folder with a tokenizer.json."),
    out: Path = typer.Option(..., "-o", "--output", help="The dataset's folder."),
    text_key: str = _TEXT_KEY,
    on_bad_record: str = _ON_BAD,
    validation_fraction: float | None = typer.Option(
        None, "--validation-fraction", help="Share held out; default by the corpus' size."
    ),
    workers: int | None = typer.Option(None, "--workers", help="Default: the cores at hand."),
    as_json: bool = _JSON,
) -> None:
    """Turn text into token shards; reused while sources and tokenizer are unchanged."""
    from rich.console import Console

    from apr.data import build_dataset
    from apr.tokenizer import Tokenizer

    built = build_dataset(
        dataset,
        Tokenizer.from_directory(tokenizer),
        out,
        text_key=text_key,
        on_bad_record=on_bad_record,
        validation_fraction=validation_fraction,
        workers=workers,
    )
    summary = built.manifest.summary()
    errors = Console(stderr=True)
    for line in built.lines():
        errors.print(line, style="", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        result = {"path": str(out), "note": built.note, "reused": built.reused, **summary}
        print(json.dumps(result, allow_nan=False))
        return
    print(
        f"{out}: {summary['tokens']:,} tokens of {summary['documents']:,} documents "
        f"({summary['train']['tokens']:,} to train on, {summary['validation']['tokens']:,} to "
        f"validate), {summary['duplicates']:,} duplicates dropped, "
        f"{summary['bad_records']:,} broken records"
    )
