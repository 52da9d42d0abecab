#!/bin/bash
# All GPU measurements, in under ten minutes: bash benchmarks/gpu.sh [SECONDS TO COMPILE] [WORKER …]
#
# For a machine with JAX, Flax, optax and torch for its GPU, and no network. What it lacks travels
# as wheels in .whl/, which `bash benchmarks/gpu.sh wheels [PYTHON]` fetches beforehand, where there
# is a network; PYTHON is the version on that machine, by default 3.12. Records go to $OUT, or
# benchmarks/results. `--tiny` as the first word rehearses the script on any machine. Where the copy
# of the tree is no repository, COMMIT=… names the commit.
set -u
cd "$(dirname "$0")/.."
if [ "${1:-}" = wheels ]; then
    exec python3 -m pip download --no-deps --only-binary=:all: --python-version "${2:-3.12}" \
        --implementation cp --platform manylinux_2_28_x86_64 -d .whl \
        timm==0.9.16 fastervit==1.0.0 ml_collections grain chex toolz
fi
tiny=
if [ "${1:-}" = --tiny ]; then tiny=--tiny; shift; fi
until=${1:-330}
shift || true
workers=${*:-ours theirs ours_step theirs_step ours_step_graphs}
export GPU_START=$(date +%s) GPU_WORKERS="$workers"
export PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore TF_CPP_MIN_LOG_LEVEL=2
site=$(mktemp -d)
python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" .whl/*.whl
export PYTHONPATH="$site:.:benchmarks"
out=${OUT:-benchmarks/results}
export GPU_LOCKS=$(mktemp -d)
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
for worker in $workers; do
    python3 benchmarks/gpu.py "$worker" --output="$out" --until="$until" $tiny ${GPU_FLAGS:-} >"$out/$worker.log" 2>&1 &
done
wait
for worker in $workers; do
    echo "== $worker"
    grep -v "^\s*$" "$out/$worker.log" | tail -n 25 | cut -c 1-300
done
