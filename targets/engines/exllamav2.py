"""ExLlamaV2: EXL2, GPTQ and fp16 checkpoints on NVIDIA cards; caches FP16, Q8, Q6, Q4 (`exllamav2/cache.py`, 0.3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from targets.engines.exllama import Exllama, quantized_cache


class ExllamaV2(Exllama):
    """ExLlamaV2 as served by TabbyAPI."""

    name: ClassVar[str] = "exllamav2"
    cache_bits: ClassVar[Mapping[str, float]] = {"auto": 16.0} | quantized_cache({"q8": 8, "q6": 6, "q4": 4})
    formats: ClassVar[tuple[str, ...]] = ("exl2", "exl2-bounded", "gptq")
    format_remedy: ClassVar[str] = "exl2 or gptq"
    recurrent: ClassVar[bool] = False
    capability: ClassVar[int] = 75

    def known_versions(self) -> tuple[str, ...]:
        """The last release; its accounting did not change over the 0.2 and 0.3 lines."""
        return ("0.2", "0.3.2")
