"""train.py that also writes down which samples it was given, as lines `step sample sample ...` of $RECORD-<rank>."""

import os
import sys
from typing import Any

from txtrain.cli import main
from txtrain.task.causal_lm import CausalLM

losses = CausalLM.losses


def recorded(task: CausalLM, batch: dict[str, Any]) -> Any:
    if task.training:
        with open(f"{os.environ['RECORD']}-{task.global_rank}", "a") as file:
            print(task.global_step + 1, *batch["index"].tolist(), file=file)
    return losses(task, batch)


CausalLM.losses = recorded

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
