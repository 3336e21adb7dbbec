"""What a run is asked to do: `TrainConfig`, as given by flags, by a YAML file, or in Python.

A field is None where nothing was asked; `apr.train.settings` then decides, and says what. Flags,
the keys of `--config` and the fields have the same names (`--lr`, `lr`). A wrong value or
combination is a usage error that says what to write instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

from apr.errors import NotFound, UsageError

MODES = ("from-scratch", "continue")
SCHEDULES = ("cosine", "wsd", "constant")
EXHAUSTED = ("repeat", "stop", "error")
BAD_RECORD = ("skip", "stop")
DTYPES = ("float32", "bfloat16")

# Changing one of these between a run and its resumption changes no step's result.
FREE_ON_RESUME = frozenset(
    {"run_dir", "resume", "plan", "force", "config", "threads", "log_interval", "save_every"}
    | {"target_val_loss", "patience", "sample_tokens", "workers"}
    | {"allow_under_provisioned", "keep_checkpoints"}
)


@dataclass(frozen=True)
class TrainConfig:
    """A run as it was asked for; lengths are tokens, `lr` is the peak learning rate."""

    # what is trained, on what, where to
    dataset: tuple[str, ...] = ()
    tokenizer: str | None = None
    run_dir: str | None = None
    mode: str | None = None
    preset: str | None = None
    family: str | None = None
    init: str | None = None
    tie: bool | None = None
    # how long
    num_steps: int | None = None
    max_tokens: int | None = None
    steps_per_epoch: int | None = None
    batch_size: int | None = None
    seq_length: int | None = None
    grad_accum: int | None = None
    # optimizer
    lr: float | None = None
    min_lr_ratio: float = 0.1
    warmup_steps: int | None = None
    schedule: str = "cosine"
    decay_fraction: float = 0.2
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float | None = None
    grad_clip: float = 1.0
    seed: int = 0
    # data
    text_key: str = "text"
    on_bad_record: str = "skip"
    on_exhausted: str = "repeat"
    validation_fraction: float | None = None
    eval_tokens: int = 65_536
    workers: int | None = None
    # machine
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    compile: bool = False
    # stops, saves, reports
    target_val_loss: float | None = None
    patience: int | None = None
    save_every: int | None = None
    keep_checkpoints: int | None = None
    log_interval: int | None = None
    sample_tokens: int = 48
    allow_under_provisioned: str | None = None
    resume: bool = False
    plan: bool = False
    force: bool = False

    def asked(self) -> dict[str, Any]:
        """The fields that differ from their default, as YAML-ready values."""
        default = asdict(TrainConfig())
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value != default[name]
        }


def flag(name: str) -> str:
    """The flag of a field: `num_steps` -> `--num-steps`."""
    return "--" + name.replace("_", "-")


def from_mapping(values: Mapping[str, Any], where: str) -> TrainConfig:
    """A configuration from names and values (`num-steps` and `num_steps` are the same name).

    Raises:
        UsageError: an unknown name (with the nearest known one), or a value of another type.
    """
    hints = get_type_hints(TrainConfig)
    given: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).lstrip("-").replace("-", "_")
        if name not in hints:
            near = get_close_matches(name, hints, n=1)
            raise UsageError(
                where,
                f"unknown key {key!r}",
                f"did you mean {near[0]!r}?" if near else "the keys are the flags of apr pretrain",
            )
        given[name] = _typed(name, value, hints[name], where)
    return TrainConfig(**given)


def _typed(name: str, value: Any, hint: Any, where: str) -> Any:
    if value is None:
        return None
    kinds = get_args(hint) if name != "dataset" and get_args(hint) else (hint,)
    if name == "dataset":
        listed = [value] if isinstance(value, str) else value
        if isinstance(listed, list | tuple) and all(isinstance(v, str) for v in listed):
            return tuple(listed)
        raise UsageError(where, f"{name} is {value!r}", "write a path or a list of paths")
    if bool in kinds and isinstance(value, bool):
        return value
    if isinstance(value, bool):
        raise UsageError(where, f"{name} is {value!r}, which it cannot be")
    if int in kinds and isinstance(value, int):
        return value
    if int in kinds and isinstance(value, float) and value.is_integer():
        return int(value)
    if float in kinds and isinstance(value, int | float):
        return float(value)
    if float in kinds and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if int in kinds and isinstance(value, str) and value.replace("_", "").isdigit():
        return int(value)
    if str in kinds and isinstance(value, str):
        return value
    wanted = " or ".join(k.__name__ for k in kinds if k is not type(None))
    raise UsageError(where, f"{name} is {value!r}", f"write a value of type {wanted}")


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        NotFound: no such file. UsageError: no YAML, or no mapping.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(path, "no such file", "--config takes a YAML file") from None
    except UnicodeDecodeError:
        raise UsageError(path, "is no text file", "--config takes a YAML file") from None
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise UsageError(path, f"is no valid YAML ({line})") from None
    if not isinstance(data, dict):
        raise UsageError(path, "holds no mapping", "write lines such as `lr: 1e-3`")
    return data


def merge(file: Mapping[str, Any], flags: Mapping[str, Any], where: str) -> TrainConfig:
    """The file's values, with the flags that were given on top.

    Raises:
        UsageError: see `from_mapping`.
    """
    from_file = from_mapping(file, where)
    given = from_mapping(flags, "apr pretrain")
    changed = {
        f.name: getattr(given, f.name)
        for f in fields(TrainConfig)
        if f.name in flags and flags[f.name] is not None
    }
    return replace(from_file, **changed)


def check(config: TrainConfig) -> None:
    """Refuse values and combinations that make no sense, before anything is read.

    Raises:
        UsageError: naming the flag, and what to write instead.
    """
    _check_values(config)
    if config.mode == "continue" and config.init is None:
        raise UsageError("--mode continue", "needs a model to go on from", "add --init FILE.apr")
    if config.mode == "from-scratch" and config.init is not None:
        raise UsageError(
            "--mode from-scratch",
            "contradicts --init, which starts from trained weights",
            "leave --init out, or write --mode continue",
        )
    if config.init is not None and config.preset is not None:
        raise UsageError(
            "--preset",
            "contradicts --init, whose file says the architecture",
            "leave one of the two out",
        )
    if config.init is not None and config.tie is not None:
        raise UsageError(
            "--tie", "contradicts --init, whose file says the architecture", "leave it out"
        )
    if config.resume and config.force:
        raise UsageError(
            "--resume",
            "contradicts --force, which starts the run over",
            "write --resume to go on, or --force to begin again",
        )
    if config.resume and config.plan:
        raise UsageError("--plan", "plans a new run", "leave --resume or --plan out")
    if config.run_dir is None and not config.plan:
        raise UsageError("--run-dir", "is missing", "say where the run goes: --run-dir DIR")
    if config.resume:
        return
    if not config.dataset:
        raise UsageError("--dataset", "is missing", "say what to train on: --dataset PATH")
    if config.init is None and config.tokenizer is None:
        raise UsageError(
            "--tokenizer",
            "is missing",
            "train one with: apr tokenize train --dataset PATH --vocab-size N -o DIR",
        )
    if config.family is not None:
        from apr.train.presets import check_family

        check_family(config.family)
    if config.init is None and config.preset is None:
        from apr.train.presets import names

        raise UsageError("--preset", "is missing", f"write one of {', '.join(names())}")


def _check_values(config: TrainConfig) -> None:
    one_of = {
        "mode": MODES,
        "schedule": SCHEDULES,
        "on_exhausted": EXHAUSTED,
        "on_bad_record": BAD_RECORD,
    }
    for name, allowed in one_of.items():
        value = getattr(config, name)
        if value is not None and value not in allowed:
            raise UsageError(flag(name), f"{value!r} is unknown", f"write {' or '.join(allowed)}")
    at_least_one = [
        "num_steps", "max_tokens", "steps_per_epoch", "batch_size", "grad_accum", "threads",
        "patience", "save_every", "log_interval", "eval_tokens", "keep_checkpoints", "workers",
    ]  # fmt: skip
    for name in at_least_one:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(flag(name), f"{value} is too small", "write 1 or more")
    bounds: dict[str, tuple[float, float]] = {
        "lr": (1e-12, 10.0),
        "min_lr_ratio": (0.0, 1.0),
        "decay_fraction": (0.0, 1.0),
        "weight_decay": (0.0, 10.0),
        "beta1": (0.0, 0.99999),
        "beta2": (0.0, 0.9999999),
        "validation_fraction": (0.0, 0.9),
        "seq_length": (16, 1_048_576),
        "warmup_steps": (0, 10**9),
        "sample_tokens": (0, 4096),
        "seed": (0, 2**63 - 1),
    }
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise UsageError(
                flag(name), f"{value} is outside {low:g} to {high:g}", "choose a value within"
            )
    if not config.grad_clip >= 0.0:
        raise UsageError(
            "--grad-clip", f"{config.grad_clip} is negative", "write 0 for no clipping"
        )
    reason = config.allow_under_provisioned
    if reason is not None and not reason.strip():
        raise UsageError(
            "--allow-under-provisioned",
            "the reason is empty",
            'write why, e.g. --allow-under-provisioned "smoke test"',
        )
