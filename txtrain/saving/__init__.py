"""Checkpoints on disk: when to write one, how it appears whole or not at all, and how it is found again.

`checkpoints/` holds folders such as `step_00000120.ckpt` and two links to them: `last` and `best`.
"""

from txtrain.saving.folder import (
    BASE,
    BEST,
    LAST,
    PARTIAL,
    checkpoint_name,
    checkpoint_step,
    find_checkpoint,
    link,
    linked_step,
    list_checkpoints,
    partials,
    point,
    prune,
    publish,
    recover,
    remove,
    resume_point,
)
from txtrain.saving.manifest import check_checkpoint, damage, read_manifest, write_manifest
from txtrain.saving.parts import (
    AVERAGE,
    MOMENT,
    WEIGHT,
    Part,
    Reader,
    check_complete,
    content_hash,
    pack_state,
    read_state,
    share_out,
    write_part,
)
from txtrain.saving.save import Save
from txtrain.saving.tensors import write_tensors

__all__ = [
    "AVERAGE",
    "BASE",
    "BEST",
    "LAST",
    "MOMENT",
    "PARTIAL",
    "Part",
    "Reader",
    "Save",
    "WEIGHT",
    "check_checkpoint",
    "check_complete",
    "checkpoint_name",
    "checkpoint_step",
    "content_hash",
    "damage",
    "find_checkpoint",
    "link",
    "linked_step",
    "list_checkpoints",
    "pack_state",
    "partials",
    "point",
    "prune",
    "publish",
    "read_manifest",
    "read_state",
    "recover",
    "remove",
    "resume_point",
    "share_out",
    "write_manifest",
    "write_part",
    "write_tensors",
]
