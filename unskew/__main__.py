"""`python -m unskew` is the command `unskew`."""

import sys

from unskew.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
