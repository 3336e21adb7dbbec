"""What other implementations' readers see in a written file: gguf's own, and safetensors' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apr.export.report import Outcome, failed, passed, skipped
from apr.formats.gguf_reader import GgufFile
from apr.formats.hf_reader import read_weights
from apr.formats.safetensors_file import SafetensorsFile
from apr.formats.streaming import Sources

_STEP = 16 << 20  # bytes of a tensor that are compared at once


def gguf(path: Path) -> Outcome:
    """The gguf package's reader: the same keys and values, every tensor at the same bytes."""
    try:
        from gguf import GGUFReader
    except ImportError:
        return skipped("the package gguf is not installed")
    theirs, ours = GGUFReader(path), GgufFile.open(path)
    # Both map the same file: the same place and length are the same bytes.
    seen = {
        tensor.name: (
            tensor.tensor_type.name,
            tuple(int(n) for n in reversed(tensor.shape)),
            int(tensor.data_offset),
            int(tensor.n_bytes),
        )
        for tensor in theirs.tensors
    }
    mine = {
        name: (tensor.dtype.name, tensor.shape, ours.offsets[name], tensor.nbytes)
        for name, tensor in ours.tensors.items()
    }
    if seen != mine:
        names = [n for n in seen.keys() | mine.keys() if seen.get(n) != mine.get(n)]
        return failed(f"gguf reads {sorted(names)[:5]} differently")
    keys = [k for k in theirs.fields if not k.startswith("GGUF.")]
    if keys != list(ours.fields):
        return failed("gguf reads other keys")
    for key in keys:
        theirs_field, our_field = theirs.fields[key], ours.fields.field(key)
        same = (
            len(theirs_field.data) == our_field.count
            if our_field.is_array
            else theirs_field.contents() == ours.fields[key]
        )
        if not same:
            return failed(f"gguf reads {key} differently")
    return passed(f"gguf's reader: {len(seen)} tensors, {len(keys)} keys as we read them")


def safetensors(folder: Path) -> Outcome:
    """The safetensors package's own reader: every tensor of every file, byte for byte."""
    try:
        from safetensors import safe_open
    except ImportError:
        return skipped("the package safetensors is not installed")
    import torch

    count = 0
    for path in read_weights(folder).files:
        ours = SafetensorsFile.open(path)
        for name, mine in ours.tensors.items():
            with safe_open(path, framework="pt") as file:
                if set(file.keys()) != set(ours.tensors):
                    return failed(f"safetensors reads other names from {path.name}")
                shape = tuple(file.get_slice(name).get_shape())
            if shape != mine.shape:
                return failed(f"safetensors reads {name} as {list(shape)}")
            sources = Sources()
            raw = sources.watch(mine).raw()
            rows = mine.shape[0] if mine.shape else 1
            per_row = raw.size // max(rows, 1)
            step = max(1, _STEP // max(per_row, 1))
            for start in range(0, rows, step):
                # Opened anew each time: the reader maps the file and never gives pages back.
                with safe_open(path, framework="pt") as file:
                    part = file.get_slice(name)
                    tensor = part[start : start + step] if shape else file.get_tensor(name)
                    theirs = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
                    here = raw[start * per_row : (start + step) * per_row]
                    same = np.array_equal(theirs, here)
                del theirs, tensor, part
                sources.release()
                if not same:
                    return failed(f"safetensors reads other bytes for {name}")
            sources.release(forget=True)
            count += 1
    return passed(f"safetensors' reader: {count} tensors, byte for byte")
