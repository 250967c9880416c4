"""Types of the KV cache: their names, how large they are, whether they are weighed unasked.

Which engine keeps which of them, on which card, and what else it has (ExLlamaV3's odd widths) is the engines' matter.
"""

from __future__ import annotations

from collections.abc import Mapping

from passes.record import dataclass

#: The cache in the model's own numbers.
OWN = "auto"


@dataclass(frozen=True, slots=True)
class KVDtype:
    """One type. `bits`: of an element, its share of the scales of groups included; None: those of the model's own numbers.

    `aliases`: other names that users write. `weighed`: whether a plan weighs it unasked. `head_bytes`: of the scale beside each head's key,
    and each head's value, of a token. `loss`: the type whose loss was measured and stands for its own; `share`: how much of it.
    """

    name: str
    bits: float | None
    aliases: tuple[str, ...] = ()
    weighed: bool = True
    head_bytes: int = 0
    loss: str = ""
    share: float = 1.0


def integers(bits: int) -> tuple[str, float]:
    """Return the name and the bits of an element of ExLlama's integers: a 16-bit scale for 32 elements beside them.

    Source: `exllamav2/cache.py`, `exllamav3/cache/quant.py`.
    """
    return f"q{bits}", bits + 16 / 32


#: Squared error of values rounded to two bits of mantissa (a mean of 2^-4 / 12 × 0.541 over the values of a binade) against that of four
#: bits between the least and the largest of 32 Gaussian values (a step of 4.14 / 15, squared, / 12). No table holds e5m2 as vLLM rounds it.
_E5M2 = 0.44
#: Every type that a plan may choose. fp8 is e4m3; e5m2 costs more quality and is for cards without e4m3, so it is weighed where asked for.
#: vLLM's others: fp32 scales of a head (`per_token_head`), e4m3 scales of 16 elements (`nvfp4`; `nvfp4_kv_cache_full_dim` of 0.32), the
#: packed entries of attention that picks tokens (`ds_mla`; their bytes are in the engine's rules).
KV_DTYPES = (
    KVDtype(OWN, None, ("model",)),
    KVDtype("fp8", 8, ("fp8_e4m3",)),
    KVDtype("fp8_e5m2", 8, weighed=False, loss="int4_grouped", share=_E5M2),
    *(KVDtype(*integers(bits)) for bits in (8, 6, 4)),
    *(KVDtype(name, 16, weighed=False, loss=OWN) for name in ("bfloat16", "float16")),
    *(KVDtype(f"{name}_per_token_head", 8, weighed=False, head_bytes=4) for name in ("fp8", "int8")),
    KVDtype("int4_per_token_head", 4, weighed=False, head_bytes=4, loss="int4_token"),
    *(KVDtype(name, 4 + 8 / 16, weighed=False, loss="int4_grouped") for name in ("nvfp4", "nvfp4_4over6")),
    KVDtype("fp8_ds_mla", 8, weighed=False, loss="fp8"),
    KVDtype("nvfp4_ds_mla", 4 + 8 / 16, weighed=False, loss="int4_grouped"),
)
NAMES = tuple(dtype.name for dtype in KV_DTYPES)
#: Types that vLLM has besides (`config/cache.py:CacheDType` of 0.33), whose sizes or places are not modelled, and what they are for.
NOT_MODELLED: Mapping[str, str] = {
    "fp8_inc": "of Intel's Gaudi",
    **dict.fromkeys(("ultraquant_4bit", "octave_k3v4", "octave_k3v3", "octave_k3v3_compact"), "of AMD's cards"),
    **dict.fromkeys(("turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc"),
                    "of rotated keys and values in unlike bits"),
}  # fmt: skip


def kv_dtype(name: str) -> KVDtype | None:
    """Return the type of a name or an alias; None for an unknown one."""
    return next((dtype for dtype in KV_DTYPES if name == dtype.name or name in dtype.aliases), None)


def cache_bits(name: str, own: float = 16) -> float:
    """Return the bits of a cached element; `own` for the model's own numbers, and for types that only an engine knows."""
    dtype = kv_dtype(name)
    return own if dtype is None or dtype.bits is None else dtype.bits


def head_bytes(name: str) -> int:
    """Return the bytes of scales beside each head's key, and each head's value, of a token."""
    dtype = kv_dtype(name)
    return 0 if dtype is None else dtype.head_bytes


def measured_as(name: str) -> tuple[str, float]:
    """Return the type whose measured loss stands for that of this one, and how much of it."""
    dtype = kv_dtype(name)
    return (dtype.loss or name, dtype.share) if dtype else (name, 1.0)
