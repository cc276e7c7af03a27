#!/usr/bin/env bash
# Long-tailed runs: fine-tuning on each member's backbone, the members together, the controls; then one table.
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
[ $# -gt 0 ] || set -- FineTune GLA Backdoor SeedEnsemble

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
output=${OUTPUT:-output}
mkdir -p "$output"
# SEEDS and BACKBONES are lists of words on purpose. What FineTune has trained is a member already.
exec "$PYTHON" -m unskew.cli sweep --dataset "$dataset" --trainers "$@" --shots -1 --seeds ${SEEDS:-1-3} \
    --backbone ${BACKBONES:-members} --root "${DATA:-data}" --output "$output" \
    --columns accuracy d_many d_medium d_few p_many p_medium p_few \
    --opts TRAINER.GLA.BASE FineTune TRAINER.BACKDOOR.MEMBERS_DIR "$output"
