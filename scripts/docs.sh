#!/usr/bin/env bash
# Build the documentation site into site/; it starts at site/index.html. A broken link or missing reference is an error.
# (With --quiet, mkdocs would count no warning.) Other arguments go to mkdocs: bash scripts/docs.sh --site-dir /tmp/site
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup docs
cd "$ROOT"
NO_MKDOCS_2_WARNING=1 "$PYTHON" -m mkdocs build --strict "$@"
