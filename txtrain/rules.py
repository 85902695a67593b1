"""Rules of training that have changed since older runs began, and the warning that such a run gets when it resumes."""

import logging
from collections.abc import Iterable

from torch import nn

from txtrain.model.block import Block, DropPath
from txtrain.model.norm.reordered import ReorderedNormWiring
from txtrain.model.norm.sandwich import SandwichNormWiring

DROPOUT_AFTER_NORM = "dropout after the outer norm"
RULES = (DROPOUT_AFTER_NORM,)
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
