"""Everything before step 1: the machine proven, tokenizer, data and architecture opened, the
settings decided, the budget judged. Nothing is trained here and nothing of an old run is touched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr import architecture as arch
from apr import families
from apr.architecture import Architecture
from apr.device import pick_device, pick_dtype
from apr.errors import FeatureUnavailable, GateFailed, NotFound, UsageError
from apr.train import presets
from apr.train.config import TrainConfig
from apr.train.settings import Machine, Settings, decide, seq_length

if TYPE_CHECKING:
    from apr.data.budget import Budget
    from apr.data.dataset import TokenDataset
    from apr.formats import OpenedModel
    from apr.tokenizer import Tokenizer


AMX_PAYS_FROM = 2_000_000  # parameters outside the embedding; below, conversions eat the gain


class BudgetRefused(GateFailed):
    """The data budget does not allow this run; `--json` carries the table."""

    def __init__(self, what: str, hint: str, budget: Mapping[str, Any]) -> None:
        self.budget = budget
        super().__init__("budget", what, hint)

    def as_json(self) -> dict[str, object]:
        """The message and the budget table for programs."""
        return {**super().as_json(), "budget": dict(self.budget)}


@dataclass(frozen=True)
class Prepared:
    """A run that could start: what was decided, and on what grounds."""

    settings: Settings
    architecture: Architecture
    tokenizer: Tokenizer
    dataset: TokenDataset
    budget: Budget
    bypassed: str | None
    machine_text: str
    init: OpenedModel | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """True if the gate refuses and nobody overrode it."""
        return self.budget.verdict == "refusal" and self.bypassed is None

    def budget_json(self) -> dict[str, Any]:
        """The table as it stands in every checkpoint."""
        return {**self.budget.to_json(), "bypassed": self.bypassed}

    def refusal(self) -> BudgetRefused:
        """The gate's refusal as an error (exit code 5)."""
        return BudgetRefused(
            "refused before step 1: " + "; ".join(self.budget.reason_lines()),
            "add text, choose a smaller --preset or --num-steps, or go on with "
            '--allow-under-provisioned "reason"',
            self.budget_json(),
        )


def prove_machine(config: TrainConfig) -> tuple[Machine, str]:
    """Device, dtype and threads, proven; and a line that says what will compute.

    Raises:
        UsageError, FeatureUnavailable: see `pick_device`, `pick_dtype`; float16; bfloat16 on a GPU
            that has no arithmetic for it.
    """
    import torch

    device = pick_device(config.device)
    threads = config.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    cuda = device.type == "cuda"
    good = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = pick_dtype(config.dtype, torch.bfloat16 if good else torch.float32)
    if dtype == torch.float16:
        raise UsageError(
            "--dtype",
            "float16 cannot train without loss scaling, which apr does not have",
            "write --dtype bfloat16 or --dtype float32",
        )
    if cuda and dtype == torch.bfloat16 and not good:
        raise FeatureUnavailable(
            "--dtype",
            f"{torch.cuda.get_device_name(device)} has no bfloat16 arithmetic",
            "write --dtype float32",
        )
    if cuda and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    name = str(dtype).removeprefix("torch.")
    return Machine(str(device), name, threads), machine_line(str(device), name, threads)


def machine_line(device: str, dtype: str, threads: int) -> str:
    """What computes, in words."""
    import torch

    from apr.receipt import cpu_name

    where = (
        torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else f"{cpu_name()}, {threads} threads"
    )
    how = "float32" if dtype == "float32" else f"{dtype} arithmetic over float32 weights"
    return f"{device} ({where}), {how}, AdamW fused, torch {torch.__version__}"


def prepare(config: TrainConfig, data_dir: Path) -> Prepared:
    """Decide and judge a new run; `data_dir` is where token shards go, if they must be built.

    Raises:
        AprError: everything that can be wrong with input, before anything is trained.
    """
    from apr.data.batches import Batches, check_enough
    from apr.data.budget import judge
    from apr.data.dataset import check_vocabulary

    machine, line = prove_machine(config)
    init = None
    if config.init is not None:
        from apr.formats import open_model

        init = open_model(config.init)
        init.check_tensors()
    tokenizer = _tokenizer(config, init)
    recipe = presets.recipe(config.preset) if config.preset else None
    if init is not None:
        architecture = init.architecture
        _check_same_family(config, architecture)
    else:
        assert config.preset is not None
        length = seq_length(config, recipe, None)
        architecture = presets.architecture(
            config.preset, tokenizer.vocab_size, length, config.tie, config.family
        )
    arch.check(architecture, config.init or f"--preset {config.preset}")
    dataset = open_data(config, tokenizer, data_dir)
    check_vocabulary(dataset, architecture.vocab_size)

    def windows(batch: int, length: int) -> int:
        check_enough(dataset, batch, length)
        return Batches(dataset.train, batch, length, config.seed).windows_left

    tokens = len(dataset.train)
    settings, notes = decide(config, architecture, recipe, machine, tokens, windows)
    if machine.device == "cpu" and machine.dtype == "float32" and _amx_pays(architecture):
        notes.append("this CPU multiplies bfloat16 in hardware (AMX): --dtype bfloat16 is faster")
    unique, planned = tokens, settings.planned_tokens
    before = init.training if init is not None else None
    if before:
        # What the weights have already learned from counts; text seen then and now counts once.
        same = before.get("data", {}).get("shards_sha256") == dataset.manifest.shards_sha256
        seen, old = int(before.get("tokens_seen", 0)), int(before.get("unique_tokens", 0))
        unique, planned = unique + (0 if same else old), planned + seen
        notes.append(f"the budget counts the {seen:,} tokens that --init was trained on")
    budget = judge(architecture, unique_tokens=unique, planned_tokens=planned)
    bypassed = config.allow_under_provisioned if budget.verdict == "refusal" else None
    if config.allow_under_provisioned and bypassed is None:
        notes.append("--allow-under-provisioned was not needed: the gate does not refuse")
    return Prepared(
        settings, architecture, tokenizer, dataset, budget, bypassed, line, init,
        [*(f"data: {said}" for said in dataset.lines()), *notes],
    )  # fmt: skip


def _check_same_family(config: TrainConfig, architecture: Architecture) -> None:
    if config.family not in (None, architecture.family):
        raise UsageError(
            f"--family {config.family}",
            f"{config.init} is a {architecture.family}: --init says the architecture",
            "leave --family out",
        )


def _amx_pays(architecture: Architecture) -> bool:
    """True where bfloat16 was measured faster on a CPU (docs/spec/decisions)."""
    if families.num_parameters(architecture, embedding=False, active=True) < AMX_PAYS_FROM:
        return False
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _tokenizer(config: TrainConfig, init: OpenedModel | None) -> Tokenizer:
    given = None if config.tokenizer is None else open_tokenizer(config.tokenizer)
    if init is None:
        assert given is not None
        return given
    own = init.require_tokenizer()
    if given is None:
        return own
    if given.vocab_size != own.vocab_size:
        raise UsageError(
            "--tokenizer",
            f"{config.tokenizer} has {given.vocab_size:,} tokens, the model of --init has "
            f"{own.vocab_size:,}",
            "leave --tokenizer out: --init brings its own",
        )
    if given.fingerprint != own.fingerprint:
        raise UsageError(
            "--tokenizer",
            f"{config.tokenizer} is as large as the tokenizer of --init, but another one",
            "leave --tokenizer out: --init brings its own",
        )
    return own


def open_tokenizer(path: str) -> Tokenizer:
    """A tokenizer from a folder with tokenizer.json, or from a model file.

    Raises:
        NotFound, InvalidFormat: there is none.
    """
    from apr.tokenizer import Tokenizer

    where = Path(path)
    if not where.exists():
        raise NotFound(
            where,
            "no such tokenizer",
            "train one with: apr tokenize train --dataset PATH --vocab-size N -o DIR",
        )
    if where.is_dir():
        return Tokenizer.from_directory(where)
    if where.name == "tokenizer.json":
        return Tokenizer.from_directory(where.parent)
    from apr.formats import open_model

    return open_model(where).require_tokenizer()


def open_data(config: TrainConfig, tokenizer: Tokenizer, data_dir: Path) -> TokenDataset:
    """The shards that `--dataset` names, or shards built of the sources that it names.

    Raises:
        AprError: see `build_dataset` and `open_dataset`.
    """
    from apr.data.dataset import build_dataset, open_dataset
    from apr.data.manifest import MANIFEST, SOURCES

    first = Path(config.dataset[0])
    if len(config.dataset) == 1 and all((first / name).is_file() for name in (MANIFEST, SOURCES)):
        return open_dataset(first.resolve(), tokenizer=tokenizer)
    return build_dataset(
        list(config.dataset),
        tokenizer,
        data_dir,
        text_key=config.text_key,
        on_bad_record=config.on_bad_record,
        validation_fraction=config.validation_fraction,
        workers=config.workers,
    )


def parameter_counts(architecture: Architecture) -> dict[str, int]:
    """Parameters: all, those that one token uses, all outside embedding and head."""
    return {
        "all": families.num_parameters(architecture),
        "active": families.num_parameters(architecture, active=True),
        "outside_embedding": families.num_parameters(architecture, embedding=False),
    }
