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
    """Run a script written for Dassl, such as CoOp's ``train.py``, unmodified.

    Returns:
        0, or 2 after a one-line message about a user's mistake (with UNSKEW_DEBUG set, it raises). The script's exit
        and its other errors propagate.
    """
    prog = "python -m unskew.dassl"
    parser = argparse.ArgumentParser(
        prog, f"{prog} [--force] script.py ARGS...", "Run a script as if Dassl were installed."
    )
    parser.add_argument("--force", action="store_true", help="use this engine even if Dassl is installed")
    parser.add_argument("script", help="a script such as CoOp's train.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="arguments of the script")
    args = parser.parse_args(argv)
    if not os.path.isfile(args.script):
        print(f"unskew: error: there is no script '{args.script}'", file=sys.stderr)
        return 2
    return exit_code(lambda: _run(args.script, args.arguments, args.force), " (UNSKEW_DEBUG=1 shows where)")


def _is_from_script(error: BaseException) -> bool:
    """Return whether other code than this package raised the error; PyTorch's ``_utils`` re-raises workers' errors."""
    last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return not last.is_relative_to(Path(__file__).parent.parent) and last.name != "_utils.py"


def _run(script: str, arguments: Sequence[str], force: bool) -> None:
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.realpath(script))  # `python -m` puts the current folder there
    if finder.install(force):
        # These modules import torch, so they are imported only now.
        from unskew.dassl import compat, utils

        compat.apply()
        utils.show_log_lines()
    else:
        print(
            f"unskew: using the installed Dassl in {finder.installed()}; --force uses unskew's engine", file=sys.stderr
        )
    try:
        runpy.run_path(script, run_name="__main__")
    except KeyboardInterrupt:
        print("\nunskew: interrupted; saved files are kept", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if not _is_from_script(error):
            raise
        traceback.print_exc()  # the script's author needs to see the line
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
