"""Data parallelism: every device has the whole model."""

from lightning.pytorch.strategies import DDPStrategy

from txtrain.strategy.portable import Portable


class DDP(Portable, DDPStrategy):
    """Every device has all weights, gradients and optimizer state; gradients are averaged while backward goes on
    (https://arxiv.org/abs/2006.15704).

    Args:
        gradient_as_bucket_view: gradients lie in the buckets that are sent, which saves one copy of them.
        bucket_cap_mb: size of such a bucket.
        static_graph: whether all steps use the same parameters in the same order.
        find_unused_parameters: whether to look for parameters without a gradient in each step; no model here has any.
    """

    option = "ddp"

    def __init__(
        self,
        *,
        gradient_as_bucket_view: bool = True,
        bucket_cap_mb: int = 25,
        static_graph: bool = False,
        find_unused_parameters: bool = False,
    ) -> None:
        super().__init__(
            gradient_as_bucket_view=gradient_as_bucket_view,
            bucket_cap_mb=bucket_cap_mb,
            static_graph=static_graph,
            find_unused_parameters=find_unused_parameters,
        )
