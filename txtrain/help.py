"""What --help prints: one screen, with the groups and options that the config tree has."""

import sys
import textwrap
from pathlib import Path

import yaml

from txtrain.config import config_directory, groups, options

TRAIN = """\
Train a transformer in which every technique is an option.

  {program} [GROUP=OPTION ...] [KEY=VALUE ...]       one run
  {program} -m GROUP=OPTION,OPTION KEY=VALUE,VALUE   a sweep: a run for each combination, and a table

Groups and their options (* is the default); a group's keys are GROUP.KEY, such as encoding.theta:
{groups}

Common keys:
  data.path=FILE  data.seq_len  data.batch_size (sequences per step over all devices)  data.micro_batch_size
  trainer.max_steps  trainer.devices  trainer.accelerator  trainer.precision=bf16-mixed  optimizer.lr
  name=NAME  seed=1  run_dir=PATH  resume=PATH|auto  init_from=PATH  compile=true  export=true  dry_run=true

Examples:
  {program} norm=pre lora.rank=8
  {program} data=text data.path=my.txt model=small trainer.precision=bf16-mixed
  {program} -m norm=pre,post encoding=rope,alibi,sinusoidal
  {program} strategy=deepspeed_zero2 trainer.devices=8

Flags: -m sweep; --cfg job show the composed config instead of training; --config-dir DIR options of your own."""


def train_help() -> str:
    """The screen of the train command."""
    directory = config_directory()
    defaults = _defaults(directory)
    lines = [_group(group, defaults.get(group), options(directory, group)) for group in groups(directory)]
    program = "python train.py" if Path(sys.argv[0]).name == "train.py" else "txtrain train"
    return TRAIN.format(program=program, groups="\n".join(line for line in lines if line))


def _defaults(directory: Path) -> dict[str, str | None]:
    """The default option of each group: the entries `group: option` of the root config's defaults list."""
    entries = yaml.safe_load((directory / "train.yaml").read_text())["defaults"]
    return {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}


def _group(group: str, default: str | None, names: list[str]) -> str:
    if names in ([], ["default"]):  # its keys are all that there is to choose
        return ""
    shown = ", ".join(f"{name}*" if name == default else name for name in names)
    return textwrap.fill(shown, width=110, initial_indent=f"  {group:<14}", subsequent_indent=" " * 16)
