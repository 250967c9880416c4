"""Parts of a matrix that vLLM fuses and that do not agree: stored in two ways, or one of them absent and not named.

Sources: `quantization/utils/gptq_utils.py:is_layer_gptq_quantized`, `compressed_tensors/utils.py:should_ignore_layer` and
`find_matched_target`, `utils/quant_utils.py:is_layer_skipped` (0.32): some but not all parts of a fused module raises ValueError. GGUF's
parts keep a type each (`quantization/gguf.py:_create_padded_weight_param`, to 0.23; vllm-gguf-plugin 0.0.5): rows are padded to the widest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

from passes.errors import Reason
from passes.formats.opaque import GGUF, OpaqueFormat
from passes.ir.fused import absent_parts, fused
from passes.ir.model import Block, Linear, ModelIR, Role, remembered
from passes.ir.quant_config.module_names import is_whole
from passes.ir.quant_config.quant_config import fields_of, quant_config
from passes.ir.quant_config.read import quantization
from passes.ir.state import Recurrent
from targets.engines.vllm.rules.versions import Rules

_MIXER_INPUTS = (Role.MIXER_IN, Role.MIXER_GATE)


@remembered
def fused_reasons(ir: ModelIR) -> tuple[Reason, ...]:
    """Return the first fused matrix whose parts are stored in two ways, and the first absent part that a checkpoint treats otherwise."""
    found = quantization(ir.config, ir.name) if ir.quant_method is not None else None
    parts = _disagreeing(ir) if found is None or is_whole(fields_of(found[1], ir)) else ()
    absent = () if found is None else _absent(ir, *found)
    return (*islice(parts, 1), *islice(absent, 1))


def with_joined_inputs(ir: ModelIR, rules: Rules) -> ModelIR:
    """Return a gated delta net with the inputs of its mixers as parts of one matrix, where a version multiplies them so."""
    return ir.with_decoder(ir.decoder.map_blocks(_joined)) if rules.one_mixer_input else ir


@lru_cache(maxsize=1 << 10)
def _joined(block: Block) -> Block:
    if not isinstance(block.state, Recurrent) or block.state.kind != "gdn":
        return block
    return block.map_linears(
        lambda linear: replace(linear, agree="in_proj") if linear.role in _MIXER_INPUTS else linear
    )


def padded(ir: ModelIR) -> ModelIR:
    """Return a model of a GGUF file with the parts of each fused matrix in rows as long as the widest part's; any other as it is."""
    if ir.quant_method != GGUF:
        return ir
    return ir.with_decoder(ir.decoder.map_blocks(_padded))


@lru_cache(maxsize=1 << 10)
def _padded(block: Block) -> Block:
    rows = {
        member.name: max(_row_bytes(each) for each in members)
        for members in fused(block)
        for member in members
        if member.copies == 1 and len(members) > 1 and all(each.storage.is_quantized for each in members)
    }
    return block.map_linears(lambda linear: _in_rows_of(linear, rows[linear.name]) if linear.name in rows else linear)


def _row_bytes(linear: Linear) -> int:
    """Bytes of one row as the file stores it."""
    return linear.storage.bytes(linear.out_features, linear.in_features) // linear.out_features


def _in_rows_of(linear: Linear, size: int) -> Linear:
    packed = ("weight", "U8", (linear.out_features, size))
    return replace(linear, storage=OpaqueFormat(GGUF, linear.out_features, linear.in_features, (packed,)))


def _disagreeing(ir: ModelIR) -> Iterator[Reason]:
    if ir.quant_method == GGUF:
        return
    for block, _ in ir.decoder.counts:
        for members in fused(block):
            labels = sorted({linear.storage.label for linear in members})
            ways = {linear.storage.way for linear in members}
            if members[0].copies == 1 and members[0].agree and len(ways) > 1:
                names = ", ".join(linear.name.rpartition(".")[2] for linear in members)
                message = f"vLLM makes one matrix of {names}, which are stored as {' and '.join(labels)}"
                yield Reason("fused_parts_disagree", message, "one format for all of them")


def _absent(ir: ModelIR, method: str, settings: Mapping[str, Any]) -> Iterator[Reason]:
    config, decoder = quant_config(method, ir), ir.decoder
    for layer in range(len(decoder.layers)):
        for beside, name in absent_parts(decoder.block(layer)):
            prefix = decoder.layer_prefix(layer)
            if beside.storage.is_quantized and not config.treats_alike(
                settings, ir, prefix + beside.name, prefix + name
            ):
                message = (
                    f"vLLM makes one matrix of {beside.name} and {name}, and {prefix}{name} is neither in the checkpoint nor "
                    f"named by its quantization_config like {beside.name}"
                )
                yield Reason("fused_part_absent", message, config.naming_absent(name))


@remembered
def absent_note(ir: ModelIR) -> str | None:
    """Return how a checkpoint that is made here names parts that it has no tensors of."""
    names = sorted({
        name for block, _ in ir.decoder.counts for beside, name in absent_parts(block) if beside.storage.is_quantized
    })  # fmt: skip
    if ir.quant_method is not None or not names:
        return None
    return f"layers without {', '.join(names)}: quantization_config names it all the same, because vLLM fuses it with its neighbours"
