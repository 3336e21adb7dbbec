"""What the engine launches is compiled to machine code of a Hopper GPU, which need not be there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

SCRIPT = Path(__file__).with_name("compile_launches.py")
ROOT = SCRIPT.parents[2]
KERNELS = {"matvec_plain", "unpack_plain", "norm", "store", "gated", "attend", "combine"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "kernels"),
    [
        (["a-BF16", "b-F32"], KERNELS),
        (["a-Q4_0", "b-Q4_K"], {"matvec_blocks", "unpack_blocks"}),
        (["a-Q8_0", "b-Q6_K"], {"matvec_blocks", "unpack_blocks"}),
        (["a-MXFP4", "b-TQ2_0"], {"matvec_blocks", "unpack_blocks"}),
        (["a-Q5_0", "b-Q5_1", "b-Q5_K", "a-Q4_1"], {"matvec_blocks", "unpack_blocks"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_launch_compiles_and_fits_into_shared_memory(cases, kernels, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "90", ",".join(sorted(kernels)), *cases],
        capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    rows = json.loads(run.stdout.splitlines()[-1])
    assert kernels == {row["kernel"] for row in rows}
    assert all(row["bytes"] > 0 for row in rows)
    assert max(row["shared"] for row in rows) <= 100 << 10  # smaller GPUs than Hopper have it too
