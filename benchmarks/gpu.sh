#!/usr/bin/env bash
# Measure on one GPU, within 7 minutes, what docs/PERFORMANCE.md lacks: bash benchmarks/gpu.sh [FOLDER]
# --small runs the same parts with small sizes and models on a CPU: bash benchmarks/gpu.sh --small [FOLDER]
#
# Each part has a time limit and writes its rows one by one, so that a slow part does not cost the others. FOLDER (by
# default output/gpu) then has the parts' files and logs, gpu.json with all numbers, and table.md.
set -uo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${PYTHON:-python}"
small=()
patience=1
if [ "${1:-}" = --small ]; then
    small=(--small)
    patience=100 # practically no limit: a busy CPU is slow, and costs nothing
    shift
fi
OUT="${1:-output/gpu}"
mkdir -p "$OUT"
OUT="$(cd "$OUT" && pwd)"
UNSKEW_CACHE="$(mktemp -d)" # empty, so that each call measures the same
trap 'rm -rf "$UNSKEW_CACHE"' EXIT
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" UNSKEW_CACHE

part() { # part NAME SECONDS SCRIPT ARGUMENTS...: run a benchmark with a time limit; its output goes into a log
    local name=$1 limit=$(($2 * patience)) script=$3 start=$SECONDS code
    shift 3
    timeout --kill-after=5 "$limit" "$PYTHON" "$ROOT/benchmarks/$script" "$@" >"$OUT/$name.log" 2>&1
    code=$?
    case $code in
        0) echo "$name: $((SECONDS - start)) s" ;;
        124 | 137) echo "$name: stopped at its limit of $limit s" ;;
        *) echo "$name: failed ($(tail -n 1 "$OUT/$name.log"))" ;;
    esac
    return 0
}

rm -f "$OUT"/{step,encode,finetune,runs,prior,gpu}.json
if [ ${#small[@]} -gt 0 ]; then
    device=cpu
    step=(--backbone micro --classes 4 --repeats 1)
    prior=(--samples 600 --classes 20 --repeats 1)
elif ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: torch finds no GPU; run it on a computer with one, or pass --small to test it on a CPU" >&2
    exit 2
else
    device=cuda
    step=(--classes 100 1000 --chunk 1000 --repeats 3)
    prior=(--samples 50000 --classes 1000)
fi
gpu=(--data "$OUT/data" ${small[@]+"${small[@]}"})
estimators=(--only "convex, strength 1" map "em, no labels" "temperature, nll" combination)

# The limits add up to 405 seconds.
part data 40 gpu.py data "${gpu[@]}"
part step 75 text_step.py "${step[@]}" --device $device --precisions fp32 amp bf16 --json "$OUT/step.json"
part encode 65 gpu.py encode "${gpu[@]}" --json "$OUT/encode.json"
part finetune 40 gpu.py finetune "${gpu[@]}" --json "$OUT/finetune.json"
part runs 130 gpu.py runs "${gpu[@]}" --json "$OUT/runs.json"
part prior 40 prior.py "${prior[@]}" --device $device "${estimators[@]}" --json "$OUT/prior.json"
timeout $((15 * patience)) "$PYTHON" "$ROOT/benchmarks/gpu_table.py" "$OUT" ${small[@]+"${small[@]}"} --json "$OUT/gpu.json" |
    tee "$OUT/table.md"
