"""How a canonical tensor is made of the tensors of another world, and those of it.

A family's contract names a recipe for each tensor that is not simply the same under another name.
Recipes that move whole rows or whole matrices work on stored bytes (`rows.py`); the others need
elements, and decode a quantized source to float32 first.
All of them are exact, but for the rounding of `plus_one`, whose losses the file states. Sources:
transformers' model files, llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from apr.architecture import Architecture
from apr.dtypes import DTYPES, DType
from apr.families import Place, TensorSpec
from apr.formats import mxfp4
from apr.formats.rows import element, permuted, stacked
from apr.mapped import release
from apr.quant import recoded
from apr.tensors import Bytes, Tensor

World = Literal["hf", "gguf"]
Choose = Callable[[Tensor, TensorSpec], DType]
# The true values of a tensor there that could not hold them, by its name; None where it could.
Exact = Callable[[str], Sequence[float] | None]
# Recipes that keep rows whole: they work on the bytes of every type with rows.
_WHOLE_ROWS = frozenset({"plain", "squeezed", "heads", "stack"})
# Recipes whose tensor a Hugging Face folder may hold as MXFP4 blocks and their scales instead.
_AS_BLOCKS = frozenset({"interleaved", "stack_transpose"})


def read(
    spec: TensorSpec,
    place: Place,
    parts: Sequence[Tensor],
    architecture: Architecture,
    exact: Exact = lambda name: None,
) -> Tensor:
    """The canonical tensor, lazily, from the tensors `place.names` of another world.

    A tensor there of an unfit shape is handed on as it is, for `check_tensors` to report. `exact`
    gives what `lost_by_adding` found when the file was written.

    Raises:
        InvalidFormat: rows that cannot be reordered as bytes.
    """
    first = replace(parts[0], name=spec.name)
    recipe = place.recipe
    if recipe == "plain":
        return first
    if recipe == "squeezed":  # one row; there, a vector or a matrix of one row
        one_row = first.shape in (spec.shape, spec.shape[1:])
        return replace(first, shape=spec.shape) if one_row else first
    if recipe == "heads":
        fits = first.shape == spec.shape
        return permuted(first, place.count, place.width, to_gguf=False) if fits else first
    if recipe == "stack":
        assert place.index is not None
        fits = first.shape == (place.fellows, *spec.shape)
        return element(first, place.index) if fits else first
    if recipe == "transpose":
        return _computed(spec.name, spec.shape, parts, lambda a: a[0].T, first.shape[::-1])
    if recipe == "plus_one":
        return _minus_one(first, exact(place.names[0])) if first.shape == spec.shape else first
    if recipe in _AS_BLOCKS:
        return _of_experts(spec, place, parts)
    assert recipe == "kv_b"

    def joined(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        k, v = arrays  # [heads, rank, nope], [heads, v, rank]
        out = np.concatenate((k.transpose(0, 2, 1), v), axis=1)
        return out.reshape(-1, out.shape[-1])

    shapes = _kv_b_shapes(architecture)
    if len(parts) != 2 or tuple(p.shape for p in parts) != shapes:
        return first
    return _computed(spec.name, spec.shape, parts, joined, spec.shape)


def _of_experts(spec: TensorSpec, place: Place, parts: Sequence[Tensor]) -> Tensor:
    """An expert's tensor from one that holds all of them `[experts, in, out]`, two kinds in turns
    along `out` or one alone; or from its MXFP4 blocks.
    """
    index, first = place.index, replace(parts[0], name=spec.name)
    assert index is not None
    part = place.count if place.recipe == "interleaved" else None
    if first.shape[0] != place.fellows:
        return first  # for `check_tensors` to report
    if len(parts) == 2:
        return mxfp4.expert(spec.name, spec.shape, parts[0], parts[1], index, part)
    step = 1 if part is None else 2
    whole = (place.fellows, *spec.shape[1:], spec.shape[0] * step)
    if first.shape != whole:
        return first
    turned = lambda a: a[0][index].T[part or 0 :: step]  # noqa: E731
    return _computed(spec.name, spec.shape, parts, turned, spec.shape)


def write(
    world: World,
    specs: Sequence[TensorSpec],
    tensors: dict[str, Tensor],
    architecture: Architecture,
    choose: Choose,
) -> list[Tensor]:
    """All tensors of another world, lazily, from the canonical ones.

    Args:
        world: whose.
        specs: what there is, in order.
        tensors: the canonical ones, by name.
        architecture: of the model.
        choose: the type in which a tensor is to stand there.
    """
    groups: dict[tuple[str, ...], list[TensorSpec]] = {}
    for spec in specs:
        groups.setdefault(place_of(spec, world).names, []).append(spec)
    out: list[Tensor] = []
    for names, members in groups.items():
        recipe = place_of(members[0], world).recipe
        if recipe == "interleaved":  # all gates first, then all ups
            members.sort(key=lambda m: (place_of(m, world).count, place_of(m, world).index or 0))
        if recipe in _WHOLE_ROWS:
            made = _whole_rows(world, members, tensors, choose)
            out.append(replace(made, name=names[0]))
            continue
        parts = _computed_parts(recipe, [tensors[m.name] for m in members], architecture)
        out += [
            replace(recoded(part, choose(part, members[0])), name=name)
            for name, part in zip(names, parts, strict=True)
        ]
    return out


def place_of(spec: TensorSpec, world: World) -> Place:
    """Where a canonical tensor stands in a world."""
    return spec.hf if world == "hf" else spec.gguf


def canonical(
    world: World,
    specs: Iterable[TensorSpec],
    tensors: dict[str, Tensor],
    architecture: Architecture,
    exact: Exact = lambda name: None,
) -> dict[str, Tensor]:
    """The tensors of another world under canonical names; unknown ones keep their own name, so
    that `check_tensors` reports them, and a canonical one whose parts are missing is missing.
    """
    out: dict[str, Tensor] = {}
    used: set[str] = set()
    for spec in specs:
        place = place_of(spec, world)
        names = place.names
        if world == "hf" and place.recipe in _AS_BLOCKS and names[0] not in tensors:
            names = mxfp4.names(names[0])
        if all(name in tensors for name in names):
            parts = [tensors[name] for name in names]
            if _is_canonical_already(spec, place, parts[0]):
                continue  # not what stands there in that world: both names are reported
            used.update(names)
            out[spec.name] = read(spec, place, parts, architecture, exact)
    out.update((name, tensor) for name, tensor in tensors.items() if name not in used)
    return out


def _is_canonical_already(spec: TensorSpec, place: Place, stored: Tensor) -> bool:
    """Whether a tensor that should have another shape there has the canonical one: handed on as it
    is, it would pass for the tensor that the recipe makes.
    """
    if place.recipe == "transpose":
        return stored.shape == spec.shape != spec.shape[::-1]
    return place.recipe in ("stack", "kv_b", *_AS_BLOCKS) and stored.shape == spec.shape


def lost_by_adding(
    specs: Iterable[TensorSpec], tensors: Mapping[str, Tensor]
) -> dict[str, list[float]]:
    """The values of norms that 1 + weight cannot give back, by GGUF tensor name.

    The sum of two float32 is rounded: a weight of 1e-9 comes back as 0.
    """
    out: dict[str, list[float]] = {}
    for spec in specs:
        if spec.gguf.recipe != "plus_one":
            continue
        weight = tensors[spec.name].float32()
        back = (weight + np.float32(1)) - np.float32(1)
        if not np.array_equal(back.view(np.uint32), weight.view(np.uint32)):
            out[spec.gguf.names[0]] = weight.tolist()
    return out


def _minus_one(stored: Tensor, stated: Sequence[float] | None) -> Tensor:
    """The weight of which 1 + weight is stored, in float32: the true values where the file states
    them and they still give what is stored, else the difference.
    """

    def load() -> Bytes:
        total = stored.float32()
        if stated is not None and len(stated) == total.size:
            true = np.array(stated, dtype=np.float32).reshape(total.shape)
            if np.array_equal(true + np.float32(1), total):
                return true.reshape(-1).view(np.uint8)
        out: Bytes = (total - np.float32(1)).reshape(-1).view(np.uint8)
        return out

    return replace(stored, dtype=DTYPES["F32"], load=load, stream=None)


def _whole_rows(
    world: World, members: Sequence[TensorSpec], tensors: dict[str, Tensor], choose: Choose
) -> Tensor:
    first = place_of(members[0], world)
    source = tensors[members[0].name]
    if first.recipe == "stack":
        return stacked([recoded(tensors[m.name], choose(tensors[m.name], m)) for m in members])
    dtype = choose(source, members[0])
    if first.recipe == "plain":
        return recoded(source, dtype)
    if first.recipe == "squeezed":
        return replace(recoded(source, dtype), shape=source.shape[1:])
    if source.dtype.header_bytes or source.dtype.name == "APR_Q4":  # no rows of their own
        return permuted(recoded(source, dtype), first.count, first.width, to_gguf=True)
    return recoded(permuted(source, first.count, first.width, to_gguf=True), dtype)


def _elements(tensor: Tensor) -> npt.NDArray[Any]:
    """Elements in their stored type (BF16 as bit patterns); blocks decoded to float32."""
    return tensor.float32() if tensor.dtype.is_block else tensor.numpy()


def _computed(
    name: str,
    shape: tuple[int, ...],
    parts: Sequence[Tensor],
    compute: Callable[[list[npt.NDArray[Any]]], npt.NDArray[Any]],
    made: tuple[int, ...],
) -> Tensor:
    """A tensor computed of whole others when it is loaded; `made` is the shape that comes out."""
    if made != shape:
        return replace(parts[0], name=name)  # for `check_tensors` to report
    block = any(part.dtype.is_block for part in parts)
    mixed = len({part.dtype for part in parts}) > 1
    dtype = DTYPES["F32"] if block or mixed else parts[0].dtype

    def load() -> Bytes:
        arrays = [part.float32() if mixed else _elements(part) for part in parts]
        out = np.ascontiguousarray(compute(arrays))
        for part in parts:
            release(part.raw())
        return out.reshape(-1).view(np.uint8)

    return Tensor(name, dtype, shape, load)


def _kv_b_shapes(architecture: Architecture) -> tuple[tuple[int, ...], tuple[int, ...]]:
    heads, rank = architecture.num_heads, architecture.kv_lora_rank or 0
    nope, v = architecture.qk_nope_head_dim or 0, architecture.v_head_dim or 0
    return (heads, rank, nope), (heads, v, rank)


def _computed_parts(
    recipe: str, members: Sequence[Tensor], architecture: Architecture
) -> list[Tensor]:
    """The tensors of the other world, in the source's type, for recipes that need elements."""
    first = members[0]
    if recipe == "transpose":
        shape = first.shape[::-1]
        return [_computed(first.name, shape, [first], lambda a: a[0].T, shape)]
    if recipe == "plus_one":
        wide = recoded(first, DTYPES["F32"])
        add = lambda a: a[0] + np.float32(1)  # noqa: E731
        return [_computed(first.name, first.shape, [wide], add, first.shape)]
    if recipe == "kv_b":
        heads = architecture.num_heads
        nope = architecture.qk_nope_head_dim or 0
        k_shape, v_shape = _kv_b_shapes(architecture)

        def of_heads(a: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
            return a[0].reshape(heads, -1, a[0].shape[-1])

        return [
            _computed(
                first.name, k_shape, [first],
                lambda a: of_heads(a)[:, :nope].transpose(0, 2, 1), k_shape,
            ),
            _computed(first.name, v_shape, [first], lambda a: of_heads(a)[:, nope:], v_shape),
        ]  # fmt: skip
    if recipe == "stack_transpose":
        return [stacked(_each(members, 1))]
    assert recipe == "interleaved"
    half = len(members) // 2
    pairs = [part for pair in zip(members[:half], members[half:], strict=True) for part in pair]
    return [stacked(_each(pairs, 2))]


def _each(members: Sequence[Tensor], together: int) -> list[Tensor]:
    """Each run of `together` matrices `[out, in]` as one `[in, out * together]`, outs in turns."""
    out = []
    for start in range(0, len(members), together):
        parts = list(members[start : start + together])
        rows = parts[0].shape[0] * together
        shape = (*parts[0].shape[1:], rows)

        def woven(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
            both = np.stack(arrays, axis=1)  # [out, together, in]
            return both.reshape(-1, *both.shape[2:]).T

        out.append(_computed(parts[0].name, shape, parts, woven, shape))
    return out
