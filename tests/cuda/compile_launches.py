"""Compile what the CUDA engine launches, for a GPU that need not be there.

Run as a script, without TRITON_INTERPRET: engines of a few shapes walk through prompts and steps
on CPU tensors, every launch is noted instead of done, and each distinct one is compiled to machine
code of the given compute capability. Arguments: that, kernels, SHAPE-TYPE of each model. Prints
JSON: kernel, options, shared memory, size.
"""

import json
import os
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import bench_cuda

from apr.engine.cuda import CudaEngine

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64",
         torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8"}  # fmt: skip
OPTIONS = ("num_warps", "num_stages")
found = {}


def described(value):
    """Type and divisibility of an argument, or the constant that it is compiled as."""
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype], value.data_ptr() % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    if value == 1:
        return "constexpr", 1
    return "i32", value % 16 == 0


def note(kernel, arguments, keywords):
    """What would be launched: its signature, once."""
    options = {k: v for k, v in keywords.items() if k in OPTIONS}
    names = kernel.arg_names
    given = {**dict(zip(names, arguments, strict=False)), **keywords}
    first_constant = len(arguments)
    signature, constants, aligned = {}, {}, []
    for number, name in enumerate(names):
        if number >= first_constant:
            signature[name], constants[(number,)] = "constexpr", given[name]
            continue
        kind, extra = described(given[name])
        signature[name] = kind
        if kind == "constexpr":
            constants[(number,)] = extra
        elif extra:
            aligned.append(number)
    key = (kernel.fn.__name__, str(signature), str(constants), tuple(aligned), str(options))
    found.setdefault(key, (kernel, signature, constants, aligned, options))


class Noted:
    def __init__(self, kernel):
        self.kernel = kernel

    def __call__(self, *arguments, **keywords):
        note(self.kernel, arguments, keywords)


JITFunction.__getitem__ = lambda self, grid: Noted(self)

SHAPES = {
    "a": {"hidden_size": 896, "num_layers": 1, "num_heads": 14, "num_kv_heads": 2, "head_dim": 64,
          "intermediate_size": 4864, "vocab_size": 640, "max_position_embeddings": 4096},
    "b": {"hidden_size": 1024, "num_layers": 1, "num_heads": 8, "num_kv_heads": 2,
          "head_dim": 128, "intermediate_size": 5120, "vocab_size": 1024,
          "max_position_embeddings": 4096, "sliding_window": 512},
}  # fmt: skip
bench_cuda.SHAPES.update(SHAPES)


def main():
    wanted = sys.argv[2].split(",")
    for case in sys.argv[3:]:
        model = bench_cuda.random_model(*case.split("-"))
        cache = "float32" if case.endswith("F32") else "float16"
        engine = CudaEngine(model, torch.device("cpu"), cache, fill=bench_cuda.random_planes)
        sessions = [engine.session() for _ in range(3)]
        for session in sessions:
            session.prefill([1] * 1100)
        sessions[0].prefill([1] * 20)  # a prompt that goes on
        engine.decode_batch(sessions[:1], [1])
        engine.decode_batch(sessions, [1] * 3)
    rows = []
    for (name, *_), (kernel, signature, constants, aligned, options) in found.items():
        if name not in wanted:
            continue
        attributes = {(number,): [["tt.divisibility", 16]] for number in aligned}
        source = ASTSource(kernel, signature, constants, attributes)
        target = GPUTarget("cuda", int(sys.argv[1]), 32)
        compiled = triton.compile(source, target=target, options=options)
        rows.append(
            {
                "kernel": name,
                "options": {str(k): v for k, v in constants.items()},
                "shared": compiled.metadata.shared,
                "bytes": len(compiled.asm["cubin"]),
            }
        )
    print(json.dumps(rows))


main()
