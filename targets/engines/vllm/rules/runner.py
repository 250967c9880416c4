"""Which of vLLM's two model runners runs a model: they profile, sample and subtract differently.

Sources: `config/vllm.py` of the versions that `Rules.v2_runner` names (`use_v2_model_runner`, `_is_default_v2_model_runner_model`).
"""

from __future__ import annotations

from passes.ir.model import ModelIR, remembered
from passes.ir.state import Recurrent
from targets.engines.vllm.rules.versions import Rules

_QWEN3 = frozenset({"Qwen3ForCausalLM"})
_THREE = _QWEN3 | {"LlamaForCausalLM", "MistralForCausalLM"}
#: Classes that V2 runs whatever they are made of.
_EXPERTS = frozenset({"DeepseekV2ForCausalLM", "Qwen2MoeForCausalLM", "GraniteMoeForCausalLM"})
_NAMED_SINCE = (
    ((0, 26, 0), frozenset({"InklingForCausalLM", "InklingForConditionalGeneration", "LongcatFlashNgramForCausalLM"})),
    ((0, 27, 0), frozenset({"KimiK3ForConditionalGeneration"})),
    ((0, 28, 0), frozenset({"DeepseekV4ForCausalLM"})),
)


@remembered
def uses_v2_runner(ir: ModelIR, rules: Rules) -> bool:
    """Return whether Model Runner V2 runs the model by default."""
    match rules.v2_runner:
        case "all":
            return True
        case "dense":
            return ir.architecture in named_classes(rules) or not (ir.has_experts or has_states(ir))
        case "named":
            return ir.architecture in named_classes(rules)
        case "three" | "qwen3":
            return ir.architecture in named_classes(rules) and not _quantized(ir)
    return False


def named_classes(rules: Rules) -> frozenset[str]:
    """Return the classes that a version names for V2 (`DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES`); where it runs all, none."""
    match rules.v2_runner:
        case "dense":
            return _EXPERTS.union(*(names for since, names in _NAMED_SINCE if rules.version >= since))
        case "named":
            return _THREE | _EXPERTS
        case "three":
            return _THREE
        case "qwen3":
            return _QWEN3
    return frozenset()


def subtracts_graphs(ir: ModelIR, rules: Rules) -> bool:
    """Return whether an estimate of CUDA graphs is taken from the budget before the cache gets its memory."""
    return rules.graphs_v2 if uses_v2_runner(ir, rules) else rules.graphs_v1


def has_states(ir: ModelIR) -> bool:
    """Return whether a block keeps a state of constant size (Mamba, gated delta nets)."""
    return any(isinstance(block.state, Recurrent) for block, _ in ir.decoder.counts)


def _quantized(ir: ModelIR) -> bool:
    return any(linear.storage.is_quantized for block, _ in ir.decoder.counts for linear in block.linears)
