#!/usr/bin/env bash
# Train on one dataset, test on others, with no label of them; then one table.
set -euo pipefail

usage="usage: bash scripts/cross_dataset.sh SOURCE TARGET ...
  SOURCE, TARGET   names from configs/datasets, such as shapes and patterns
environment:
  TRAINERS (ZeroshotCLIP CoOp ProGrad CLIPAdapter GLA; GLA is over ProGrad)   SHOTS (16)
  SEEDS (1-3)   BACKBONE (the source's)   DATA (./data)   OUTPUT (./output)"
if [ $# -lt 2 ] || [[ $1 == -* ]]; then
    echo "$usage" >&2
    exit 2
fi
source_dataset=$1
shift

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
# TRAINERS, SHOTS and SEEDS are lists of words on purpose.
exec "$PYTHON" -m unskew.cli protocol cross_dataset --datasets "$source_dataset" --trainers ${TRAINERS:-""} \
    --shots ${SHOTS:-16} --seeds ${SEEDS:-1-3} --backbone "${BACKBONE:-}" --root "${DATA:-data}" \
    --output "${OUTPUT:-output}" --targets "$@"
