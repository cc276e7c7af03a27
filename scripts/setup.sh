# Sourced by the other scripts: `setup [EXTRA]` leaves in $PYTHON an interpreter that has the package.
# The active Python serves if the package is installed in it; else .venv is made and filled.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

complete() { # PYTHON EXTRA: is the package installed there with everything it requires?
    (cd / && "$1" - "$2" 2>/dev/null) <<'PY'
import re
import sys
from importlib.metadata import requires, version

for requirement in requires("unskew"):
    extra = re.search(r"extra == ['\"](\w+)", requirement)
    if not extra or extra[1] == sys.argv[1]:
        version(re.match(r"[\w.-]+", requirement)[0])
PY
}

find_python() { # the first Python that is new enough
    local candidate
    for candidate in python3 python python3.14 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: no Python >= 3.10 found; install one and try again" >&2
    return 2
}

# Without an NVIDIA GPU the CPU build of torch saves gigabytes, where its index can be reached.
torch_index() {
    local index=https://download.pytorch.org/whl/cpu
    [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null || return 0
    "$1" -c "import urllib.request as u; u.urlopen('$index/torch/', timeout=5)" 2>/dev/null && echo "$index"
    return 0
}

setup() {
    local extra=${1:-} python stamp index
    python=$(find_python) || exit 2
    if complete "$python" "$extra"; then
        PYTHON=$python
        return
    fi
    PYTHON=$ROOT/.venv/bin/python
    stamp=$ROOT/.venv/installed-${extra:-run}
    if cmp -s "$ROOT/setup.py" "$stamp" && complete "$PYTHON" "$extra"; then return; fi
    echo "setup: installing into $ROOT/.venv (a few minutes, once)" >&2
    [ -x "$PYTHON" ] || "$python" -m venv "$ROOT/.venv" || exit 1
    index=$(torch_index "$PYTHON")
    if [ -n "$index" ]; then
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --index-url "$index" torch torchvision || exit 1
    fi
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable "$ROOT${extra:+[$extra]}" || exit 1
    cp "$ROOT/setup.py" "$stamp"
}
