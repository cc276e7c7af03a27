"""CoOp's entry point: `python train.py --trainer GLA --dataset-config-file ... KEY VALUE`."""

import sys

from unskew.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    sys.exit(main())
