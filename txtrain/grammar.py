"""Hydra's grammar as users type it: quotes, missing values, keys that cannot be left out, other tools' names."""

import re
import shlex
from collections.abc import Iterable, Sequence

from txtrain.errors import UserError

# Keys whose value names something: an empty one comes from a variable that is not set.
NAMING = re.compile(r"\+{0,2}(?P<key>resume|init_from|run_dir|name|[\w.]*(?:path|_dir|folder))=$")
# What may be deleted by ~: members of a group that has several, and keys that only some configs have.
DELETABLE = ("callbacks.", "data.sets.", "data.weights.", "experiment", "hydra")

# Names of other tools, by the key that means the same here.
SYNONYMS = {
    "trainer.max_epochs": "epochs num_epochs n_epochs max_epochs num_train_epochs",
    "trainer.max_steps": "steps max_steps num_steps n_steps iters max_iters num_iters iterations train_steps",
    "trainer.max_time": "max_time time_limit",
    "trainer.devices": "devices gpus num_gpus n_gpus ngpus gpu num_devices nproc_per_node",
    "trainer.num_nodes": "nodes num_nodes nnodes",
    "trainer.accelerator": "accelerator device",
    "trainer.precision": "precision dtype amp mixed_precision",
    "trainer.gradient_clip_val": "grad_clip gradient_clip gradient_clip_val max_grad_norm clip_grad clip_grad_norm",
    "trainer.log_every_n_steps": "log_interval log_every logging_steps log_every_n_steps",
    "trainer.val_check_interval": "eval_interval eval_every eval_steps val_interval val_every val_check_interval",
    "optimizer.lr": "lr learning_rate base_lr max_lr peak_lr",
    "optimizer.weight_decay": "weight_decay wd",
    "optimizer.betas": "betas adam_betas",
    "schedule.warmup": "warmup warmup_steps num_warmup_steps warmup_iters warmup_ratio",
    "data.batch_size": "batch_size bs train_batch_size global_batch_size batch",
    "data.micro_batch_size": "micro_batch_size per_device_train_batch_size per_device_batch_size microbatch_size",
    "data.seq_len": "seq_len seq_length sequence_length block_size context_length max_seq_len max_seq_length "
    "max_length max_len",
    "data.num_workers": "num_workers workers dataloader_num_workers",
    "data.path": "dataset data_path train_file data_dir train_data input_file",
    "data.cache_dir": "cache_dir",
    "model.dim": "dim d_model hidden_size n_embd embed_dim hidden_dim",
    "model.num_layers": "num_layers n_layer n_layers layers depth num_hidden_layers",
    "model.num_heads": "num_heads n_head n_heads heads num_attention_heads",
    "model.num_kv_heads": "num_kv_heads num_key_value_heads n_kv_heads",
    "model.ffn_dim": "ffn_dim d_ff intermediate_size mlp_dim",
    "model.dropout": "dropout dropout_rate hidden_dropout_prob",
    "tokenizer.vocab_size": "vocab_size n_vocab",
    "lora.rank": "lora_rank lora_r",
    "lora.alpha": "lora_alpha",
    "loss.label_smoothing": "label_smoothing label_smoothing_factor",
    "save.every": "save_every save_interval save_steps checkpoint_every",
    "save.keep": "save_total_limit keep_checkpoints",
    "run_dir": "output_dir out_dir save_dir checkpoint_dir output log_dir",
    "resume": "resume_from resume_from_checkpoint ckpt ckpt_path checkpoint load_from",
    "init_from": "pretrained pretrained_model model_name model_name_or_path base_model from_pretrained",
    "name": "run_name experiment_name exp_name",
    "seed": "random_seed rng_seed",
    "logger.project": "project wandb_project project_name",
    "encoding": "positional_encoding pos_encoding position_encoding pos_emb position_embedding",
    "schedule": "scheduler lr_scheduler lr_scheduler_type lr_schedule",
    "optimizer": "optim",
    "ffn": "activation mlp",
    "checkpointing": "gradient_checkpointing activation_checkpointing",
}
MEANINGS = {name: key for key, names in SYNONYMS.items() for name in names.split()}


def quoted(value: str) -> str:
    """A text in Hydra's quotes."""
    inside = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return f"'{inside}'"


def for_shell(key: str, value: str) -> str:
    """An override as it is typed into a shell, so that Hydra reads this text as its value."""
    text = f"{key}={quoted(value)}"
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def check_grammar(overrides: Sequence[str], groups: Iterable[str], scalars: Iterable[str]) -> None:
    """Refuses values that are missing, and deletions of what every run has.

    Args:
        overrides: as they were typed.
        groups, scalars: the keys that every config has.

    Raises:
        UserError: it names the first of them.
    """
    groups, scalars = set(groups), set(scalars)
    for override in overrides:
        if match := NAMING.match(override):
            key = match["key"]
            raise UserError(f"{key}= has no value (a variable that is not set?): type {key}=VALUE, or leave it out")
        key = override[1:].partition("=")[0]
        if not override.startswith("~") or key.startswith(DELETABLE):
            continue
        group, _, rest = key.partition("@")[0].partition(".")
        if group in groups and not rest:
            raise UserError(f"{override} leaves out a group that every run has: type {group}=OPTION for another option")
        if group in groups | scalars:
            raise UserError(f"{override} leaves out a key that every run has: type {key}=VALUE")


def unreadable(override: str) -> str:
    """What to say of an override that Hydra cannot parse."""
    key, equals, value = override.partition("=")
    if equals and re.fullmatch(r"[+~]{0,2}[A-Za-z][\w./@-]*", key):
        return f"{override} has signs that Hydra's grammar takes to mean something: type {for_shell(key, value)}"
    return f"'{override}' is no override: type key=value, in quotes if it has spaces or brackets"


def meaning(path: str, keys: Iterable[str]) -> str | None:
    """The key that another tool's name means, if it is among those of a config."""
    found = MEANINGS.get(path) or MEANINGS.get(path.rpartition(".")[2])
    return found if found in set(keys) else None
