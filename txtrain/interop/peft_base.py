"""The matrices under PEFT's adapters: what PiSSA and OLoRA take out of them, and copies of them in adapters' files."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from txtrain.errors import UserError
from txtrain.interop.names import Place
from txtrain.model.lora.initial import Init, principal

TABLE = "embedding.tokens.weight"


class BaseMatrices:
    """Matrices (out, in) of a model's layers as PEFT has them: queries, keys and values may be one.

    Args:
        model: without adapters; one on the meta device has no values, and nothing is computed of it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._starts: dict[str, tuple[Tensor, Tensor, float]] = {}

    def matrix(self, place: Place, rows: list[int]) -> Tensor:
        """In float32; a table is (numbers, width)."""
        own = [self.model.get_parameter(f"{sibling}.weight").detach().float() for sibling in place.siblings]
        return replace(place.rule, transposed=False).to_theirs(own, rows)

    def without_start(
        self, place: Place, rows: list[int], parts: Mapping[str, Tensor], scale: float, start: Init
    ) -> Mapping[str, Tensor]:
        """An adapter of W - s · B₀ A₀ as one of W, of twice the rank: B A - B₀ A₀, with B₀ A₀ computed as PEFT does."""
        if start == "olora" and place.rule.transposed:
            raise UserError(
                f"an adapter has init_lora_weights=olora on {place.module}, a Conv1D, which PEFT takes the wrong way "
                "round: merge it in PEFT where it was trained"
            )
        if place.module not in self._starts:
            matrix = self.matrix(place, rows)
            if matrix.is_meta:
                return parts
            self._starts[place.module] = (*principal(matrix, len(parts["A"]), scale, start), scale)
        low, high, _ = self._starts[place.module]
        both = {"A": torch.cat([parts["A"].float(), low]), "B": torch.cat([parts["B"].float(), -high], dim=1)}
        return {**parts, **both}

    def check_copies(
        self, copies: Mapping[str, Tensor], places: Mapping[str, tuple[Place, list[int]]], where: Path
    ) -> None:
        """Refuses copies of matrices that are not those of the base: PEFT would take them in its place.

        Args:
            copies: by their modules.
            places: where these modules are among ours.
            where: the adapter's file.
        """
        for theirs, copy in copies.items():
            if theirs in places:
                place, rows = places[theirs]
                expected = self.matrix(place, rows)
                if place.module in self._starts:
                    low, high, scale = self._starts[place.module]
                    expected = expected - scale * high @ low
            else:  # a head that is tied to the table
                expected = self.model.get_parameter(TABLE).detach().float()
            if expected.is_meta:
                continue
            room = 4 * torch.finfo(copy.dtype).eps * expected.abs().max()
            if copy.shape != expected.shape or (copy.float() - expected).abs().max() > room:
                raise UserError(
                    f"{where} has a copy of {theirs}.weight that differs from the base's: put back the base that the "
                    "adapter was trained on, or merge it in PEFT (merge_and_unload) and name the merged folder"
                )
