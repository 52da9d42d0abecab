#!/bin/bash
# The GPU measurements, in calls of under ten minutes each: bash benchmarks/gpu.sh first|second|third
#
# For a machine with JAX, Flax, optax and torch for its GPU, and no network. Beforehand, where there
# is one, in the repository's root, timm and the official package are fetched to travel along:
#
#     echo /.whl/ >> .git/info/exclude
#     python3 -m pip download --no-deps --only-binary=:all: -d .whl timm==0.9.16 fastervit==1.0.0
#
# Results go to $OUT, or benchmarks/results. Every row is written as soon as it is measured: what
# runs out of time loses only what was left. Where the copy of the tree is no repository, COMMIT=…
# names the commit in the records.
set -u
cd "$(dirname "$0")/.."
site=$(mktemp -d)
python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" .whl/*.whl || exit 1
export PYTHONPATH="$site:." PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore
out=${OUT:-benchmarks/results}

measure() { # seconds, name of the record, benchmark and its flags
    local limit=$1 name=$2
    shift 2
    echo "== $name"
    timeout "$limit" python3 "benchmarks/$1.py" "${@:2}" --output="$out/$name.json" ||
        echo "$name ended early, with status $?"
}

case ${1:?first, second or third} in
first)
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
    measure 330 inference_0 inference --models 0 --batches 128 1 32
    measure 120 limits_0 limits --models 0 --batch 128
    measure 130 growth growth
    ;;
second)
    measure 200 step_0 training_step --models 0 --batches 128
    measure 240 inference_2 inference --models 2 --batches 128 32 --theirs eager compiled
    measure 140 limits_2 limits --models 2 --batch 128 --stages_only
    ;;
third)
    measure 300 step_2 training_step --models 2 --batches 128
    measure 280 inference_4 inference --models 4 6 --batches 128 --theirs eager compiled
    ;;
esac
