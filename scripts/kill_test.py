"""Kill a run at random moments with SIGKILL; see that nothing under a final name is ever damaged.

    python scripts/kill_test.py [--kills 20] [--seed 0] [--keep DIR]

A small run is started, killed after a random time (every second time while a save is going on, as
its temporary files tell), and resumed, until it has been killed often enough and ends. After each
kill every checkpoint under its final name must open and verify, and the newest state must be whole.
At the end all losses must equal, to the bit, those of a run that was never stopped. Exit 1 on any
problem.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

APR = [sys.executable, "-m", "apr.cli.main"]


@dataclass
class Report:
    """What happened: kills by where they hit, files verified, problems."""

    during_save: int = 0
    between: int = 0
    before_state: int = 0
    verified: int = 0
    steps: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def make_input(folder: Path) -> list[str]:
    """A corpus of random words and a byte tokenizer; the flags of the run."""
    from apr.tokenizer import train

    draw = random.Random(1)
    words = ["so", "we", "beat", "on", "boats", "against", "the", "current", "borne", "back"]
    text = "\n".join(" ".join(draw.choices(words, k=10)) for _ in range(4000))
    (folder / "text.txt").write_text(text + "\n")
    train(iter(["bytes"]), 257, "gpt-2").write_directory(folder / "tokenizer")
    return [
        *("--dataset", str(folder / "text.txt"), "--tokenizer", str(folder / "tokenizer")),
        *("--preset", "nanogpt-cpu", "--batch-size", "4", "--num-steps", "500"),
        *("--steps-per-epoch", "10", "--eval-tokens", "512", "--sample-tokens", "4"),
        *("--device", "cpu", "--threads", "1", "--allow-under-provisioned", "kill test"),
    ]


def start(args: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen([*APR, "pretrain", *args], stdout=out, stderr=out)


def saving(run: Path, pid: int) -> bool:
    """True while a checkpoint or state of the process lies under a temporary name."""
    return any(
        path.name.endswith(f".tmp-{pid}")
        for folder in (run, run / "ckpt", run / "state")
        if folder.is_dir()
        for path in folder.iterdir()
    )


def wait_for_moment(process: subprocess.Popen[bytes], run: Path, draw: random.Random) -> bool:
    """Wait for a random moment: one in seven while the run still starts, else while it trains, of
    these every second during a save. False if the run ended before.
    """
    starting = draw.random() < 1 / 7
    want_save = draw.random() < 0.5
    wait = draw.uniform(0.0, 1.5)
    log = run / "metrics.jsonl"
    before = log.stat().st_mtime_ns if log.exists() else 0
    deadline = time.monotonic() + wait if starting else None
    while process.poll() is None:
        now = time.monotonic()
        if deadline is None and log.exists() and log.stat().st_mtime_ns > before:
            deadline = now + wait
        if deadline is not None and now >= deadline:
            if starting or not want_save or now > deadline + 10:
                return True
            if saving(run, process.pid):
                time.sleep(draw.uniform(0.0, 0.01))
                return process.poll() is None
        time.sleep(0.0005)
    return False


def inspect_left(run: Path, report: Report) -> None:
    """Verify every file under a final name."""
    from apr.checkpoint import verify
    from apr.errors import AprError
    from apr.formats import open_model
    from apr.train.state import read_state

    checkpoints = [*(run / "ckpt").glob("*.apr"), *run.glob("model.apr")]
    for path in checkpoints:
        try:
            verify(path)
            model = open_model(path)
            model.check_tensors()
            model.require_tokenizer()
            report.verified += 1
        except AprError as error:
            report.problems.append(error.line())
    for path in (run / "state").glob("step-*"):
        try:
            read_state(path)
            report.verified += 1
        except AprError as error:
            report.problems.append(error.line())


def losses(run: Path) -> dict[str, list[object]]:
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "step": [(x["step"], x["loss"], x["grad_norm"]) for x in lines if x["kind"] == "step"],
        "evaluation": [(x["step"], x["loss"]) for x in lines if x["kind"] == "evaluation"],
    }


def kill_often(flags: list[str], run: Path, kills: int, seed: int, log: Path) -> Report:
    report, draw = Report(), random.Random(seed)
    done = 0
    while True:
        resumable = (run / "state").is_dir() and any((run / "state").glob("step-*"))
        args = ["--resume"] if resumable else [*flags, "--force"]
        process = start([*args, "--run-dir", str(run)], log)
        if done >= kills:
            if process.wait() != 0:
                report.problems.append(f"the last run left with {process.returncode}, see {log}")
            return report
        if not wait_for_moment(process, run, draw):
            process.wait()
            if process.returncode != 0:
                report.problems.append(f"a run left with {process.returncode}, see {log}")
                return report
            shutil.rmtree(run)  # ended before it was killed often enough: once more
            continue
        process.send_signal(signal.SIGKILL)
        process.wait()
        done += 1
        if saving(run, process.pid):
            report.during_save += 1
        elif resumable or any((run / "state").glob("step-*")):
            report.between += 1
        else:
            report.before_state += 1
        inspect_left(run, report)
        newest = max((run / "state").glob("step-*"), default=None)
        report.steps.append(int(newest.name.split("-")[1]) if newest else -1)
        print(f"kill {done}: newest state at step {report.steps[-1]}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a run at random moments and resume it.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work here, and leave it for inspection")
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp(prefix="apr-kill-"))
    folder.mkdir(parents=True, exist_ok=True)
    flags = make_input(folder)
    whole, killed = folder / "whole", folder / "killed"
    reference = start([*flags, "--run-dir", str(whole), "--force"], folder / "whole.log")
    if reference.wait() != 0:
        print((folder / "whole.log").read_text()[-2000:], file=sys.stderr)
        return 1
    report = kill_often(flags, killed, args.kills, args.seed, folder / "killed.log")
    if not report.problems:
        one, two = losses(whole), losses(killed)
        for kind in ("step", "evaluation"):
            different = sum(a != b for a, b in zip(one[kind], two[kind], strict=False))
            if different or len(one[kind]) != len(two[kind]):
                report.problems.append(
                    f"{different} of {len(one[kind])} {kind} lines differ, {len(two[kind])} found"
                )
        inspect_left(killed, report)
    print(
        f"{args.kills} kills: {report.during_save} during a save, {report.between} between saves, "
        f"{report.before_state} before the first state; {report.verified} files verified; "
        f"steps of the newest states {report.steps}"
    )
    for problem in report.problems:
        print("PROBLEM:", problem)
    if not report.problems:
        print("every file was whole, and all losses equal those of the run that was never stopped")
        if args.keep is None:
            shutil.rmtree(folder)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
