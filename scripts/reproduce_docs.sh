#!/usr/bin/env bash
# Run the commands whose output the docs show, and write the numbers into the pages. --list shows them, --only NAME runs one.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup test
exec "$PYTHON" "$ROOT/scripts/reproduce_docs.py" "$@"
