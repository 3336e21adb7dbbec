#!/usr/bin/env bash
# Every GPU test and benchmark, in under 8 minutes; the figures are left as JSON.
#
#   scripts/gpu_check.sh [FOLDER]      default: gpu-figures; PYTHON chooses the interpreter
#
# Needs a CUDA build of torch and what apr needs to import; apr itself runs from the checkout.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu-figures}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step() {
    local name=$1 start=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    "$@" || { failed=1; printf '!! %s failed (exit %s)\n' "$name" "$?"; }
    printf '   %s s\n' $((SECONDS - start))
}
apr() { "$python" -m apr.cli.main "$@"; }

"$python" - <<'P' || exit 9
import sys
try:
    import torch
except ImportError:
    sys.exit("error: gpu_check: this python has no torch; set PYTHON to one that has")
if not torch.cuda.is_available():
    sys.exit(f"error: gpu_check: torch {torch.__version__} sees no CUDA device")
print(torch.__version__, torch.cuda.get_device_name(0))
P

step "GPU tests" timeout 180 "$python" -m pytest -q -p no:cacheprovider -m gpu tests

# Decode and prefill of the CUDA kernels, weights made on the GPU: shares of the limits.
step "CUDA kernels, decode and prefill" timeout 150 "$python" scripts/bench_cuda.py --json "$out/cuda.json"

bench_train() {  # preset, batch, vocabulary
    timeout 60 "$python" scripts/bench_train.py --device cuda --preset "$1" --batch-size "$2" \
        --vocab "$3" --dtype float32 --dtype bfloat16 --rounds 4 --steps 5 --json \
        > "$out/train-$1.json" && tail -c 600 "$out/train-$1.json"
}
step "training steps, 125m" bench_train 125m 8 32000
step "training steps, 370m" bench_train 370m 4 50257

pipeline() {  # a real run on the GPU, then qa and bench of what it left
    local lib
    lib=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')
    apr tokenize train --dataset "$lib/asyncio" --dataset "$lib/email" --vocab-size 2048 --pre qwen2 \
        -o "$work/tok" &&
    apr pretrain --dataset "$lib/asyncio" --dataset "$lib/email" --tokenizer "$work/tok" \
        --preset 10m --num-steps 60 --device cuda --run-dir "$work/run" \
        --allow-under-provisioned "GPU check" --json > "$out/pretrain.json" &&
    apr qa "$work/run/model.apr" --device cuda --json > "$out/qa.json" &&
    apr bench "$work/run/model.apr" --device cuda --json > "$out/bench.json" &&
    apr bench "$work/run/model.apr" --device cuda
}
step "pretrain, qa, bench on CUDA" timeout 150 bash -c "$(declare -f pipeline apr); python='$python' work='$work' out='$out'; pipeline"
printf '\n%s in %s s; figures in %s\n' "$([ $failed = 0 ] && echo passed || echo FAILED)" "$SECONDS" "$out"
exit $failed
