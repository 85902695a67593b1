"""Trains a transformer: `python train.py norm=pre lora.rank=8`; `python train.py --help` lists what there is."""

import sys

from txtrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
