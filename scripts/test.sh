#!/usr/bin/env bash
# Lint, types and tests; with --all also the tests that need a browser, ONNX Runtime, Ray, SLURM or a whole world.
# Other arguments go to pytest (bash scripts/test.sh -k prior).
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
# One process a core, one thread each: torch's own threads only get in each other's way on small tensors.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n auto -m "$marked" "$@"
