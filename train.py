"""Trains a transformer: `python train.py norm=pre lora.rank=8`; `python train.py --help` lists what there is."""

import sys

from txtrain.cli import start

if __name__ == "__main__":
    start(["train", *sys.argv[1:]])
