"""What runs: the engine's plan, decided once at loading, printed and put into receipts.

The dtype rule: what the file stores is what is computed with, unless that type has no arithmetic
here; then it is widened to float32, which holds every stored value exactly, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from apr.device import pick_dtype
from apr.tensors import Tensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Plan:
    """How a loaded model computes. Bytes are bytes in memory, not in the file.

    `stored` lists the file's types with their bytes; `mapped_bytes` of the `weight_bytes` are the
    file's own pages (no copy was made).
    """

    engine: str
    kernels: str
    device: str
    hardware: str
    stored: dict[str, int]
    weights: str
    activations: str
    cache: str
    threads: int
    weight_bytes: int
    mapped_bytes: int
    reason: str

    def __str__(self) -> str:
        stored = " + ".join(self.stored)
        text = (
            f"engine {self.engine} ({self.kernels}) on {self.device} [{self.hardware}], "
            f"weights {self.weights} (stored {stored}), activations {self.activations}, "
            f"cache {self.cache}, {self.threads} threads"
        )
        return f"{text}; {self.reason}" if self.reason else text

    @property
    def arithmetic(self) -> str:
        """The coarsest that values are rounded to on their way: `float32`, `float16`, `bfloat16` or
        `int8`. What two ways of asking may differ by follows from it.
        """
        kinds = f"{self.weights} {self.activations} {self.cache}"
        for kind in ("int8", "bfloat16", "float16"):
            if kind in kinds:
                return kind
        return "float32"

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready values."""
        return asdict(self)


def stored_types(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Storage types of a model's tensors with their bytes, the largest share first."""
    out: dict[str, int] = {}
    for tensor in tensors:
        out[tensor.dtype.name] = out.get(tensor.dtype.name, 0) + tensor.nbytes
    return dict(sorted(out.items(), key=lambda item: -item[1]))


def choose_dtype(
    tensors: Iterable[Tensor], device: torch.device, asked: str | None
) -> tuple[torch.dtype, str]:
    """The dtype to compute in, and why (empty when it is simply the stored one).

    The stored type is that of the matrices, by bytes: GGUF keeps norms in F32 beside BF16 weights.

    Raises:
        UsageError: `asked` is no dtype.
    """
    import torch

    tensors = list(tensors)
    main = next(iter(stored_types(tensors)))
    default, reason = torch.float32, ""
    if any(t.dtype.is_block for t in tensors):
        reason = "block types are decoded to float32"
    elif main in ("BF16", "F16"):
        default = {"BF16": torch.bfloat16, "F16": torch.float16}[main]
        if device.type == "cpu" and not _computes_on_cpu(default):
            reason = f"{main} has no fast arithmetic on this CPU, widened to float32 (exact)"
            default = torch.float32
    elif main != "F32":
        reason = f"{main} is computed in float32"
    chosen = pick_dtype(asked, default)
    if chosen != default:
        name = str(chosen).removeprefix("torch.")
        reason = f"{name} was asked for, the file stores {main}"
    return chosen, reason


def _computes_on_cpu(dtype: torch.dtype) -> bool:
    import torch

    if dtype != torch.bfloat16:
        return False  # float16 falls back to scalar loops on most CPUs
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False
