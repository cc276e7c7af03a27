"""`python -m unskew.cli` is the command `unskew`; the scripts call it."""

import sys

from unskew.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
