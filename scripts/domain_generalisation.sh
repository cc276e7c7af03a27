#!/usr/bin/env bash
# Train on one dataset, test on shifted images of its classes; then one table.
set -euo pipefail

usage="usage: bash scripts/domain_generalisation.sh [SOURCE TARGET ...]
  SOURCE, TARGET   names from configs/datasets (default: imagenet imagenetv2 imagenet_sketch imagenet_a imagenet_r)
environment:
  TRAINERS (ZeroshotCLIP DebiasedZeroshot LinearProbe CoOp ProGrad TipAdapterF CLAP GLA)   SHOTS (16)
  SEEDS (1-3)   BACKBONE (the source's)   DATA (./data)   OUTPUT (./output)"
if [[ ${1:-} == -h || ${1:-} == --help || ( $# -gt 0 && $1 != -* && $1 != *.* && ${2:--} == -* ) ]]; then
    echo "$usage" >&2
    exit 2
fi
# Without names, words such as --dry-run follow.
[[ ${1:--} == -* || $1 == *.* ]] || set -- --datasets "$1" --targets "${@:2}"

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
# TRAINERS, SHOTS and SEEDS are lists of words on purpose.
exec "$PYTHON" -m unskew.cli protocol domain_generalisation --trainers ${TRAINERS:-""} --shots ${SHOTS:-16} \
    --seeds ${SEEDS:-1-3} --backbone "${BACKBONE:-}" --root "${DATA:-data}" --output "${OUTPUT:-output}" "$@"
