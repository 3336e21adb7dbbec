#!/usr/bin/env python3
"""Set up `.venv` in this checkout and run something in it. Needs only git and python3 (3.11+).

    python3 scripts/dev.py demo [apr demo's flags]   the whole pipeline on an embedded corpus
    python3 scripts/dev.py test [pytest's flags]     the fast tests
    python3 scripts/dev.py test --all                every test; compiles llama.cpp once (minutes)
    python3 scripts/dev.py check                     ruff and mypy, as CI runs them
    python3 scripts/dev.py setup                     the set-up alone
    python3 scripts/dev.py native [cmake's flags]    the CPU kernels alone, straight into apr/native

torch: the one already in the environment is kept. Otherwise, on Linux without a GPU, the pinned
CPU build is installed, because a plain `pip install torch` there fetches gigabytes of CUDA.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
TORCH = "2.13.0"  # the CPU build that CI tests with


def say(text: str) -> None:
    print(f"[dev] {text}", file=sys.stderr, flush=True)


def stop(text: str) -> None:
    say(f"error: {text}")
    raise SystemExit(1)


def run(*command: str | Path, **env: str) -> int:
    return subprocess.run([str(c) for c in command], cwd=ROOT, env={**os.environ, **env}).returncode


def pip(*args: str, **env: str) -> bool:
    return run(BIN / "python", "-m", "pip", "--disable-pip-version-check", *args, **env) == 0


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def make_venv() -> None:
    if (BIN / "python").exists():
        return
    say(f"making {VENV.name} with python {platform.python_version()}")
    if run(sys.executable, "-m", "venv", VENV) != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        stop("python cannot make virtual environments; on Debian: apt install python3-venv")


def install_torch() -> None:
    has_torch = [BIN / "python", "-c", "import torch"]
    if subprocess.run(has_torch, capture_output=True).returncode == 0:
        return
    if platform.system() != "Linux" or has_gpu():
        say("installing torch (the build that pip chooses for this machine)")
        if not pip("install", "-q", "torch>=2.6"):
            stop("torch could not be installed; see the lines above")
        return
    say(f"no GPU here: installing the CPU build of torch {TORCH}")
    # Where pip's own sources have the CPU build, that is all; else uv knows where PyTorch keeps it.
    if (
        subprocess.run(
            [BIN / "python", "-m", "pip", "install", "-q", f"torch=={TORCH}+cpu"],
            cwd=ROOT,
            capture_output=True,
        ).returncode
        == 0
    ):
        return
    if (
        pip("install", "-q", "uv")
        and run(
            BIN / "python",
            "-m",
            "uv",
            "pip",
            "install",
            "-q",
            "--python",
            BIN / "python",
            "--torch-backend",
            "cpu",
            f"torch=={TORCH}",
        )
        == 0
    ):
        return
    stop(
        "the CPU build of torch could not be installed; install it into .venv as pytorch.org's "
        "'Get Started' says for pip and CPU, then run this again"
    )


def state(extras: str) -> str:
    """A hash of what an installation is made of: pyproject.toml and the sources of the kernels."""
    made_of = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + extras.encode())
    for path in sorted(p for p in (ROOT / "native").rglob("*") if p.is_file()):
        made_of.update(path.name.encode() + path.read_bytes())
    return made_of.hexdigest()


def install(extras: str, stamp_name: str, **env: str) -> None:
    """Install apr with extras, once for each state of pyproject.toml and native/."""
    stamp = VENV / f".apr-{stamp_name}"
    wanted = state(extras)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    make_venv()
    install_torch()
    say(f"installing apr{extras} (editable)")
    if not pip("install", "-q", "-e", f".{extras}", **env):
        stop("the installation failed; see the lines above")
    stamp.write_text(wanted)


def install_exact() -> None:
    """Install llama-cpp-python, a source package: pip compiles it once and caches the wheel."""
    say("installing llama-cpp-python; the first time it compiles llama.cpp, about 4 to 10 minutes")
    install(
        "[dev,exact]",
        "exact",
        CMAKE_ARGS=os.environ.get("CMAKE_ARGS", "-DGGML_NATIVE=ON"),
        CMAKE_BUILD_PARALLEL_LEVEL=os.environ.get(
            "CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 2)
        ),
    )


def find_tool(name: str) -> str:
    """Find cmake or ninja: of the machine or of .venv; installed into .venv if there is none."""
    found = shutil.which(name) or shutil.which(name, path=str(BIN))
    if found is None:
        make_venv()
        say(f"there is no {name} here: installing it into {VENV.name}")
        if not pip("install", "-q", name):
            stop(f"{name} could not be installed; see the lines above")
        found = str(BIN / name)
    return found


def build_native(flags: list[str]) -> int:
    """Build the library in build/native and leave it in apr/native; only what changed compiles."""
    build = ROOT / "build" / "native"
    cmake = find_tool("cmake")
    start = [cmake, "-S", ROOT / "native", "-B", build, "-DAPR_NATIVE_IN_TREE=ON", *flags]
    if not (build / "CMakeCache.txt").exists():
        start += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}"]
    return run(*start) or run(cmake, "--build", build, "--parallel")


def main(argv: list[str]) -> int:
    verb, rest = (argv[0], argv[1:]) if argv else ("help", [])
    start = time.monotonic()
    if verb == "demo":
        install("[peers]", "run")
        say(f"set-up took {time.monotonic() - start:.0f} s; running apr demo")
        rest = rest if "--out" in rest else ["--out", "demo", *rest]
        return run(BIN / "apr", "demo", *rest)
    if verb == "test":
        install("[dev]", "dev")
        python = BIN / "python"
        if "--all" not in rest:
            return run(python, "-m", "pytest", "-m", "not slow and not exact and not gpu", *rest)
        install_exact()
        return run(python, "-m", "pytest", *[a for a in rest if a != "--all"])
    if verb == "check":
        install("[dev]", "dev")
        steps = [("ruff", "format", "--check", "."), ("ruff", "check", "."), ("mypy",)]
        return max(run(BIN / "python", "-m", *step) for step in steps)
    if verb == "setup":
        install("[dev]", "dev")
        say(f"ready in {time.monotonic() - start:.0f} s: source .venv/bin/activate")
        return 0
    if verb == "native":
        code = build_native(rest)
        say(f"{'built' if code == 0 else 'failed'} after {time.monotonic() - start:.0f} s")
        return code
    print(__doc__)
    return 0 if verb in ("help", "-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
