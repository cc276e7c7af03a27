"""CoOp's entry point: `python train.py --trainer GLA --dataset-config-file ... KEY VALUE`."""

import sys

from unskew.cli.main import main

sys.exit(main(["train", *sys.argv[1:]]))
