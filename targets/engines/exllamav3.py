"""ExLlamaV3: EXL3 and fp16 checkpoints on NVIDIA cards; caches FP16 or 2–8 bits (`exllamav3/cache/quant.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from targets.engines.exllama import Exllama, quantized_cache


class ExllamaV3(Exllama):
    """ExLlamaV3 as served by TabbyAPI."""

    name: ClassVar[str] = "exllamav3"
    cache_bits: ClassVar[Mapping[str, float]] = {"auto": 16.0} | quantized_cache({f"q{b}": b for b in range(8, 1, -1)})
    formats: ClassVar[tuple[str, ...]] = ("exl3",)
    format_remedy: ClassVar[str] = "exl3"
    recurrent: ClassVar[bool] = True
    capability: ClassVar[int] = 80

    def known_versions(self) -> tuple[str, ...]:
        """The line whose cache layout was read."""
        return ("0.0",)
