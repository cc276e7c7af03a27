#!/usr/bin/env bash
# Run ruff, mypy and the tests. --all includes the tests that need a browser, ONNX Runtime, Ray, SLURM or a whole world.
# Pass other arguments to pytest: bash scripts/test.sh -k prior
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup test
cd "$ROOT"

browser() { # install Chromium if there is no browser; without one the browser test fails
    local name
    for name in chromium chromium-browser google-chrome; do command -v "$name" >/dev/null && return; done
    if [ "$(id -u)" = 0 ] && grep -q '^ID=debian' /etc/os-release 2>/dev/null; then
        apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null && return
    fi
    "$PYTHON" -m playwright install chromium >/dev/null && return
    echo "test: Chromium is missing and cannot be installed; install it, and repeat the command" >&2
}

slurm() { # install SLURM; without it the tests use submitit's local executor, and print the reason
    PATH="$PATH:/usr/sbin:/sbin" command -v slurmctld >/dev/null && return
    if [ "$(id -u)" = 0 ] && grep -q '^ID=debian' /etc/os-release 2>/dev/null; then
        apt-get -qq update && apt-get -qq install -y --no-install-recommends slurm-wlm munge >/dev/null && return
    fi
    echo "test: SLURM is missing and cannot be installed; install slurm-wlm and munge, and repeat the command" >&2
}

marked="not (browser or onnx or ray or slurm or world)"
if [ "${1:-}" = --all ]; then
    marked=""
    shift
    export UNSKEW_TEST_ALL=1
    browser
    slurm
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
# One process per core with one thread each: more threads of torch slow small tensors down.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n auto -m "$marked" "$@"
