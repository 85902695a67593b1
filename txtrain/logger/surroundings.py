"""What the environment says of W&B: what is used of it, and what is overruled."""

from collections.abc import Mapping
from typing import Any

from txtrain.errors import UserError

TRUE, FALSE = ("1", "true", "on", "yes", "t", "y"), ("0", "false", "off", "no", "f", "n", "")
MODES = {"online": "online", "offline": "offline", "disabled": "disabled", "dryrun": "offline", "run": "online"}

# What is set for every run, whatever the environment says.
FIXED = {"console": "off", "silent": "true", "resume": "allow", "disable_git": "true"}


def stated_mode(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The mode that the environment asks for and the variable that does; None if none does.

    Raises:
        UserError: a variable has a value that means nothing.
    """
    disabled, mode = environment.get("WANDB_DISABLED", ""), environment.get("WANDB_MODE", "")
    if disabled.lower() not in (*TRUE, *FALSE):
        raise UserError(f"WANDB_DISABLED is {disabled}: set it to true or false, or unset it")
    if mode and mode not in MODES:
        raise UserError(f"WANDB_MODE is {mode}: set it to online, offline or disabled, or unset it")
    if disabled.lower() in TRUE:
        asked = f", which overrules WANDB_MODE={mode}" if mode and mode != "disabled" else ""
        return "disabled", f"WANDB_DISABLED{asked}"
    return (MODES[mode], "WANDB_MODE") if mode else None


def agent_run(environment: Mapping[str, str]) -> str | None:
    """The id of the run that `wandb agent` has started this process for; W&B takes no other then."""
    return environment.get("WANDB_RUN_ID") if environment.get("WANDB_SWEEP_ID") else None


def overruled(environment: Mapping[str, str], used: Mapping[str, Any]) -> list[str]:
    """The variables that say something else than what a run does, each with what it does instead.

    Args:
        environment: of the process.
        used: what the run has instead, by the ends of the variables' names in lower case; None is nothing.
    """
    found = []
    for name, value in {**used, **FIXED}.items():
        variable, instead = f"WANDB_{name.upper()}", ",".join(value) if isinstance(value, list) else str(value)
        stated = environment.get(variable, "")
        same = stated == instead or (instead == "true" and stated.lower() in TRUE)
        if stated and value is not None and not same:
            found.append(f"{variable}={stated} ({instead})")
    return found
