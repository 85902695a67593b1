"""`adapter_config.json` of PEFT: which keys change what an adapter computes, and what of them is read."""

import json
import re
from pathlib import Path
from typing import Any

from txtrain.errors import UserError
from txtrain.interop.folder import is_folder

CONFIG = "adapter_config.json"

# Keys that change what is computed, and the values that we have; the first is PEFT's default.
KNOWN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "use_dora": (False, True, None),
    "use_rslora": (False, True, None),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "megatron_config": (None,),
    "ensure_weight_tying": (False, None),
}
# Starts of A and B that leave the base as it is, and those that take a part out of it that is computed again.
PRINCIPAL = ("pissa", "olora")
STARTS = (True, False, None, "gaussian", "orthogonal", "mica")
# Keys that are read elsewhere, or that say how an adapter was made, trained or saved, or repeat what its tensors say.
NEUTRAL = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}


# Types of the keys that are read, if they are there.
TYPES: dict[str, tuple[type, ...]] = {
    "alpha_pattern": (dict,),
    "auto_mapping": (dict,),
    "base_model_name_or_path": (str,),
    "lora_dropout": (int, float),
    "modules_to_save": (list,),
    "rank_pattern": (dict,),
    "task_type": (str,),
}


def is_adapter(path: str | Path) -> bool:
    """Whether this is a folder of PEFT's, and no whole model's."""
    return (Path(path).expanduser() / CONFIG).is_file() and not is_folder(path)


def read_config(path: Path) -> dict[str, Any]:
    """The adapter_config.json of a folder.

    Raises:
        UserError: it is missing, damaged, or asks for what we do not have.
    """
    try:
        config = json.loads((path / CONFIG).read_text())
        config.setdefault("lora_alpha", 8)
        for alpha in (config["lora_alpha"], *(config.get("alpha_pattern") or {}).values()):
            if not isinstance(alpha, int | float):
                raise UserError(f"{path / CONFIG} has an alpha of {alpha!r}, which is no number: restore it")
    except OSError as error:
        raise UserError(f"{path / CONFIG} cannot be read ({error.strerror}): name a folder of PEFT's") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path / CONFIG} is no adapter's config ({error}): restore it") from error
    _check(path / CONFIG, config)
    return dict(config)


def _check(file: Path, config: dict[str, Any]) -> None:
    """Refuses what would be computed otherwise than in PEFT, and what is of another type than it reads."""
    for key, types in TYPES.items():
        value = config.get(key)
        if not isinstance(value, types) and value is not None:
            raise UserError(f"{file} has {key}={value!r}, which is of another type than PEFT's: restore it")
    if not all(isinstance(name, str) for name in config.get("modules_to_save") or ()):
        raise UserError(f"{file} has modules_to_save={config['modules_to_save']}, which are no names: restore it")
    for key, values in KNOWN.items():
        if config.get(key, values[0]) not in values:
            raise UserError(f"{file} has {key}={config[key]}, and txtrain reads {key}={values[0]} only")
    for key, value in config.items():
        # A key of a later version is left out of the account where it is off.
        if key not in KNOWN and key not in NEUTRAL and value not in (None, False, [], {}, ""):
            raise UserError(
                f"{file} has {key}={value}, which txtrain does not know and which may change what is computed: merge "
                "the adapter in PEFT (merge_and_unload) and name the merged folder, or remove the key if it changes "
                "nothing"
            )
    start = start_of(config)
    if start not in (*STARTS, *PRINCIPAL):
        raise UserError(
            f"{file} has init_lora_weights={start}, whose change of the base cannot be computed again: merge the "
            "adapter in PEFT where it was trained, or convert it there (path_initial_model_for_weight_conversion)"
        )


def start_of(config: dict[str, Any]) -> Any:
    """How A and B started."""
    start = config.get("init_lora_weights", True)
    return start.lower() if isinstance(start, str) else start


def is_target(config: dict[str, Any], name: str, *, is_table: bool, file: Path) -> bool:
    """Whether PEFT gives this module an adapter: it passes over tensors of all others.

    Args:
        config: of the adapter.
        name: of their module, with all that it is in.
        is_table: whether it is the table of tokens or the head that scores them, which `all-linear` leaves out.
        file: the config's.

    Raises:
        UserError: the config does not say which modules have one.
    """
    targets, without = config.get("target_modules"), config.get("exclude_modules")
    if not isinstance(targets, str | list):
        raise UserError(f"{file} has target_modules={targets}, and needs the names of modules: restore it")
    try:
        whole = config.get("modules_to_save") or ()
        if (without and _is_named(without, name)) or any(re.match(rf"(^|.*\.){each}($|\..*)", name) for each in whole):
            return False
        if targets == "all-linear":
            return not is_table
        return _is_named(targets, name) and (isinstance(targets, str) or name in targets or _in_layers(config, name))
    except (re.error, TypeError, AttributeError) as error:
        raise UserError(f"{file} names modules by what is no pattern ({error}): restore it") from error


def _is_named(names: str | list[str], name: str) -> bool:
    """By a pattern for the whole, or by a list of what it may end in."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in names)


def _in_layers(config: dict[str, Any], name: str) -> bool:
    """Whether a module is in one of `layers_to_transform`: by the first number in its name, or after a pattern."""
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or []
    if layers is None or layers == []:
        return True
    starts = [rf"(?:^|.*?\.){pattern}" for pattern in ([patterns] if isinstance(patterns, str) else patterns)]
    for start in starts or [r".*?\.[^.]*"]:
        if match := re.match(rf"{start}\.(\d+)\.", name):
            return int(match[1]) in ([layers] if isinstance(layers, int) else layers)
    return False
