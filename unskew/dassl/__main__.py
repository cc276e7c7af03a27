"""``python -m unskew.dassl [OPTIONS] script.py ARGS...``: run a script as if Dassl were installed."""

import argparse
import os
import runpy
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

from unskew.dassl import finder, separation
from unskew.utils.errors import exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a script written for Dassl, such as CoOp's ``train.py``, unmodified.

    Returns:
        0, or 2 after a one-line message about a user's mistake (with UNSKEW_DEBUG set, it raises). The script's exit
        and its other errors propagate.
    """
    prog = "python -m unskew.dassl"
    usage = f"{prog} [--force | --theirs] [--trust FILE] script.py ARGS..."
    parser = argparse.ArgumentParser(prog, usage, "Run a script as if Dassl were installed.")
    engines = parser.add_mutually_exclusive_group()
    engines.add_argument("--force", action="store_true", help="use this engine even if Dassl is installed")
    engines.add_argument(
        "--theirs", action="store_true", help="use the Dassl in the script's folder, or the installed one, repaired"
    )
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="FILE",
        help="let the script read this pickled file even if it runs code (repeatable)",
    )
    parser.add_argument("script", help="a script such as CoOp's train.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="arguments of the script")
    args = parser.parse_args(argv)
    if not os.path.isfile(args.script):
        print(f"unskew: error: there is no script '{args.script}'", file=sys.stderr)
        return 2
    return exit_code(lambda: _run(args), " (UNSKEW_DEBUG=1 shows where)")


def _is_from_script(error: BaseException) -> bool:
    """Return whether the script, or a library that it called, raised the error: this package did not call it last."""
    ours, libraries = Path(__file__).parent.parent, {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_relative_to(ours):
            return False
        if not frame.filename.startswith("<") and not any(file.is_relative_to(place) for place in libraries):
            return True
    return True


def _run(args: argparse.Namespace) -> None:
    sys.argv = [args.script, *args.arguments]
    others = [name for name in args.trust if not name or (os.path.exists(name) and not os.path.isfile(name))]
    if others:
        raise ValueError(f"--trust takes a file (got '{others[0]}')")
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # `python -m` puts the current folder there
    folder = os.path.dirname(os.path.realpath(args.script))
    _choose_engine(args, folder)
    separation.separate(folder)
    try:
        runpy.run_path(args.script, run_name="__main__")
    except KeyboardInterrupt:
        print("\nunskew: interrupted; saved files are kept", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if not _is_from_script(error):
            raise
        traceback.print_exc()  # the script's author needs to see the line
        sys.exit(1)


def _choose_engine(args: argparse.Namespace, folder: str) -> None:
    """Decide which Dassl the script imports, and print a line if there are several."""
    bundled = finder.bundled(folder)
    if args.theirs:
        _use_theirs(args, bundled)
    elif finder.install(args.force):
        # These modules import torch, so they are imported only now.
        from unskew.dassl import compat, utils

        compat.apply(args.trust)
        utils.show_log_lines()
        if bundled:
            print(
                f"unskew: not using the Dassl in '{bundled}', which may be modified; put --theirs before the script's "
                "name to use it",
                file=sys.stderr,
            )
    else:
        print(
            f"unskew: using the installed Dassl in {finder.installed()}; --force uses unskew's engine, --theirs "
            "repairs Dassl for the installed PyTorch",
            file=sys.stderr,
        )


def _use_theirs(args: argparse.Namespace, bundled: Path | None) -> None:
    if bundled is None and not finder.installed():
        raise ValueError(f"--theirs: there is no Dassl beside '{args.script}', and none is installed; omit --theirs")
    if bundled is not None:
        sys.path.insert(0, str(bundled))
    from unskew.dassl import compat, moved

    compat.apply(args.trust)
    moved.repair_dassl()
    print(f"unskew: using the Dassl in {finder.installed()}, repaired for the installed PyTorch", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
