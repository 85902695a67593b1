"""Keys of config.json: other spellings, values that are meant where a key is left out, and keys that change nothing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from txtrain.errors import UserError

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Nullable:
    """A key that may be null.

    Args:
        kind: the type of its other values.
        default: what it means if it is left out.
    """

    kind: type
    default: Any = None


@dataclass(frozen=True)
class Extra:
    """A key that transformers' config class does not declare, and that it or the model's code reads; none is meant.

    Args:
        kind: the type of its values.
    """

    kind: type


# Of every family: what concerns training, caches, files and generation.
NEUTRAL = frozenset(
    [
        "_attn_implementation_autoset",
        "_commit_hash",
        "_flash_attn_2_enabled",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "chunk_size_feed_forward",
        "custom_pipelines",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "initializer_factor",
        "is_encoder_decoder",
        "initializer_range",
        "keys_to_ignore_at_inference",
        "label2id",
        "label_smoothing",
        "language",
        "license",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "prefix",
        "problem_type",
        "return_dict",
        "task_specific_params",
        "tie_last_hidden_states",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
        "xla_device",
        "bos_token_id",
        "cls_token_id",
        "eos_token_id",
        "mask_token_id",
        "sep_token_id",
        "unk_token_id",
        "decoder_start_token_id",
        "pretraining_tp",
        "begin_suppress_tokens",
        "bad_words_ids",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "encoder_repetition_penalty",
        "epsilon_cutoff",
        "eta_cutoff",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "max_new_tokens",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "suppress_tokens",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_pdrop",
        "activation_dropout",
        "classif_dropout",
        "classifier_dropout",
        "classifier_dropout_prob",
        "dropout",
        "dropout_rate",
        "embd_pdrop",
        "emb_pdrop",
        "hidden_dropout",
        "hidden_dropout_prob",
        "qa_dropout",
        "resid_pdrop",
        "seq_classif_dropout",
        "decoder_layerdrop",
        "encoder_layerdrop",
        "layerdrop",
        "init_std",
    ]
)
COMMON: dict[str, Any] = {
    "architectures": Nullable(list),
    "dtype": Nullable(str),
    "pad_token_id": Nullable(int),
}


@dataclass(frozen=True)
class Keys:
    """The keys of a family, as its config class in transformers has them.

    Args:
        defaults: the keys that decide what is computed, with their defaults.
        spellings: other names, each with the key that it means. They count before it, unless they are null.
        neutral: keys that change nothing in evaluation, besides those of every family.
    """

    defaults: Mapping[str, Any]
    spellings: Mapping[str, str] = field(default_factory=dict)
    neutral: frozenset[str] = frozenset()

    def complete(self, config: Config) -> dict[str, Any]:
        """The same config with each key under its main name, and those that it leaves out."""
        completed = {
            key: value.default if isinstance(value, Nullable) else value
            for key, value in self.defaults.items()
            if not isinstance(value, Extra)
        }
        completed |= {key: value for key, value in config.items() if key not in self.spellings}
        others = {self.spellings[key]: value for key, value in config.items() if key in self.spellings}
        return completed | {key: value for key, value in others.items() if value is not None}

    def check(self, config: Config) -> None:
        """Refuses values of another kind than a key has.

        Args:
            config: completed.

        Raises:
            UserError: names the key.
        """
        for key, stated in (COMMON | dict(self.defaults)).items():
            if key in config and not _is_kind(config[key], stated):
                wanted = stated.kind if isinstance(stated, Nullable | Extra) else type(stated)
                raise UserError(f"its {key} is {_shown(config[key])}, and must be of type {wanted.__name__}")

    def unknown(self, config: Config) -> list[str]:
        """The keys of a config that are in no table: transformers ignores them too."""
        known = COMMON.keys() | self.defaults.keys() | self.spellings.keys() | self.neutral | NEUTRAL
        return sorted(key for key, value in config.items() if key not in known and value not in (None, False))


def _is_kind(value: Any, stated: Any) -> bool:
    if isinstance(stated, Nullable | Extra):
        return value is None or _is(value, stated.kind)
    return _is(value, list if isinstance(stated, tuple) else type(stated))


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)[:40]
