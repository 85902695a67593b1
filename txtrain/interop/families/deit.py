"""DeiT (https://arxiv.org/abs/2012.12877)."""

from txtrain.interop.common import Architecture
from txtrain.interop.families.vit import CLASSIFIER, PARTS, ViT, body
from txtrain.interop.family import Always
from txtrain.interop.names import Rule


class DeiT(ViT):
    """A ViT with a second token, whose output learned what a teacher says."""

    model_types = ("deit",)
    architecture = "DeiTForImageClassification"
    prefix = "deit."
    parts = (
        *PARTS,
        Always({"embedding.distillation_token": True}),
        Architecture(
            {
                "DeiTModel": {"head": "none"},
                "DeiTForImageClassification": CLASSIFIER,
                "DeiTForImageClassificationWithTeacher": {"head": "distilled"},
            }
        ),
    )
    rules = (
        *body("deit."),
        Rule("head.distillation", "distillation_classifier"),
        Rule("head.linear", "cls_classifier", given="head.distillation.weight"),
        Rule("head.linear", "classifier"),
    )
    prefix_tokens = 2
