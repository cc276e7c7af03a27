#!/usr/bin/env bash
# Train on the first half of the classes, test on both halves; then base, new and their harmonic mean.
set -euo pipefail

usage="usage: bash scripts/base_to_new.sh DATASET [SHOTS] [TRAINER ...]
  DATASET   a name from configs/datasets, such as shapes; a list; or all that are prepared
  SHOTS     16 (the default), a list (1,4,16) or all (1 2 4 8 16)
  TRAINER   names from configs/trainers (default: ZeroshotCLIP CoOp ProGrad CLIPAdapter GLA); GLA is over ProGrad
environment:
  SEEDS (1-3)   BACKBONE (the dataset's)   DATA (./data)   OUTPUT (./output)"
if [ $# -lt 1 ] || [[ $1 == -* ]]; then
    echo "$usage" >&2
    exit 2
fi
dataset=$1 shots=16
shift
if [[ ${1:-} =~ ^(all|[0-9][0-9\ ,-]*)$ ]]; then
    shots=$1
    shift
fi
[[ ${1:--} == -* || $1 == *.* ]] || set -- --trainers "$@"

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
# SHOTS and SEEDS are lists of words on purpose.
exec "$PYTHON" -m unskew.cli protocol base_to_new --datasets "$dataset" --shots $shots --seeds ${SEEDS:-1-3} \
    --backbone "${BACKBONE:-}" --root "${DATA:-data}" --output "${OUTPUT:-output}" "$@"
