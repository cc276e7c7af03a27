"""``python -m unskew.dassl [--force] script.py ARGS...``: run a script as if Dassl were installed."""

import argparse
import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from unskew.dassl import finder
from unskew.utils.errors import exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a script of somebody's, such as CoOp's ``train.py``, unmodified.

    Returns:
        0; 2 for a user's mistake, said in one line (with UNSKEW_DEBUG set, it raises). The script's own exit and its
        other errors go through.
    """
    prog = "python -m unskew.dassl"
    parser = argparse.ArgumentParser(
        prog, f"{prog} [--force] script.py ARGS...", "Run a script as if Dassl were installed."
    )
    parser.add_argument("--force", action="store_true", help="even if a real Dassl is installed")
    parser.add_argument("script", help="a file such as CoOp's train.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="the script's own")
    given = parser.parse_args(argv)
    if not os.path.isfile(given.script):
        print(f"unskew: error: there is no script '{given.script}'", file=sys.stderr)
        return 2
    return exit_code(lambda: _run(given.script, given.arguments, given.force), " (UNSKEW_DEBUG=1 shows where)")


def _is_the_scripts(error: BaseException) -> bool:
    """Whether it was raised in other code than this package's; a worker process's errors come through PyTorch's."""
    last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return not last.is_relative_to(Path(__file__).parent.parent) and last.name != "_utils.py"


def _run(script: str, arguments: Sequence[str], force: bool) -> None:
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.realpath(script))  # where `python -m` has the current folder
    if finder.install(force):
        # Only now is torch loaded.
        from unskew.dassl import compat, utils

        compat.apply()
        utils.show_log_lines()
    else:
        place = finder.installed()
        print(f"unskew: the Dassl in {place} is used as it is; --force takes unskew's engine", file=sys.stderr)
    try:
        runpy.run_path(script, run_name="__main__")
    except KeyboardInterrupt:
        print("\nunskew: interrupted; what was saved is kept", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if not _is_the_scripts(error):
            raise
        traceback.print_exc()  # of the script's own errors people need to see where
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
