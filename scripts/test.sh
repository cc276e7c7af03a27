#!/usr/bin/env bash
# Run ruff, mypy and the tests. --all includes the tests that need a browser, ONNX Runtime, Ray, SLURM or a whole world.
# Pass other arguments to pytest: bash scripts/test.sh -k prior
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup test
cd "$ROOT"
marked="not (browser or onnx or ray or slurm or world)"
if [ "${1:-}" = --all ]; then
    marked=""
    shift
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
# One process per core with one thread each: more threads of torch slow small tensors down.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n auto -m "$marked" "$@"
