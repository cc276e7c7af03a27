#!/usr/bin/env bash
# Lint and tests; arguments go to pytest (bash scripts/test.sh -k prior).
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup test
cd "$ROOT"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# One process a core, one thread each: torch's own threads only get in each other's way on small tensors.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n auto "$@"
