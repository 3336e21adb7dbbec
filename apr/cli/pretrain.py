"""`apr pretrain`: train a model from a corpus, behind the budget gate."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from apr.train.prepare import Prepared
    from apr.train.run import PlanResult, TrainResult

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def pretrain(
    ctx: typer.Context,
    dataset: list[str] = typer.Option(
        None, help="File, folder or glob of text, or a folder of token shards. Repeatable."
    ),
    tokenizer: str = typer.Option(None, help="Folder with tokenizer.json, or a model file."),
    run_dir: str = typer.Option(None, help="Folder for checkpoints, metrics and shards."),
    preset: str = typer.Option(
        None, help="Size: nanogpt-cpu, 1m, 3m, 10m, 30m, 60m, 125m, 370m, 1b."
    ),
    family: str = typer.Option(
        None, help="llama, mixtral, qwen3, gemma2, ...: any in contracts/families [default: llama]."
    ),
    init: str = typer.Option(None, help="Model to go on from: its architecture and tokenizer."),
    mode: str = typer.Option(None, help="from-scratch, or continue (with --init)."),
    tie: bool = typer.Option(
        None, "--tie/--no-tie", help="Share embedding and head [default: the preset's]."
    ),
    num_steps: int = typer.Option(
        None, help="Steps [default: 20 tokens per parameter, at most 4 passes]."
    ),
    max_tokens: int = typer.Option(None, help="At most this many tokens; with --num-steps, less."),
    batch_size: int = typer.Option(None, help="Sequences at a time [default: the preset's]."),
    seq_length: int = typer.Option(None, help="Tokens per sequence [default: the preset's]."),
    grad_accum: int = typer.Option(
        None, help="Micro-batches per step [default: the preset's; 1 with --batch-size]."
    ),
    steps_per_epoch: int = typer.Option(
        None, help="Steps between evaluations and checkpoints [default: a tenth of the run]."
    ),
    lr: float = typer.Option(None, help="Peak learning rate [default: the preset's]."),
    min_lr_ratio: float = typer.Option(None, help="Final rate as a share of --lr [default: 0.1]."),
    warmup_steps: int = typer.Option(None, help="[default: a twentieth of the run]."),
    schedule: str = typer.Option(None, help="cosine, wsd or constant [default: cosine]."),
    decay_fraction: float = typer.Option(
        None, help="Share of the steps that wsd decays over [default: 0.2]."
    ),
    weight_decay: float = typer.Option(None, help="On matrices only [default: 0.1]."),
    beta1: float = typer.Option(None, help="[default: 0.9]."),
    beta2: float = typer.Option(None, help="[default: 0.95, or the preset's]."),
    grad_clip: float = typer.Option(None, help="Gradient norm, 0 for none [default: 1.0]."),
    seed: int = typer.Option(None, help="Of the weights and the order of the data [default: 0]."),
    text_key: str = typer.Option(None, help="Key of the text in .jsonl and Parquet [text]."),
    on_bad_record: str = typer.Option(None, help="skip or stop [default: skip]."),
    on_exhausted: str = typer.Option(
        None, help="When the data ends: repeat, stop or error [default: repeat]."
    ),
    validation_fraction: float = typer.Option(
        None, help="Share held out [default: 0.1 of small corpora, 0.01 of large ones]."
    ),
    eval_tokens: int = typer.Option(None, help="Tokens of an evaluation at most [default: 65536]."),
    device: str = typer.Option(None, help="cpu, cuda, cuda:N [default: CUDA if there is one]."),
    dtype: str = typer.Option(
        None, help="float32 or bfloat16 [default: bfloat16 on CUDA, float32 on the CPU]."
    ),
    threads: int = typer.Option(None, help="CPU threads [default: all cores]."),
    workers: int = typer.Option(None, help="Threads that tokenize [default: all cores]."),
    compile: bool = typer.Option(None, "--compile", help="Compile the model with torch.compile."),
    target_val_loss: float = typer.Option(
        None, help="Validation loss in nats that must be reached, else exit 5."
    ),
    patience: int = typer.Option(
        None, help="Stop after so many evaluations worse than the best beyond noise [off]."
    ),
    save_every: int = typer.Option(
        None, help="Steps between resume states [default: at each epoch]."
    ),
    keep_checkpoints: int = typer.Option(
        None, help="Newest epoch checkpoints to keep, and the best [default: all]."
    ),
    log_interval: int = typer.Option(None, help="Steps per report line [default: a fiftieth]."),
    sample_tokens: int = typer.Option(None, help="Length of the text sample, 0 for none [48]."),
    allow_under_provisioned: str = typer.Option(
        None, metavar="REASON", help="Train although the budget gate refuses; the reason is kept."
    ),
    config: str = typer.Option(None, metavar="FILE.yaml", help="Flags as YAML; flags win."),
    plan: bool = typer.Option(None, "--plan", help="Budget, memory, time; trains nothing."),
    resume: bool = typer.Option(None, "--resume", help="Go on with the run in --run-dir."),
    force: bool = typer.Option(None, "--force", help="Start over in a folder that holds a run."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Train a model from a corpus, behind the budget gate.

    Exit codes: 0 done; 5 refused by the gate, or target missed; 11 diverged; 130 interrupted and
    saved (the command that resumes is printed).
    """
    from apr.train.config import TrainConfig, merge, read_yaml

    flags: dict[str, Any] = {
        name: value
        for name, value in ctx.params.items()
        if name in TrainConfig.__dataclass_fields__ and value not in (None, [], ())
    }
    wanted = merge(read_yaml(config) if config else {}, flags, config or "apr pretrain")
    if wanted.plan:
        _plan(wanted, as_json)
    else:
        _train(wanted, as_json)


def _plan(config: Any, as_json: bool) -> None:
    from apr.train.run import plan

    result = plan(config)
    _show_prepared(result.prepared)
    _show_estimate(result)
    if result.prepared.refused:
        raise result.prepared.refusal()
    if as_json:
        print(json.dumps(result.to_json()))


def _train(config: Any, as_json: bool) -> None:
    from apr.train.display import for_terminal
    from apr.train.run import pretrain as run

    result = run(config, display=for_terminal(), announce=_show_prepared)
    _show_result(result)
    if as_json:
        print(json.dumps(result.to_json()))
    if result.target_met is False:
        best = "nothing was evaluated" if result.best is None else f"{result.best['loss']:.4f}"
        _say(
            f"error: --target-val-loss {result.target_val_loss}: missed, the best is {best}; "
            "everything is written"
        )
        raise typer.Exit(5)


def _say(text: str = "") -> None:
    print(text, file=sys.stderr, flush=True)


def _show_prepared(prepared: Prepared) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from apr.train.prepare import parameter_counts

    s, counts = prepared.settings, parameter_counts(prepared.architecture)
    _say(f"machine: {prepared.machine_text}")
    a = prepared.architecture
    active = f", {counts['active']:,} active" if counts["active"] != counts["all"] else ""
    _say(
        f"model: {a.family}, {counts['all']:,} parameters{active} ({counts['outside_embedding']:,} "
        f"outside the embedding): {a.num_layers} layers, {a.hidden_size} wide, {a.num_heads}/"
        f"{a.num_kv_heads} heads, vocabulary {a.vocab_size:,}, context {a.max_position_embeddings}"
    )
    if a.num_experts:
        shared = f" and {a.num_shared_experts} shared" if a.num_shared_experts else ""
        kept = f"loss x {s.aux_loss:g}" if s.aux_loss else "correction bias"
        _say(
            f"experts: {a.num_experts_per_tok} of {a.num_experts}{shared} for a token, each "
            f"{a.moe_intermediate_size} wide, in {len(a.sparse_layers)} layers; balance by {kept}"
        )
    _say(
        f"run: {s.mode}, {s.num_steps:,} steps of {s.batch_size} x {s.grad_accum} x {s.seq_length}"
        f" = {s.tokens_per_step:,} tokens, {s.schedule} from {s.lr:g}, {s.warmup_steps} warm-up"
    )
    for note in prepared.notes:
        _say(f"note: {note}")
    table = Table(title="data budget", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_column("remark", overflow="fold")
    for row in prepared.budget.rows():
        table.add_row(*(escape(str(cell)) for cell in row))
    Console(stderr=True, width=None if sys.stderr.isatty() else 140).print(table)
    for line in prepared.budget.reason_lines():
        _say(f"budget: {line}")
    verdict = prepared.budget.verdict
    if prepared.bypassed is not None:
        _say(f"verdict: {verdict}, BYPASSED: {prepared.bypassed}")
    else:
        _say(f"verdict: {verdict}")


def _show_estimate(result: PlanResult) -> None:
    from apr.train.display import time_text

    e, gib = result.estimate, float(1 << 30)
    m = e.memory
    _say(
        f"memory: about {m.total / gib:.2f} GiB (weights {m.weights / gib:.2f}, gradients "
        f"{m.gradients / gib:.2f}, optimizer {m.optimizer / gib:.2f}, activations "
        f"{m.activations / gib:.2f}, logits {m.logits / gib:.2f})"
    )
    _say(
        f"disk: {e.checkpoint_bytes / gib:.2f} GiB a checkpoint, {e.state_bytes / gib:.2f} GiB a "
        "resume state (two are kept)"
    )
    _say(f"time: about {time_text(e.seconds)} at {e.tokens_per_second:,.0f} tok/s ({e.how})")


def _show_result(result: TrainResult) -> None:
    from apr.train.display import loss_text, time_text

    _say()
    _say(f"{result.stop_reason}: {result.steps:,} of {result.num_steps:,} steps")
    if result.best is not None:
        best = result.best
        _say(
            f"best: validation loss {loss_text(best['loss'], best['standard_error'])} nats, "
            f"{best['bits_per_byte']:.4f} bits per byte, at step {best['step']:,}"
        )
    speed = result.tokens_per_second
    _say(
        f"time: {time_text(result.seconds)}, of which training {time_text(result.train_seconds)}"
        + (f"; {speed:,.0f} tok/s" if speed else "")
        + f"; {result.tokens_seen:,} tokens seen, {result.unique_tokens:,} unique"
    )
    if result.budget.get("bypassed"):
        _say(f"budget gate BYPASSED: {result.budget['bypassed']}")
    _say(f"model: {result.model}   curve: {result.run_dir}/loss.png")
    _say("next:")
    _say(f"  apr qa {result.model}")
    _say(f"  apr bench {result.model}")
    _say(f"  apr export {result.model} --format gguf -o model.gguf")
