"""Which types of the KV cache a version keeps on a card: one row for each back end of attention and what it reads.

Sources: `supported_kv_cache_dtypes`, `supports_kv_cache_dtype`, `supports_compute_capability`, `get_supported_head_sizes` of
`v1/attention/backends/*.py` (0.11–0.33; back ends are chosen by what they support from 0.12 on), `config/cache.py:CacheDType` (first
versions), `layers/attention/attention.py` (e5m2 beside checkpoints). FP8 caches on compute capability 8.6 were seen to serve in 0.24 and
0.27 (noonghunna/club-3090#594, mitchross/talos-argocd-proxmox#1995).
"""

from __future__ import annotations

from collections.abc import Iterator

from passes.errors import Reason
from passes.formats.kv_dtypes import OWN
from passes.ir.model import ModelIR
from passes.ir.state import FullKV, LatentKV
from passes.record import dataclass
from targets.engines.vllm.rules.checkpoint_cache import index_dim
from targets.engines.vllm.rules.versions import ALWAYS, NEVER, Rules, Version, said


@dataclass(frozen=True, slots=True)
class Backend:
    """A back end keeps `dtypes` from version `since` to before `until`, on compute capability × 10 from `least` to `most`.

    `heads`: sizes of a head that it has, all where empty. `latent`: for latent (MLA) caches instead of keys and values; `picks`: attention
    that picks tokens alone. `sinks`: whether it takes attention sinks (gpt-oss).
    """

    name: str
    dtypes: tuple[str, ...]
    since: Version = ALWAYS
    until: Version = NEVER
    least: int = 0
    most: int = 999
    heads: tuple[int, ...] = ()
    latent: bool = False
    picks: bool = False
    sinks: bool = True


_INFER_HEADS = (64, 128, 256, 512)
BACKENDS = (
    Backend("FlashAttention 3", ("fp8",), since=(0, 8, 0), least=90, most=90),
    Backend("FlashInfer", ("fp8", "fp8_e5m2"), since=(0, 12, 0), least=80, most=99, heads=_INFER_HEADS, sinks=False),
    Backend("FlashInfer", ("fp8", "fp8_e5m2"), least=100, most=121, heads=_INFER_HEADS),
    Backend("FlashInfer", ("nvfp4",), since=(0, 20, 0), least=100, most=109, heads=_INFER_HEADS),
    Backend("FlashInfer", ("nvfp4",), since=(0, 32, 0), least=80, most=129, heads=_INFER_HEADS[1:], sinks=False),
    Backend("FlashInfer", ("nvfp4_4over6",), since=(0, 28, 0), least=100, most=109, heads=_INFER_HEADS),
    Backend("Triton", ("fp8",), least=89),
    Backend("Triton", ("fp8_e5m2",), until=(0, 32, 0)),
    Backend("Triton", ("fp8_e5m2",), since=(0, 32, 0), least=89),
    Backend("Triton", ("int8_per_token_head",), since=(0, 20, 0)),
    Backend("Triton", ("fp8_per_token_head",), since=(0, 20, 0), least=89),
    Backend("Triton", ("int4_per_token_head",), since=(0, 25, 0)),
    Backend("every back end", ("bfloat16",), since=(0, 11, 0), least=80),
    Backend("every back end", ("float16",), since=(0, 18, 0)),
    Backend("Triton MLA", ("fp8",), least=89, latent=True),
    Backend("every MLA back end", ("bfloat16",), since=(0, 11, 0), least=80, latent=True),
    Backend("every MLA back end", ("float16",), since=(0, 18, 0), latent=True),
    Backend("FlashMLA sparse", ("fp8_ds_mla",), since=(0, 11, 0), least=90, most=109, latent=True, picks=True),
    Backend("FlashInfer MLA sparse", ("fp8_ds_mla",), since=(0, 24, 0), least=120, most=129, latent=True, picks=True),
    Backend("FlashMLA sparse", ("nvfp4_ds_mla",), since=(0, 30, 0), least=100, most=109, latent=True, picks=True),
)
#: `quant_method`s of checkpoints whose readers have scales of the cache, beside which e5m2 is refused.
_SCALED = ("fp8", "modelopt")


@dataclass(frozen=True, slots=True)
class _Asked:
    dtype: str
    capability: int
    version: Version
    head: int
    latent: bool
    picks: bool
    sinks: bool


def cache_type_reasons(ir: ModelIR, capability: int, rules: Rules) -> Iterator[Reason]:
    """Say why no back end of a version keeps the cache's type for this model on a card of this capability × 10."""
    dtype = ir.kv_cache.dtype
    if dtype == OWN:
        return
    rows = [row for row in BACKENDS if dtype in row.dtypes]
    if not rows:
        yield Reason("kv_dtype_not_in_vllm", f"vLLM keeps no KV cache in {dtype}", "fp8")
        return
    for asked in _asked(ir, dtype, capability, rules):
        if dtype == "fp8_e5m2" and asked.latent:
            yield Reason("e5m2_kv_not_latent", "vLLM keeps latent (MLA) caches in e4m3 or unquantized", "KV cache fp8")
            return
        lacks = [_lacks(row, asked) for row in rows]
        if all(lacks):
            version = f"vLLM {rules.said}"
            _, sentence = max((lack for lack in lacks if lack), key=lambda lack: lack[0])
            message = f"{version} keeps no {dtype} cache for {ir.name} on compute capability {capability / 10:.1f}: {sentence}"
            yield Reason("kv_dtype_without_backend", message, _remedy(rows, asked))
            return


def _asked(ir: ModelIR, dtype: str, capability: int, rules: Rules) -> Iterator[_Asked]:
    picks = index_dim(ir) > 0
    for block, _ in ir.decoder.counts:
        state, sinks = block.state, any(tensor.name.endswith("sinks") for tensor in block.tensors)
        if isinstance(state, FullKV):
            yield _Asked(dtype, capability, rules.version, state.head_dim, False, False, sinks)
        elif isinstance(state, LatentKV):
            yield _Asked(dtype, capability, rules.version, 0, True, picks, sinks)


def _lacks(row: Backend, asked: _Asked) -> tuple[int, str] | None:
    """The first thing that a back end lacks: how near it came, and a sentence; None where it keeps the cache."""
    if row.latent != asked.latent:
        return 0, f"{row.name} keeps {'latent' if row.latent else 'no latent'} caches" + (" only" if row.latent else "")
    if row.picks and not asked.picks:
        return 0, f"{row.name} is for attention that picks tokens by an indexer (DeepSeek V3.2)"
    if asked.capability < row.least:
        return 1, f"{row.name} keeps it from {row.least / 10:g} on"
    if asked.capability > row.most:
        return 1, f"{row.name} keeps it up to {row.most / 10:g}"
    if asked.version < row.since:
        return 2, f"{row.name} keeps it from vLLM {said(row.since)} on"
    if asked.version >= row.until:
        return 2, f"{row.name} kept it before vLLM {said(row.until)}"
    if row.heads and asked.head not in row.heads:
        return 3, f"{row.name} has heads of {', '.join(map(str, row.heads))}, not of {asked.head}"
    if asked.sinks and not row.sinks:
        return 4, f"{row.name} takes no attention sinks there"
    return None


def _remedy(rows: list[Backend], asked: _Asked) -> str:
    later = sorted(row.since for row in rows if row.since > asked.version and row.least <= asked.capability <= row.most)
    pinned = [f'vLLM {said(since)} or newer (engine: {{name: vllm, version: "{said(since)}"}})' for since in later[:1]]
    return ", or ".join([*pinned, "KV cache auto"])


def checkpoint_reasons(ir: ModelIR, rules: Rules) -> Iterator[Reason]:
    """Say why a version refuses an e5m2 cache beside a checkpoint: its reader has scales of the cache, which e5m2 has no use for.

    `fp8` and `modelopt` always; compressed-tensors to 0.23, and from 0.24 on where it declares a `kv_cache_scheme`.
    """
    if ir.kv_cache.dtype != "fp8_e5m2":
        return
    made = {linear.storage.quant_method for block, _ in ir.decoder.counts for linear in block.linears}
    method = ir.quant_method or next((name for name in made if name), "")
    if method.startswith(_SCALED):
        yield Reason("e5m2_kv_with_fp8_checkpoint", "vLLM keeps no e5m2 cache beside an FP8 checkpoint", "KV cache fp8")
    elif method in ("compressed-tensors", "compressed_tensors"):
        declared = ir.kv_cache.scales or ir.kv_cache.declared is not None
        if declared or rules.version < (0, 24, 0):
            why = "that declares a kv_cache_scheme" if declared else "before 0.24"
            message = f"vLLM {rules.said} keeps no e5m2 cache beside a compressed-tensors checkpoint {why}"
            yield Reason("e5m2_kv_with_compressed_tensors", message, "KV cache fp8, or auto")
