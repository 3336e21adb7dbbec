"""The resume state: everything a run needs to go on as if it had never stopped. No pickle.

`RUN/state/step-NNNNNNNN/` holds `tensors.safetensors` (weights, both moments and the step of AdamW,
random number states, the losses of the best evaluation) and `state.json` (position in the data,
accumulated figures, settings, and size and checksum of the tensors). It is written under a
temporary name, flushed, and published by one rename; the last two are kept. A damaged newest one is
passed over for the one before, and that is said.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apr.atomic import atomic_directory
from apr.errors import CorruptFile, NotFound

KEEP = 2
FORMAT = 1
_PREFIX = "step-"
_KINDS = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.uint8: "U8",
}


@dataclass(frozen=True)
class State:
    """A state that was read and checked: `values` is `state.json`, `tensors` are on the CPU."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def write_state(
    folder: Path, step: int, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> Path:
    """Write the state of `step`, publish it, and drop all but the newest two.

    Raises:
        StorageError: it cannot be written; the states before it are untouched.
    """
    target = folder / f"{_PREFIX}{step:08d}"
    with atomic_directory(target, force=True) as temporary:
        size, checksum = _write_tensors(temporary / "tensors.safetensors", tensors)
        document = {
            "format": FORMAT,
            "step": step,
            "tensors": {"bytes": size, "crc32": checksum},
            **values,
        }
        text = json.dumps(document, indent=1, allow_nan=False)
        (temporary / "state.json").write_text(text, encoding="utf-8")
    for old in _published(folder)[KEEP:]:
        discard(old)
    return target


def discard(path: Path) -> None:
    """Remove a published folder so that no half of it is ever seen under its name."""
    hidden = path.parent / f".{path.name}.old-{os.getpid()}"
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def read_newest(folder: Path, warn: Callable[[str], None]) -> State:
    """The newest state that is whole; `warn` is told of each damaged one that was passed over.

    Raises:
        NotFound: there is no state at all.
        CorruptFile: there are states, and all are damaged.
    """
    found = _published(folder)
    if not found:
        raise NotFound(
            folder, "holds no saved state", "start the run without --resume (add --force to redo)"
        )
    problem: CorruptFile | None = None
    for path in found:
        try:
            state = read_state(path)
        except CorruptFile as error:
            problem = problem or error
            warn(f"DAMAGED state passed over: {error.line()}")
            continue
        if problem is not None:
            warn(f"going on from the state before it, step {state.values['step']}")
        return state
    assert problem is not None
    raise problem


def read_state(path: Path) -> State:
    """One state, every byte checked.

    Raises:
        CorruptFile: a file is missing, cut short or changed.
    """
    try:
        values = json.loads((path / "state.json").read_text(encoding="utf-8"))
        expected = values["tensors"]
        data = (path / "tensors.safetensors").read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFile(path, f"the state cannot be read ({type(error).__name__})") from None
    if values.get("format") != FORMAT:
        raise CorruptFile(path, f"state format {values.get('format')}, this apr reads {FORMAT}")
    if len(data) != expected["bytes"]:
        raise CorruptFile(
            path / "tensors.safetensors",
            f"has {len(data)} bytes, {expected['bytes']} were written",
        )
    if zlib.crc32(data) != expected["crc32"]:
        raise CorruptFile(path / "tensors.safetensors", "its checksum does not hold")
    from safetensors.torch import load

    return State(path, values, load(data))


def _published(folder: Path) -> list[Path]:
    """Published states, newest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.name.startswith(_PREFIX) and p.is_dir()]
    return sorted(found, reverse=True)


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """A safetensors file, one tensor at a time in memory; its size and CRC-32.

    The library's own writer holds a second copy of all of it.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _KINDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    total, checksum = 0, 0
    with path.open("wb") as file:
        for part in _parts(text, tensors.values()):
            file.write(part)
            total += len(part)
            checksum = zlib.crc32(part, checksum)
    return total, checksum


def _parts(header: bytes, tensors: Iterable[torch.Tensor]) -> Iterable[bytes | memoryview]:
    yield struct.pack("<Q", len(header))
    yield header
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data


def optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """AdamW's state under `optimizer.<what>.<parameter>`; empty before the first step."""
    out = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            out[f"optimizer.{key}.{name}"] = value
    return out


def restore_optimizer(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    where: Path,
) -> None:
    """Put AdamW's state back.

    Raises:
        CorruptFile: a parameter has no state, though others do.
    """
    wanted = ("step", "exp_avg", "exp_avg_sq")
    if not any(name.startswith("optimizer.") for name in tensors):
        return  # saved before the first step
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue  # a correction bias: the optimizer never sees it
        missing = [key for key in wanted if f"optimizer.{key}.{name}" not in tensors]
        if missing:
            raise CorruptFile(where, f"optimizer state of {name} is missing: {', '.join(missing)}")
        optimizer.state[parameter] = {
            key: tensors[f"optimizer.{key}.{name}"].to(parameter.device).clone() for key in wanted
        }


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's global generators that a run may draw from."""
    out = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        out["rng.cuda"] = torch.cuda.get_rng_state(device)
    return out


def restore_random_states(tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put the generators back."""
    torch.set_rng_state(tensors["rng.cpu"].clone())
    if "rng.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng.cuda"].clone(), device)
