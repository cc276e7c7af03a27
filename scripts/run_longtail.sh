#!/usr/bin/env bash
# Long-tailed runs: fine-tuning on each member's backbone, the members together, the controls; then two tables.
set -euo pipefail

usage="usage: bash scripts/run_longtail.sh DATASET [TRAINER ...]
  DATASET   a name from configs/datasets, such as shapes_lt
  TRAINER   names from configs/trainers (default: FineTune GLA Backdoor SeedEnsemble); GLA is over FineTune
environment:
  SEEDS (1-3)   BACKBONES (the members of Backdoor)   DATA (./data)   OUTPUT (./output)"
if [ $# -lt 1 ] || [[ $1 == -* ]]; then
    echo "$usage" >&2
    exit 2
fi
dataset=$1
shift
[[ ${1:--} == -* || $1 == *.* ]] || set -- --trainers "$@"

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
# SEEDS and BACKBONES are lists of words on purpose.
exec "$PYTHON" -m unskew.cli protocol long_tail --datasets "$dataset" --seeds ${SEEDS:-1-3} \
    --backbone ${BACKBONES:-${BACKBONE:-members}} --root "${DATA:-data}" --output "${OUTPUT:-output}" "$@"
