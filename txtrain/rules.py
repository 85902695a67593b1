"""Rules of training that have changed since older runs began, and the warning that such a run gets when it resumes."""

import logging
from collections.abc import Iterable

from torch import nn

from txtrain.model.block import Block, DropPath
from txtrain.model.encoding.base import Encoding
from txtrain.model.norm.reordered import ReorderedNormWiring
from txtrain.model.norm.sandwich import SandwichNormWiring

DROPOUT_AFTER_NORM = "dropout after the outer norm"
DYNAMIC_BY_SEQUENCE = "dynamic NTK of each sequence"
UNITS_READ = "units that the model reads"
RULES = (DROPOUT_AFTER_NORM, DYNAMIC_BY_SEQUENCE, UNITS_READ)
"""Names of the rules that a checkpoint was made under; those that it lacks it was made before."""

log = logging.getLogger(__name__)


def warn_of_new_rules(known: Iterable[str], model: nn.Module) -> None:
    """One line for each rule that a resumed run did not begin with and that changes its numbers.

    Args:
        known: the rules of the checkpoint.
        model: what trains.
    """
    if DROPOUT_AFTER_NORM not in known and _drops_inside_outer_norm(model):
        log.warning(
            "norm=sandwich and norm=reordered now drop a branch after its outer norm (model.dropout, model.drop_path): "
            "before it, the norm undid the factor 1 / (1 - p). This run began under the old rule, so its training "
            "losses differ from here on; evaluation does not."
        )
    if DYNAMIC_BY_SEQUENCE not in known and any(_depends_on_length(module) for module in model.modules()):
        log.warning(
            "encoding.scaling=dynamic now takes the length of each sequence and document without padding; it took the "
            "row's largest position. Rows beyond encoding.original_len with padding or packed documents have other "
            "losses than this run began with."
        )


def _depends_on_length(module: nn.Module) -> bool:
    return isinstance(module, Encoding) and (module.settled_len or module.stack.max_len) < module.stack.max_len


def _drops_inside_outer_norm(model: nn.Module) -> bool:
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    return any(
        isinstance(block.norm, SandwichNormWiring | ReorderedNormWiring)
        and any(
            (isinstance(part, nn.Dropout) and part.p > 0) or (isinstance(part, DropPath) and part.rate > 0)
            for part in (block.dropout, block.drop_path)
        )
        for block in blocks
    )
