#!/usr/bin/env bash
# Build the documentation site into site/ and open site/index.html; a broken link or a missing reference is an error.
# Other arguments go to mkdocs: bash scripts/docs.sh --site-dir /tmp/site
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup docs
cd "$ROOT"
NO_MKDOCS_2_WARNING=1 "$PYTHON" -m mkdocs build --strict --quiet "$@"
