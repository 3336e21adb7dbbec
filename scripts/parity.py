#!/usr/bin/env python3
"""The parity matrix: every family in several shapes, held against transformers and llama.cpp.

For each case of `tests/parity/<family>.yaml` a random tiny model is made by transformers and taken
through every world:

    transformers -> folder -> apr: our logits, in one pass and step by step with a cache, by torch
        and by every set of CPU kernels that runs here
    -> .apr -> Hugging Face folder -> transformers again: tensors, config, logits
    -> GGUF -> llama.cpp: logits, greedy tokens;  -> apr again: tensors, architecture

Prints a table and writes it, with its receipt, to `docs/spec/parity.md` (`--write`) and as JSON.
Needs transformers, and llama-cpp-python for the llama.cpp column (left empty without, and said).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT / "tests" / "parity"
TABLE = ROOT / "docs" / "spec" / "parity.md"
OURS = 2e-5  # largest difference of logits, ours against transformers
LLAMA_CPP = 1e-4
GREEDY = 16
# What a config holds beside the model: where it came from, and its weights' type.
NOT_OF_THE_MODEL = {
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
}


@dataclass(frozen=True)
class Case:
    """One shape of a family; see the module's docstring and the YAML files."""

    family: str
    name: str
    config: Mapping[str, Any]
    prompt: int = 48
    first: int = 5  # tokens that a session begins with, before it goes on one by one
    gguf: bool = True
    gguf_refused: str | None = None
    gguf_bound: float = LLAMA_CPP
    why: str = ""
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"


@dataclass
class Row:
    """What was found for a case. Differences are the largest of logits, absolute."""

    family: str
    case: str
    ours: float = math.nan
    cached: float = math.nan
    kernels: float = math.nan
    folder: float = math.nan
    llama_cpp: float = math.nan
    top1: str = ""
    greedy: str = ""
    note: str = ""
    problems: list[str] = field(default_factory=list)


def cases(*families: str) -> list[Case]:
    """The cases of the named families, or of all."""
    out = []
    for path in sorted(CASES.glob("*.yaml")):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if families and data["family"] not in families:
            continue
        shared = {k: v for k, v in data.items() if k not in ("family", "base", "cases")}
        for entry in data["cases"]:
            rest = {k: v for k, v in {**shared, **entry}.items() if k != "set"}
            config = {**data["base"], **entry.get("set", {})}
            out.append(Case(family=data["family"], config=config, **rest))
    return out


@cache
def tokenizer() -> Any:
    """A byte-level tokenizer of 290 tokens."""
    from apr.tokenizer import train

    text = "the parity of every model with every reader is shown and not claimed "
    return train(iter([text * 2, text[::-1] * 2]), 290, "qwen2")


def random_model(case: Case) -> Any:
    """A transformers model with random weights; norms and biases far from neutral, so that each
    of them shows.
    """
    import torch
    import transformers

    ids = {"bos_token_id": None, "eos_token_id": 289, "pad_token_id": 289}
    contract_type = _contract(case.family)["hf_model_type"]
    config = transformers.AutoConfig.for_model(contract_type, **{**ids, **case.config})
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point() or name.endswith("inv_freq"):
                continue
            size = 0.05
            if "norm" in name or "ln_" in name:
                size = 0.3
            elif name.endswith(("mlp.gate.weight", "router.weight", "sinks")):
                size = 0.5  # or all experts would be alike
            noise = torch.randn(tensor.shape, generator=generator) * size * case.scale
            tensor.add_(noise.to(tensor.dtype))
    return model.eval()


def run(case: Case, folder: Path, *, llama_cpp: bool = True) -> Row:
    """Take one case through every world; nothing is raised for what differs, it is in the row."""
    import torch

    row = Row(case.family, case.name)
    model = random_model(case)
    source = folder / "source"
    with quiet():
        model.save_pretrained(source)
    tokenizer().write_directory(source)
    ids = torch.randint(0, 289, (1, case.prompt), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = model(ids).logits[0].float().numpy()
    prompt = ids[0].tolist()
    opened = _ours(case, row, source, prompt, theirs)
    if opened is None:
        return row
    checkpoint = folder / "model.apr"
    _import(source, checkpoint)
    _folder_again(row, checkpoint, folder / "again", source, ids, theirs)
    if case.gguf:
        _through_gguf(case, row, checkpoint, folder / "model.gguf", prompt, llama_cpp)
    else:
        row.note = case.why
    return row


def _contract(family: str) -> dict[str, Any]:
    from apr import contracts

    return contracts.load(f"families/{family}")


def _ours(case: Case, row: Row, source: Path, prompt: list[int], theirs: Any) -> Any:
    from apr import engine
    from apr.architecture import check
    from apr.formats import open_model

    opened = open_model(source)
    check(opened.architecture, source)
    if opened.architecture.family != case.family:
        row.problems.append(f"opened as {opened.architecture.family}")
    loaded = engine.load(opened, device="cpu", dtype="float32")
    logits = loaded.logits(prompt)
    row.ours = _far(logits, theirs)
    session = loaded.session()
    first, last = case.first, case.first + 15
    steps = [session.prefill(prompt[:first])]
    steps += [session.decode(i) for i in prompt[first:last]]
    rest = session.prefill(prompt[last:])
    row.cached = max(_far(np.stack(steps), logits[first - 1 : last]), _far(rest, logits[-1]))
    _native(case, row, opened, prompt, theirs)
    batched = _batched(loaded, prompt, first)
    if not batched <= OURS:
        row.problems.append(f"a batch differs from its sequences alone by {batched:.1e}")
    if not row.ours <= OURS:
        row.problems.append(f"ours differs from transformers by {row.ours:.1e}")
    if not row.cached <= OURS:
        row.problems.append(f"steps with a cache differ by {row.cached:.1e}")
    return opened


def _native(case: Case, row: Row, opened: Any, prompt: list[int], theirs: Any) -> None:
    """Every set of CPU kernels that runs here: one pass, and step by step."""
    from apr import engine, native

    if native.unavailable():
        row.note = native.unavailable()
        return
    first = case.first
    found = []
    for kernels in native.kernel_sets():
        if not kernels.usable:
            continue
        loaded = engine.load(opened, device="cpu", kernels=kernels.name, threads=2)
        session = loaded.session()
        steps = [session.prefill(prompt[:first])]
        steps += [session.decode(i) for i in prompt[first : first + 15]]
        far = max(
            _far(loaded.logits(prompt), theirs),
            _far(np.stack(steps), theirs[first - 1 : first + 15]),
            _far(session.prefill(prompt[first + 15 :]), theirs[-1]),
        )
        if not far <= OURS:
            row.problems.append(f"kernels {kernels.name} differ by {far:.1e}")
        batched = _batched(loaded, prompt, first)
        if batched != 0.0:
            row.problems.append(f"a batch on {kernels.name} is not its sequences: {batched:.1e}")
        found.append(far)
    row.kernels = max(found)


def _batched(loaded: Any, prompt: list[int], first: int) -> float:
    """How far steps of sequences of unequal lengths together are from each one's own."""
    starts = [first, first + 9, first + 20]
    alone, together = ([loaded.session() for _ in starts] for _ in range(2))
    for session, start in zip([*alone, *together], [*starts, *starts], strict=True):
        session.prefill(prompt[:start])
    far = []
    for step in range(6):
        ids = [prompt[start + step] for start in starts]
        single = [session.decode(id) for session, id in zip(alone, ids, strict=True)]
        far.append(_far(loaded.decode_batch(together, ids), np.stack(single)))
    return max(far)


def _import(source: Path, target: Path) -> None:
    from apr.importing import import_model

    import_model(source, target, prove=False, peers=False)


def _folder_again(
    row: Row, checkpoint: Path, target: Path, source: Path, ids: Any, theirs: Any
) -> None:
    """-> Hugging Face folder: the same tensors and config, and transformers' logits on it."""
    import torch
    import transformers
    from safetensors.numpy import load_file

    from apr.formats import open_model, write_hf

    write_hf(target, open_model(checkpoint))
    first, second = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    different = {
        name
        for name in first.keys() | second.keys()
        if name not in first or name not in second or not _same(first[name], second[name])
    }
    if different:
        row.problems.append(f"folder: {len(different)} tensors differ ({min(different)})")
    before, after = (
        transformers.AutoConfig.from_pretrained(path).to_dict() for path in (source, target)
    )
    for rotary in (before.get("rope_parameters"), after.get("rope_parameters")):
        if rotary and "rope_type" in rotary:
            rotary.pop("type", None)  # transformers 4's word for the same
    lost = {key for key in before.keys() - NOT_OF_THE_MODEL if before.get(key) != after.get(key)}
    if lost:
        shown = ", ".join(f"{k} {before.get(k)!r} -> {after.get(k)!r}" for k in sorted(lost))
        row.problems.append(f"config: {shown}")
    with quiet():
        again = transformers.AutoModelForCausalLM.from_pretrained(
            target, attn_implementation="eager", dtype=torch.float32
        )
    with torch.no_grad():
        row.folder = _far(again.eval()(ids).logits[0].float().numpy(), theirs)
    if row.folder != 0.0:
        row.problems.append(f"transformers on our folder differs by {row.folder:.1e}")


def _through_gguf(
    case: Case, row: Row, checkpoint: Path, target: Path, prompt: list[int], llama_cpp: bool
) -> None:
    from apr import engine
    from apr.errors import GateFailed
    from apr.export import peers
    from apr.formats import open_model, write_gguf

    opened = open_model(checkpoint)
    try:
        write_gguf(target, opened)
    except GateFailed as error:
        row.note = error.what
        if case.gguf_refused is None or case.gguf_refused not in error.what:
            row.problems.append(f"GGUF refused: {error.what}")
        return
    if case.gguf_refused is not None:
        row.problems.append(f"GGUF was written, although {case.gguf_refused} should be refused")
        return
    again = open_model(target)
    if again.architecture != opened.architecture:
        pairs = zip(
            asdict(opened.architecture).items(), asdict(again.architecture).values(), strict=True
        )
        shown = ", ".join(f"{key} {a!r} -> {b!r}" for (key, a), b in pairs if a != b)
        row.problems.append(f"GGUF: architecture comes back with {shown}")
    for name, tensor in opened.tensors.items():
        found = again.tensors.get(name)
        if found is None or not _same(tensor.float32(), found.float32()):
            row.problems.append(f"GGUF: tensor {name} comes back changed")
            break
    if not llama_cpp:
        return
    if not peers.installed("llama_cpp"):
        row.note = "llama-cpp-python is not installed"
        return
    loaded = engine.load(opened, device="cpu", dtype="float32")
    ours = loaded.logits(prompt)
    try:
        answer = peers.ask("llama_cpp", target, prompt=prompt, greedy=GREEDY, threads=1)
    except peers.PeerFailed as error:
        row.problems.append(error.what)
        return
    assert answer.logits is not None
    row.llama_cpp = _far(answer.logits, ours)
    row.top1 = f"{int((answer.logits.argmax(-1) == ours.argmax(-1)).sum())}/{len(ours)}"
    room = min(GREEDY, opened.architecture.max_position_embeddings - len(prompt))
    ids = loaded.generate(prompt, room, stop_ids=[]).ids
    same = sum(a == b for a, b in zip(ids, answer.greedy, strict=False))
    row.greedy = f"{same}/{room}"
    if not row.llama_cpp <= case.gguf_bound:
        row.problems.append(f"llama.cpp differs by {row.llama_cpp:.1e}")
    if same != room:
        row.problems.append(f"only {same} of {room} greedy tokens are llama.cpp's")


def _far(first: Any, second: Any) -> float:
    return float(np.abs(np.asarray(first) - np.asarray(second)).max())


def _same(first: Any, second: Any) -> bool:
    return bool(
        first.dtype == second.dtype
        and first.shape == second.shape
        and np.array_equal(first.view(np.uint8), second.view(np.uint8))
    )


class quiet:  # noqa: N801 - reads like the context manager that it is
    """transformers' progress bars and warnings about tiny vocabularies, kept away."""

    def __enter__(self) -> None:
        """Silence."""
        import transformers

        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        """Sound."""
        logging.disable(logging.NOTSET)


def rows(chosen: list[Case], *, llama_cpp: bool = True) -> Iterator[Row]:
    """Every case, each in a folder of its own that is removed."""
    for case in chosen:
        folder = Path(tempfile.mkdtemp(prefix="apr-parity-"))
        try:
            yield run(case, folder, llama_cpp=llama_cpp)
        except Exception as error:  # one case must not hide the others
            yield Row(case.family, case.name, problems=[f"{type(error).__name__}: {error}"])
        finally:
            shutil.rmtree(folder)


def line(row: Row) -> str:
    """A row of the table."""

    def figure(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.1e}" if value else "0"

    end = "; ".join(row.problems) if row.problems else row.note.split(",")[0][:90]
    figures = (row.ours, row.cached, row.kernels, row.folder, row.llama_cpp)
    cells = (row.family, row.case, *map(figure, figures), row.top1 or "-", row.greedy or "-", end)
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| family | shape | ours, transformers | ours, step by step | CPU kernels, transformers "
    "| folder, transformers | llama.cpp, ours | top-1 | greedy | note |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def document(found: list[Row], receipt: Mapping[str, Any]) -> str:
    """The page for docs/spec."""
    good = sum(not row.problems for row in found)
    facts = "\n".join(f"- {key}: {value}" for key, value in receipt.items())
    return (
        "# Parity: every family against transformers and llama.cpp\n\n"
        "Written by `python scripts/parity.py --write`; how a case runs stands in that script,\n"
        "the shapes in `tests/parity/`. Random tiny models in float32; figures are the largest\n"
        "absolute difference of logits over the whole prompt. `ours, step by step` is a KV cache\n"
        "against one pass, `CPU kernels` the worst of all sets that run here, in one pass and in\n"
        "steps. Unless the note says otherwise, tensors and config came back from the folder\n"
        "unchanged, and tensors and architecture from the GGUF.\n\n"
        f"{facts}\n- {good} of {len(found)} cases hold\n\n{HEAD}\n"
        + "\n".join(map(line, found))
        + "\n"
    )


def main() -> int:
    """Run the chosen families, print and write the table; 1 if a case does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", help="all by default")
    parser.add_argument("--case", help="only cases whose name holds this")
    parser.add_argument("--no-llama-cpp", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if args.write and (args.families or args.case or args.no_llama_cpp):
        parser.error("--write writes the whole table: leave out families, --case, --no-llama-cpp")
    chosen = [c for c in cases(*args.families) if not args.case or args.case in c.name]
    if not chosen:
        print("no such case", file=sys.stderr)
        return 2
    print(HEAD)
    found = []
    for row in rows(chosen, llama_cpp=not args.no_llama_cpp):
        print(line(row), flush=True)
        found.append(row)
    receipt = versions()
    if args.write:
        TABLE.write_text(document(found, receipt), encoding="utf-8")
    if args.json:
        data = {"receipt": receipt, "rows": [asdict(row) for row in found]}
        args.json.write_text(json.dumps(data, indent=1), encoding="utf-8")
    return int(any(row.problems for row in found))


def versions() -> dict[str, Any]:
    """What the figures were made with."""
    from importlib import metadata

    from apr.receipt import receipt

    own = receipt("cpu")

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "absent"

    packages = ("torch", "transformers", "llama-cpp-python")
    return {
        "command": "python scripts/parity.py --write",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "commit": own["commit"],
        "hardware": f"{own['cpu']}, {own['cores']} cores",
        "date": own["timestamp"],
    }


if __name__ == "__main__":
    sys.exit(main())
