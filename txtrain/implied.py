"""Values that a composed config leaves to its other options."""

from omegaconf import DictConfig

from txtrain.trust import locate


def fill_implied(config: DictConfig) -> None:
    """Sets what is null because another option decides it; what was typed, or stands in a saved config, stays.

    `embedding.scale`: token vectors are multiplied by √dim where the encoding's paper does so.
    """
    embedding, encoding = config.get("embedding"), config.get("encoding")
    if embedding is None or encoding is None or "scale" not in embedding or embedding.scale is not None:
        return
    if "_target_" in encoding:  # else the check says what is wrong
        embedding.scale = bool(getattr(locate("encoding", encoding), "scales_embedding", False))
