"""What a test of weights in bfloat16 runs in each process: the same batches everywhere, most matrices without masters.

Usage: half.py OUTPUT CASES, where CASES is a JSON list of mappings with the arguments of `fit`.
"""

import json
import sys

import torch

from tests.strategy import worker
from txtrain.optim import half

half.SMALL = 64  # else all weights of the test's model are small


def fit(**options):
    """What `worker.fit` finds, and whether all processes ended with the same weights."""
    found = worker.fit(**options)
    weights = list(found["weights"].values())
    each = [weights]
    if options["ranks"] > 1:
        each *= options["ranks"]
        torch.distributed.all_gather_object(each, weights)
    equal = all(torch.equal(mine, first) for others in each for mine, first in zip(others, each[0], strict=True))
    return found | {"replicas_equal": equal}


if __name__ == "__main__":
    worker.main(sys.argv[1], json.loads(sys.argv[2]), {"fit": fit})
