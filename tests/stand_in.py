"""A small clone for tests of the command line: its own config tree, and a train function that takes no time.

The seed says how a run ends: 0 well, 1 by a bug, 2 by a mistake, 3 not before it is stopped or a file `end` is there.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("TXTRAIN_")}

ENTRY = f"""\
import json, os, subprocess, sys, time, types
sys.path.insert(0, {str(ROOT)!r})
import txtrain.config
txtrain.config.__file__ = os.path.join(os.path.dirname(os.path.abspath(__file__)), "txtrain", "config.py")

IGNORING = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"

def train(config, overrides):
    from hydra.core.hydra_config import HydraConfig
    seen = {{"overrides": overrides, "hydra": HydraConfig.initialized(), "dropout": config.model.dropout}}
    seen |= {{"run_dir": config.run_dir, "resume": config.resume, "torch": "torch" in sys.modules}}
    print("seen", json.dumps(seen | {{"environment": dict(os.environ)}}), flush=True)
    if config.seed == 1:
        raise RuntimeError("exploded")
    if config.seed == 2:
        raise txtrain.config.UserError("seed=2\\n  cannot be: type seed=0")
    if config.seed == 3:
        rank = subprocess.Popen([sys.executable, "-c", IGNORING])
        print("processes", os.getpid(), rank.pid, flush=True)
        for _ in range(600):
            if os.path.exists("end"):
                break
            time.sleep(0.1)
    if config.run_dir:
        os.makedirs(config.run_dir, exist_ok=True)
        summary = {{"validation_loss": 2 + config.model.dropout, "tokens_per_second": 1000.0, "state": "finished"}}
        summary |= {{"peak_memory_bytes": 2**20, "parameters": 3000, "trainable_parameters": 2000}}
        with open(os.path.join(config.run_dir, "summary.json"), "w") as file:
            json.dump(summary, file)

class Model:
    __module__ = "txtrain.train"
    def __init__(self, *, dropout: float = 0.0) -> None: ...

class Trainer:
    __module__ = "txtrain.train"
    def __init__(self, *, accelerator: str = "cpu", devices: int | str = 1, num_nodes: int = 1) -> None: ...

sys.modules["txtrain.train"] = module = types.ModuleType("txtrain.train")
module.train, module.Model, module.Trainer = train, Model, Trainer
from txtrain.cli import main
sys.exit(main(["train", *sys.argv[1:]]))
"""

TREE = {
    "train.yaml": """\
        defaults:
          - model: nano
          - trainer: default
          - _self_
          - override hydra/launcher: process
          - override hydra/job_logging: none
          - override hydra/hydra_logging: none
        name: gpt
        seed: 0
        run_dir: null
        resume: null
        init_from: null
        trust: []
        hydra:
          output_subdir: null
          run: {dir: .}
          sweep: {dir: "runs/${name}/sweeps/1", subdir: "${hydra:job.num}"}
        """,
    "model/nano.yaml": "{_target_: txtrain.train.Model, dropout: 0.0}",
    "trainer/default.yaml": "{_target_: txtrain.train.Trainer, accelerator: cpu, devices: 1, num_nodes: 1}",
    "model/wide.yaml": "{_target_: txtrain.train.Model, dropout: 0.5}",
}


def make_clone(folder: Path) -> Path:
    """Write the clone and return its train.py."""
    for name, text in TREE.items():
        path = folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    entry = folder / "train.py"
    entry.write_text(ENTRY)
    return entry


def run(folder: Path, entry: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(entry), *arguments]
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=120
    )


def seen(output: str) -> dict[str, Any]:
    """What the stand-in of the train function was given."""
    return json.loads(next(line for line in output.splitlines() if line.startswith("seen ")).removeprefix("seen "))
