"""The KV-cache pass: how an engine keeps keys and values, and the scales that a checkpoint may bring for fp8.

Calibrated scales are per layer and per tensor: scale = max |x| / 448 (largest e4m3 value), so that the largest key and
value of the calibration text just fit. Names and shape as compressed-tensors' `kv_cache_scheme` and vLLM 0.32 read them:
`<attention>.k_scale`, `<attention>.v_scale`, one element each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from passes.base import NATIVE, Pass, Stage
from passes.errors import Reason
from passes.formats.kv_dtypes import NAMES
from passes.formats.tensor import Tensor
from passes.ir.distortions import CacheRounding, Distortion
from passes.ir.model import Block, ModelIR
from passes.record import dataclass, replace
from passes.walk.kv_scales import attention_name


@dataclass(frozen=True)
class KVCachePass(Pass):
    """Keep the KV cache in `dtype`. With `scales`, calibrated per-layer fp8 scales go into the checkpoint."""

    name: ClassVar[str] = "kv_cache"
    stage: ClassVar[Stage] = Stage.KV_CACHE
    dtype: str = "auto"
    scales: bool = False

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Refuse unknown dtypes, scales for anything but e4m3, scales in a checkpoint whose loader ignores them."""
        if self.dtype not in NAMES:
            return (Reason("unknown_kv_dtype", f"no KV-cache type {self.dtype!r}", f"one of {', '.join(NAMES)}"),)
        if not self.scales:
            return ()
        if self.dtype != "fp8":
            return (
                Reason(
                    "kv_scales_need_fp8",
                    f"calibrated scales exist for fp8 (e4m3), not for {self.dtype}",
                    "scales: false",
                ),
            )
        forms = {linear.storage for block, _ in ir.decoder.counts for linear in block.linears}
        odd = sorted({form.kind for form in forms if not form.carries_kv_scales})
        if odd:
            return (
                Reason(
                    "kv_scales_need_compressed_tensors",
                    f"{odd[0]} checkpoints cannot carry k_scale/v_scale",
                    "scales: false",
                ),
            )
        if not any(attention_name(block) for block, _ in ir.decoder.counts):
            return (Reason("no_kv_cache", f"{ir.name} has no layer with a key/value cache", "kv_cache: auto"),)
        return ()

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Return the cache's kind, and two scalars a caching layer when scales are stored."""
        out = replace(ir, kv_cache=replace(ir.kv_cache, dtype=self.dtype, scales=self.scales))
        return out.with_decoder(out.decoder.map_blocks(_with_scales)) if self.scales else out

    def conflict(self, chain: Sequence[Pass]) -> Reason | None:
        """Refuse scales beside an outside tool: they are found in the walk."""
        tool = next((pass_.backend for pass_ in chain if pass_.backend != NATIVE), None)
        if tool is None or not self.scales:
            return None
        message = f"cache scales are found in the native walk, not by {tool}"
        return Reason("backend_no_kv_scales", message, "backend: native")

    def distortions(self, ir: ModelIR) -> tuple[Distortion, ...]:
        """Return the type of the cache."""
        return (CacheRounding(self.dtype),)

    def title(self) -> str:
        """Return `KV cache fp8 with scales`."""
        return f"KV cache {self.dtype}" + (" with scales" if self.scales else "")

    @property
    def load_time(self) -> bool:
        """Without stored scales only the engine acts on it."""
        return not self.scales


def _with_scales(block: Block) -> Block:
    name = attention_name(block)
    if name is None:
        return block
    return block.replace(
        tensors=(*block.tensors, Tensor(f"{name}k_scale", "F32", (1,)), Tensor(f"{name}v_scale", "F32", (1,)))
    )
