#!/usr/bin/env bash
# Every GPU kernel against its reference, and the engine's speed, on a machine with an NVIDIA GPU, torch and Triton.
# Needs no network: packages that are missing come from build/gpu-wheels (`make gpu-wheels`, where there is a network).
# Usage: benchmarks/gpu/run.sh [FOLDER for results.json and the tests' log]. Takes under eight minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-build/gpu-results}
mkdir -p "$out"
python=${PYTHON:-python3}

if ! "$python" -c 'import msgspec, tokenizers, safetensors, gguf, jinja2, llguidance, psutil, pytest, transformers' 2>/dev/null; then
  "$python" -m venv --system-site-packages build/gpu-venv
  build/gpu-venv/bin/pip install -q --no-index --find-links build/gpu-wheels -r benchmarks/gpu/requirements.txt
  python=build/gpu-venv/bin/python
fi
export PYTHONPATH="$PWD/src:$PWD" PYTHONUNBUFFERED=1

# Tests first, as figures of wrong kernels are worth nothing; a failure is reported at the end. What only compiles is
# left out: here everything is compiled and run.
failed=0
# Most of their time is compiling, so files run beside each other.
ls tests/kernels/triton/test_*.py | grep -v test_compiles |
  timeout 200 xargs -P 8 -I{} "$python" -m pytest -x -q -p no:cacheprovider --timeout 120 {} >"$out/tests.log" 2>&1 || failed=$?
grep -E "^(FAILED|ERROR)|passed|failed" "$out/tests.log" || true
timeout 270 "$python" -m benchmarks.gpu.measure --json "$out/results.json" || failed=$?
exit "$failed"
