#!/usr/bin/env bash
# Few-shot runs of several trainers with several seeds, then one table.
set -euo pipefail

usage="usage: bash scripts/run_fewshot.sh DATASET SHOTS [TRAINER ...]
  DATASET   a name from configs/datasets, such as digits; a list; or all that are prepared
  SHOTS     16, a list (1,4,16) or all (1 2 4 8 16)
  TRAINER   names from configs/trainers (default: ZeroshotCLIP DebiasedZeroshot LinearProbe CoOp ProGrad
            TipAdapterF CLAP GLA)
environment:
  SEEDS (1-3)   BACKBONE (the dataset's)   DATA (./data)   OUTPUT (./output)"
if [ $# -lt 2 ] || [ -z "${2// /}" ]; then
    echo "$usage" >&2
    exit 2
fi
dataset=$1 shots=$2
shift 2
[[ ${1:--} == -* || $1 == *.* ]] || set -- --trainers "$@"

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
# SHOTS and SEEDS are lists of words on purpose.
exec "$PYTHON" -m unskew.cli protocol few_shot --datasets "$dataset" --shots $shots --seeds ${SEEDS:-1-3} \
    --backbone "${BACKBONE:-}" --root "${DATA:-data}" --output "${OUTPUT:-output}" "$@"
