# The other scripts source this file. `setup [EXTRA]` sets $PYTHON to an interpreter in which the package is installed:
# the active Python if it has the package, otherwise the one of .venv, which the function creates.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

complete() { # PYTHON EXTRA: succeed if PYTHON has the package and everything that it requires
    (cd / && "$1" - "$2" 2>/dev/null) <<'PY'
import re
import sys
from importlib.metadata import metadata, requires, version

if sys.argv[1] and sys.argv[1] not in (metadata("unskew").get_all("Provides-Extra") or []):
    sys.exit(1)  # installed before there was this extra
for requirement in requires("unskew"):
    extra = re.search(r"extra == ['\"](\w+)", requirement)
    if not extra or extra[1] == sys.argv[1]:
        version(re.match(r"[\w.-]+", requirement)[0])
PY
}

find_python() { # print the first Python >= 3.10
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

# Print the index of torch's CPU builds, which save gigabytes, if the machine has no NVIDIA GPU and reaches the index.
torch_index() { # PYTHON
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
    echo "setup: installing into $ROOT/.venv (1.5 to 6 GB; a few minutes or more, once)" >&2
    [ -x "$PYTHON" ] || "$python" -m venv "$ROOT/.venv" || exit 1
    index=$(torch_index "$PYTHON")
    if [ -n "$index" ]; then
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --index-url "$index" torch torchvision || exit 1
    fi
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable "$ROOT${extra:+[$extra]}" || exit 1
    cp "$ROOT/setup.py" "$stamp"
}
