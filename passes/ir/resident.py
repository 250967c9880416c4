"""Describes a model as an engine holds it that quantizes while loading."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from passes.formats.at_load import resident
from passes.ir.model import Block, Linear, ModelIR


def resident_model(ir: ModelIR) -> ModelIR:
    """The description of what the engine holds: `ir` itself without a load-time scheme. For memory and speed, not for files."""
    if ir.load_time.name == "none":
        return ir
    return ir.with_decoder(ir.decoder.map_blocks(lambda block: _held(block, ir.load_time.name)))


@lru_cache(maxsize=1 << 12)
def _held(block: Block, scheme: str) -> Block:
    def hold(linear: Linear) -> Linear:
        return replace(linear, storage=resident(scheme)) if linear.quantizable else linear

    return block.map_linears(hold)
