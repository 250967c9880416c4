"""ExLlamaV2: EXL2, GPTQ and fp16 checkpoints on NVIDIA cards; caches FP16, Q8, Q6, Q4 (`exllamav2/cache.py`, 0.3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from passes.errors import Reason
from passes.formats.kv_dtypes import OWN
from passes.ir.architectures.config import Config
from passes.ir.model import ModelIR
from passes.ir.state import SlidingKV
from targets.engines.engine import AnyWidth, Settings
from targets.engines.exllama.engine import (
    Exllama,
    architecture_of,
    architecture_reasons,
    cache_types,
    placement_reasons,
)
from targets.gpu import Gpu

if TYPE_CHECKING:
    from targets.serve.verifier import Verifier

#: The values of `architectures` that 0.3.2 knows (`ExLlamaV2ArchParams` in exllamav2/architecture.py). Any other is loaded as a
#: Llama with a warning, so it fails on the first tensor that is missing, or computes something else.
ARCHITECTURES = frozenset({
    "Cohere2ForCausalLM", "CohereForCausalLM", "DbrxForCausalLM", "GPT2LMHeadModel", "GPTBigCodeForCausalLM", "Gemma2ForCausalLM",
    "Gemma3ForConditionalGeneration", "GemmaForCausalLM", "GemmoeForCausalLM", "Glm4ForCausalLM", "GraniteForCausalLM",
    "IndexForCausalLM", "InternLM2ForCausalLM", "LlamaForCausalLM", "MiniCPMForCausalLM", "MistralForCausalLM", "MixtralForCausalLM",
    "OrionForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Starcoder2ForCausalLM", "YiForCausalLM",
})  # fmt: skip
#: Those whose matrices 0.3.2 cannot cut over cards: their `supports_tp` is not set (exllamav2/architecture.py, commit da07fac), which
#: exllamav2/tensor_p.py:59 asserts. What routes experts is cut by no code at all (exllamav2/module.py:50).
WITHOUT_TENSOR_PARALLEL = frozenset({
    "Cohere2ForCausalLM", "CohereForCausalLM", "DbrxForCausalLM", "Gemma2ForCausalLM", "Gemma3ForConditionalGeneration",
    "GemmaForCausalLM", "GemmoeForCausalLM", "MixtralForCausalLM", "Phi3ForCausalLM", "Qwen3MoeForCausalLM",
})  # fmt: skip
#: The least capability x 10 with paged attention (flash-attn's); below it TabbyAPI sets `max_batch_size` to 1
#: (backends/exllamav2/model.py:248-270 of its branch exl2-checkpoint).
_PAGED = 80
#: Known too, where the vision tower is Pixtral's (the same file).
_WITH_PIXTRAL = frozenset({"LlavaForConditionalGeneration", "Mistral3ForConditionalGeneration"})
#: Architectures whose window 0.3.2 lays out by the layer's number (`alternating_swa`), and every how many layers one attends to
#: everything unless `sliding_window_pattern` says otherwise; 1: windows at even numbers (exllamav2/model.py).
_WINDOW_PATTERN = {"Gemma2ForCausalLM": 1, "Gemma3ForConditionalGeneration": 6, "Cohere2ForCausalLM": 1}


#: The most elements dequantized at once (`max_dq_size` in config.py), and the side of attention's scores (`max_attention_size`).
_DEQUANTIZED_MOST, _SCORES = 512 << 20, 2048
#: By how much flash attention shrinks them (`temp_attn_size` in attn.py).
_FLASH = _SCORES / 190


class ExllamaV2(Exllama):
    """ExLlamaV2 as served by TabbyAPI."""

    name: ClassVar[str] = "exllamav2"
    archived: ClassVar[str | None] = (
        "ExLlamaV2 is archived (its repository, 0.3.2 the last release) and TabbyAPI's main branch no longer serves it"
    )
    weighed_formats: ClassVar[tuple[str, ...]] = ("gptq-4-g128", "gptq-4-g64", "gptq-4-g32")
    any_width: ClassVar[AnyWidth | None] = AnyWidth("exl2", 2.0, 8.0)
    cache_bits: ClassVar[Mapping[str, float]] = cache_types((8, 6, 4))
    formats: ClassVar[tuple[str, ...]] = ("exl2", "exl2-bounded", "gptq")
    format_remedy: ClassVar[str] = "exl2 or gptq"
    served_by: ClassVar[str] = (
        "TabbyAPI's branch exl2-checkpoint (main has dropped ExLlamaV2), with exllamav2 0.2.8 to 0.3.2, its last"
    )
    recurrent: ClassVar[bool] = False
    capability: ClassVar[int] = 75

    def cache_mode(self, dtype: str) -> str:
        """Name the cache's type: FP16, Q8, Q6, Q4."""
        return "FP16" if dtype == "auto" else dtype.upper()

    def unpacked_bytes(self, ir: ModelIR, layers: int) -> float:
        """Count the bytes of one layer's cache in fp16, as long as the whole cache: a quantized one is read through it (`temp_tensors` in
        exllamav2/cache.py).
        """
        return 0.0 if ir.kv_cache.dtype == OWN else 2.0 / max(1, layers)

    def dequantized_head(self, elements: int) -> int:
        """Return the head's elements, as of any matrix (`temp_dq_size` in linear.py)."""
        return min(elements, _DEQUANTIZED_MOST)

    def attention_bytes(self, heads: int, context: int) -> tuple[float, float]:
        """Return the bytes of scores and their softmax in fp16 (`temp_attn_size` in attn.py), whole without flash attention."""
        size = 4.0 * heads * min(_SCORES, context) ** 2
        return size / _FLASH, size

    def verifier(self) -> Verifier:
        """Drive it through its package's own generator, and TabbyAPI where a checkout is named."""
        from targets.engines.exllama.verify import GeneratorVerifier

        return GeneratorVerifier(self)

    def known_versions(self) -> tuple[str, ...]:
        """Return the last release; its accounting did not change over the 0.2 and 0.3 lines."""
        return ("0.2", "0.3.2")

    def illegal(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> tuple[Reason, ...]:
        """Refuse what ExLlama does, and architectures that it would load as a Llama, or with windows on other layers."""
        known = ARCHITECTURES | (_WITH_PIXTRAL if _has_pixtral(ir) else frozenset())
        remedy = "engine vllm, or exllamav3 with exl3 weights where that reads it"
        return (
            *super().illegal(ir, gpu, settings),
            *architecture_reasons(self.name, known, ir, remedy),
            *self._window_reasons(ir),
            *_split_reasons(ir, settings),
        )

    def most_sequences(self, gpu: Gpu, settings: Settings) -> int | None:
        """Do as ExLlama; one sequence at a time on cards without paged attention."""
        return super().most_sequences(gpu, settings) if (gpu.capability or 0) >= _PAGED else 1

    def _window_reasons(self, ir: ModelIR) -> tuple[Reason, ...]:
        every = _WINDOW_PATTERN.get(architecture_of(ir))
        if every is None:
            return ()
        period = Config(ir.config, ir.name).integer("sliding_window_pattern", default=every)
        return placement_reasons(
            self.name, ir, SlidingKV, lambda layer: (layer + 1) % period != 0 if period > 1 else layer % 2 == 0
        )


def _split_reasons(ir: ModelIR, settings: Settings) -> tuple[Reason, ...]:
    architecture = architecture_of(ir)
    if settings.parallel.tp == 1 or architecture not in WITHOUT_TENSOR_PARALLEL:
        return ()
    message = f"exllamav2 cannot cut the matrices of {architecture} over cards"
    return (Reason("tensor_parallel_not_in_exllamav2", message, f"layers over the cards: --pp {settings.parallel.tp}"),)


def _has_pixtral(ir: ModelIR) -> bool:
    return Config(ir.config, ir.name).inside("vision_config", {}).text("model_type", "") == "pixtral"
