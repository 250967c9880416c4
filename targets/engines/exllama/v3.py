"""ExLlamaV3: EXL3 and fp16 checkpoints on NVIDIA cards; caches FP16 or 2–8 bits (`exllamav3/cache/quant.py`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from passes.errors import Reason
from passes.ir.architectures.config import Config
from passes.ir.model import ModelIR
from passes.ir.state import LayerState, Recurrent, SlidingKV
from targets.engines.engine import AnyWidth, Settings
from targets.engines.exllama.engine import (
    PAGE,
    Exllama,
    architecture_of,
    architecture_reasons,
    cache_types,
    placement_reasons,
)
from targets.gpu import Gpu

#: The values of `architectures` that 1.6.5 has a model for (`ARCHITECTURES` in exllamav3/architecture/architectures.py).
ARCHITECTURES = frozenset({
    "AfmoeForCausalLM", "ApertusForCausalLM", "ArceeForCausalLM", "BailingMoeV3ForCausalLM", "Cohere2ForCausalLM",
    "CohereForCausalLM", "DFlash2DraftModel", "DFlashDraftModel", "DFlashLagunaForCausalLM", "DeciLMForCausalLM",
    "DeepseekV3ForCausalLM", "DeepseekV4ForCausalLM", "Dots1ForCausalLM", "Ernie4_5_ForCausalLM", "Ernie4_5_MoeForCausalLM",
    "Exaone4ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", "Gemma4AssistantForCausalLM",
    "Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration", "Glm4ForCausalLM", "Glm4MoeForCausalLM",
    "Glm4MoeLiteForCausalLM", "Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration", "Glm5NextForConditionalGeneration",
    "GlmMoeDsaForCausalLM", "GptOssForCausalLM", "HCXVisionV2ForCausalLM", "HYV3ForCausalLM", "HyperCLOVAXForCausalLM",
    "IQuestCoderForCausalLM", "KimiLinearForCausalLM", "LagunaForCausalLM", "Lfm2ForCausalLM", "Lfm2MoeForCausalLM",
    "Lfm2VlForConditionalGeneration", "LlamaForCausalLM", "MiMoForCausalLM", "MiMoV2ForCausalLM", "MiniMaxM2ForCausalLM",
    "Ministral3ForCausalLM", "Mistral3ForConditionalGeneration", "MistralForCausalLM", "MixtralForCausalLM",
    "MuseGlimmerAssistantModel", "MuseGlimmerForConditionalGeneration", "NemotronHForCausalLM", "NemotronH_Omni_Reasoning_V3",
    "Olmo3ForCausalLM", "OlmoHybridForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen2_5_VLForConditionalGeneration",
    "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Qwen3NextForCausalLM", "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration", "Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration", "Qwen4ExpForConditionalGeneration", "SeedOssForCausalLM", "SmolLM3ForCausalLM",
    "SolarOpenForCausalLM", "Spark2_5ForCausalLM", "Step3p5ForCausalLM", "Step3p7ForConditionalGeneration",
})  # fmt: skip


#: Whose layers with a window keep a ring in fp16 for each slot, unless `swa_full` is set (`SlidingAttention` in modules/sliding_attn.py);
#: others' keep the whole context in pages.
_RINGS = frozenset({
    "AfmoeForCausalLM", "Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration", "GptOssForCausalLM",
    "LagunaForCausalLM", "MiMoV2ForCausalLM", "MuseGlimmerForConditionalGeneration", "Spark2_5ForCausalLM",
    "Step3p5ForCausalLM", "Step3p7ForConditionalGeneration",
})  # fmt: skip
#: Tokens a ring holds beside its window (`sliding_window_overp`), rows of a recurrent state a slot (modules/gated_delta_net.py).
_RING_MARGIN, _STATE_ROWS = 2 * PAGE, 2


class ExllamaV3(Exllama):
    """ExLlamaV3 as served by TabbyAPI."""

    name: ClassVar[str] = "exllamav3"
    unmeasured: ClassVar[str | None] = "no measurement of ExLlamaV3's speed is held"
    any_width: ClassVar[AnyWidth | None] = AnyWidth("exl3", 1.0, 8.0)
    cache_bits: ClassVar[Mapping[str, float]] = cache_types(range(8, 1, -1))
    formats: ClassVar[tuple[str, ...]] = ("exl3",)
    format_remedy: ClassVar[str] = "exl3"
    served_by: ClassVar[str] = "TabbyAPI's branch main, with exllamav3 0.0.7 or newer"
    recurrent: ClassVar[bool] = True
    capability: ClassVar[int] = 80

    def slot_bytes(self, ir: ModelIR, state: LayerState) -> int | None:
        """Return the bytes of recurrent states, and of windows of the architectures that keep those in rings; both in 16 bit whatever the
        cache's type.
        """
        if isinstance(state, Recurrent):
            return 2 * sum(
                math.prod(part.shape) * (1 if part.name.startswith("conv") else _STATE_ROWS) for part in state.parts
            )
        if isinstance(state, SlidingKV) and architecture_of(ir) in _RINGS:
            return math.ceil((state.window + _RING_MARGIN) / PAGE) * PAGE * state.elements_per_token * 2
        return None

    def cache_mode(self, dtype: str) -> str:
        """Name the cache's type: FP16, or a pair of bits for keys and values."""
        bits = dtype.removeprefix("q")
        return "FP16" if dtype == "auto" else f"{bits},{bits}"

    def known_versions(self) -> tuple[str, ...]:
        """Return the line whose cache layout was read."""
        return ("0.0",)

    def illegal(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> tuple[Reason, ...]:
        """Refuse what ExLlama does, architectures that it has no model for, and layers of a kind that it expects elsewhere."""
        unread = architecture_reasons(self.name, ARCHITECTURES, ir, "engine vllm")
        return (*super().illegal(ir, gpu, settings), *unread, *self._placement_reasons(ir))

    def _placement_reasons(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Gemma 2's windows and Qwen3-Next's delta nets stand by number (`idx % 2` in gemma2.py, the interval in qwen3_next.py)."""
        architecture = architecture_of(ir)
        if architecture == "Gemma2ForCausalLM":
            return placement_reasons(self.name, ir, SlidingKV, lambda layer: layer % 2 == 0)
        if architecture == "Qwen3NextForCausalLM":
            every = Config(ir.config, ir.name).integer("full_attention_interval", default=4)
            return placement_reasons(self.name, ir, Recurrent, lambda layer: (layer + 1) % every != 0)
        return ()
