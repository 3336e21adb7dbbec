"""From an opened model to the engine that computes it: on the device's own kernels, or by PyTorch.

What was asked for by name runs, or is an error that names it; without a name the device's own
kernels run where they compute the model, and the plan says why where they do not.
"""

from __future__ import annotations

from pathlib import Path

import torch

from apr import receipt
from apr.device import pick_device, require_memory
from apr.engine.engine import Engine
from apr.engine.plan import Plan, choose_dtype, stored_types
from apr.engine.weights import build, needed_bytes
from apr.errors import FeatureUnavailable, StrPath, UsageError
from apr.formats.opened import OpenedModel

_MOST_THREADS = 1024


def check_kernels(
    kernels: str | None, place: torch.device, dtype: str | None, cache: str | None
) -> str | None:
    """None if the device's own kernels are to be tried (`apr.native`'s on a CPU, `apr.cuda`'s on
    CUDA); else why torch computes ("" where it was asked for).

    Raises:
        UsageError: what was asked for does not go together.
        FeatureUnavailable: the kernels that were asked for cannot run here.
    """
    if dtype == "auto":
        dtype = None
    if cache is not None and cache not in ("float32", "float16", "int8"):
        raise UsageError("cache", f"{cache!r} is unknown", "there are float32, float16 and int8")
    own = place.type in ("cpu", "cuda")
    if kernels == "torch" or (kernels is None and (not own or dtype is not None)):
        if cache is not None:
            raise UsageError(
                "cache", f"{cache} was asked for, torch keeps the cache in the model's dtype",
                "leave it out, or use the CPU's or CUDA's kernels",
            )  # fmt: skip
        return ""
    if kernels is not None and (kernels == "cuda") != (place.type == "cuda"):
        wanted = "a CUDA device" if kernels == "cuda" else "the CPU"
        raise UsageError("kernels", f"{kernels} are for {wanted}, the device is {place}")
    if dtype is not None:
        raise UsageError(
            "dtype", f"{dtype} was asked for, the {'CUDA' if kernels == 'cuda' else 'CPU'} kernels "
            "compute on the stored types", "leave --dtype out, or add --kernels torch",
        )  # fmt: skip
    if kernels == "cuda":
        from apr import cuda

        missing = cuda.unavailable()
        if missing:
            raise FeatureUnavailable("cuda kernels", missing, "or write --kernels torch")
    elif kernels is not None:
        from apr.native import best_set

        best_set(None if kernels == "native" else kernels)
    return None


def load(
    model: OpenedModel | StrPath,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    kernels: str | None = None,
    cache: str | None = None,
) -> Engine:
    """Load an opened model, or the file at a path, for inference.

    Args:
        model: the model, or a path for `apr.open_model`.
        device: `cpu`, `cuda`, `cuda:N`; None takes CUDA where it works.
        dtype: `float32`, `bfloat16`, `float16`; None or `auto` follows `apr.engine.plan`'s rule.
        threads: CPU threads for all of torch in this process; None leaves the setting.
        kernels: `torch`; `native` for the best set of CPU kernels, or a set by its name (`amx`,
            `avx512`, `avx2`, `portable`); `cuda` for those of a CUDA device. None, where no dtype
            is asked for: on the CPU its kernels, and torch where they were not built; on CUDA its
            kernels where they compute the model, else torch. The plan says which.
        cache: `float32`, `float16` or (CPU kernels) `int8` for keys and values, not with torch;
            None: as the weights are stored, but no smaller than 16 bits.

    Raises:
        UsageError, FeatureUnavailable: see `pick_device`, `pick_dtype`, `load_native`, `load_cuda`;
            a type that the CPU kernels do not have is an error, PyTorch decodes it where it is
            asked for by name.
        ModelLoadError: the tensors are not those that the architecture needs.
        InferenceError: the weights do not fit.
        NotFound, InvalidFormat: the path cannot be opened.
    """
    if isinstance(model, OpenedModel):
        opened = model
    else:
        from apr.formats import open_model

        opened = open_model(Path(model))
    if threads is not None:
        if threads < 1:
            raise UsageError("--threads", f"{threads} is less than 1", "write 1 or more")
        if threads > _MOST_THREADS:
            raise UsageError("--threads", f"{threads} is more than {_MOST_THREADS}", "write fewer")
        torch.set_num_threads(threads)
    if dtype == "auto":
        dtype = None
    place = pick_device(device)
    opened.check_tensors()
    refusal = check_kernels(kernels, place, dtype, cache)
    if refusal is None:
        own, refusal = _on_own_kernels(opened, place, threads, kernels, cache)
        if own is not None:
            return own
        if cache is not None:
            raise FeatureUnavailable(
                "cache", f"{cache} was asked for, only the device's own kernels have it: {refusal}"
            )
    chosen, reason = choose_dtype(opened.tensors.values(), place, dtype)
    reason = "; ".join(part for part in (reason, refusal) if part)
    require_memory(
        opened.path,
        f"its weights in {str(chosen).removeprefix('torch.')} need",
        needed_bytes(opened, chosen),
        "use a smaller --dtype or another device, or free memory",
        place,
    )
    decoder, mapped = build(opened, place, chosen)
    name = str(chosen).removeprefix("torch.")
    plan = Plan(
        engine="torch " + torch.__version__,
        kernels="torch linear + scaled_dot_product_attention",
        device=str(decoder.lm_head.weight.device),
        hardware=(
            torch.cuda.get_device_name(place) if place.type == "cuda" else receipt.cpu_name()
        ),
        stored=stored_types(opened.tensors.values()),
        weights=name,
        activations=name,
        cache=name,
        threads=torch.get_num_threads(),
        weight_bytes=sum(p.numel() * p.element_size() for p in decoder.parameters()),
        mapped_bytes=mapped,
        reason=reason,
    )
    return Engine(opened, decoder, plan)


def _on_own_kernels(
    model: OpenedModel, place: torch.device, threads: int | None, kernels: str | None,
    cache: str | None,
) -> tuple[Engine | None, str]:  # fmt: skip
    """The engine on the device's own kernels; or None and why, where none were asked for."""
    if place.type == "cuda":
        from apr.engine import cuda

        refusal = cuda.why_not(model, place) if kernels is None else ""
        return (None, refusal) if refusal else (cuda.load_cuda(model, place, cache), "")
    from apr.engine import native

    refusal = native.missing() if kernels is None else ""
    if refusal:
        return None, refusal
    name = None if kernels in (None, "native") else kernels
    return native.load_native(model, name, threads, cache), ""
