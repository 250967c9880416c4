"""Which quantizations a version of vLLM reads on which cards: one row a method, as its configs' `get_min_capability` say by version.

Sources: `model_executor/layers/quantization/*.py` and `compressed_tensors/schemes/*.py` of the releases 0.6.6–0.33.0; the versions are the
first in which a value was seen. The wheels themselves: vLLM's pull request 39878 (CUDA 13 by default, which has no Volta; 0.20).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from passes.errors import Reason
from passes.formats.format import Format
from passes.record import dataclass
from targets.engines.vllm.rules.versions import ALWAYS, NEVER, Rules, Version, at_version, said

_HALVES = frozenset({"F16", "BF16"})
_FLOATS = _HALVES | {"F32"}
#: The least compute capability × 10 that vLLM's wheels have code for, and the greatest: torch 2.6 of 0.8 comes with CUDA 12.4, Blackwell
#: needs 12.8; the wheels of 0.9 lack its 12.x (vllm-project/vllm#20748, #18995).
_WHEELS = ((ALWAYS, 70), ((0, 20, 0), 75))
_WHEELS_MOST = ((ALWAYS, 90), ((0, 9, 0), 109), ((0, 10, 0), 999))
#: The greatest that CUTLASS multiplies INT8 by INT8 on. Its kernel is taken on any card and stops beyond ("Int8 not supported on
#: SM120"), so Triton's behind it is never asked: `csrc/…/w8a8/cutlass/c3x/scaled_mm_helper.hpp`,
#: `kernels/linear/scaled_mm/cutlass.py` up to 0.33, vllm-project/vllm#54311. Experts have Triton's (`fused_moe/oracle/int8.py`).
_INT8_MOST = 90


@dataclass(frozen=True, slots=True)
class Method:
    """A way of storing matrices. `least`: the least compute capability × 10 from a version on; the first version reads it first.

    `most`: the greatest capability; experts may have `kernels_beyond`. `until`: the first version that does not read it. `plugin`: the
    first version that reads it only with a package of its own beside it, and that package's name. `dtypes`: what a model that is
    stored so may compute in.
    """

    least: tuple[tuple[Version, int], ...]
    most: int | None = None
    kernels_beyond: bool = False
    until: Version | None = None
    plugin: tuple[Version, str] | None = None
    dtypes: frozenset[str] = _HALVES


def _always(least: int, **rest: int | Version | tuple[Version, str] | frozenset[str]) -> Method:
    return Method(((ALWAYS, least),), **rest)  # type: ignore[arg-type]


#: A way of storing matrices that no version reads in checkpoints of a tool, whatever it reads elsewhere.
_NOT_READ = Method(((NEVER, 0),))
#: By the start of a format's name, else of its kernels'. `/` after it: the type of its inputs (W4A8); before it: a `quant_method`.
_METHODS: Mapping[str, Method] = {
    # compressed-tensors, by scheme
    "pack-quantized": Method(((ALWAYS, 80), ((0, 12, 0), 75)), dtypes=_FLOATS),
    "pack-quantized/fp8": Method((((0, 10, 0), 90),), most=90, dtypes=_FLOATS),
    "pack-quantized/int8": Method((((0, 26, 0), 75),), dtypes=_FLOATS),
    "int-quantized": _always(75, most=_INT8_MOST, kernels_beyond=True, dtypes=_FLOATS),
    "float-quantized": Method(((ALWAYS, 80), ((0, 16, 0), 75)), dtypes=_FLOATS),
    "nvfp4-pack-quantized": Method((((0, 9, 0), 80), ((0, 16, 0), 75)), dtypes=_FLOATS),
    "compressed-tensors/mx": Method((((0, 14, 0), 80),), dtypes=_FLOATS),
    "compressed-tensors": _always(70, dtypes=_FLOATS),
    # GPTQ and AWQ: their kernels ask for more (`kernels`)
    "gptq": _always(60),
    "auto-round": _always(60),
    # AutoRound's own floats but MX and FP8 in blocks (`INCConfig.SUPPORTED_DTYPES`, `INCFp8Scheme` of 0.32)
    "auto-round/fp8": _NOT_READ,
    "auto-round/fp8-block": Method(((ALWAYS, 80), ((0, 14, 0), 75))),
    "auto-round/nvfp4": _NOT_READ,
    "awq": _always(75),
    # 8- and 4-bit floats of publishers; below their native cards they run weight-only in Marlin kernels
    "fp8": Method(((ALWAYS, 80), ((0, 14, 0), 75))),
    "fp8-row": _always(80),
    "fbgemm_fp8": _always(80),
    "modelopt/fp8": Method(((ALWAYS, 89), ((0, 27, 0), 80))),
    "modelopt": Method((((0, 8, 0), 100), ((0, 9, 0), 80), ((0, 14, 0), 75))),
    "nvfp4-modelopt": Method((((0, 8, 0), 100), ((0, 9, 0), 80), ((0, 14, 0), 75))),
    "mx": Method((((0, 10, 0), 80),), dtypes=frozenset({"BF16"})),
    "mxfp8": Method((((0, 16, 0), 100), ((0, 20, 0), 80)), dtypes=frozenset({"BF16"})),
    # made while loading, and packages' own
    "fp8-online": Method(((ALWAYS, 80), ((0, 14, 0), 75))),
    "nf4": _always(70, plugin=((0, 28, 0), "vllm-bnb-plugin"), dtypes=_FLOATS),
    "int8-bnb": _always(70, plugin=((0, 28, 0), "vllm-bnb-plugin"), dtypes=_FLOATS),
    "bitsandbytes": _always(70, plugin=((0, 28, 0), "vllm-bnb-plugin"), dtypes=_FLOATS),
    "gguf": _always(60, plugin=((0, 24, 0), "vllm-gguf-plugin"), dtypes=_FLOATS),
    "torchao": _always(75, dtypes=_FLOATS),
    "torchao-fp8": _always(89, dtypes=_FLOATS),
    "quark": _always(70),
    "quark-int4": Method((((0, 31, 0), 70),)),
    "quark-fp8": _always(89),
    "quark-int8": _always(75, most=_INT8_MOST, kernels_beyond=True),
    "fp_quant": Method((((0, 10, 0), 100),), dtypes=frozenset({"BF16"})),
    "hqq": _always(80, until=(0, 15, 0)),
    "aqlm": _always(60, until=(0, 10, 1)),
    "ptpc_fp8": _always(94, until=(0, 19, 0)),
}  # fmt: skip


@lru_cache(maxsize=1 << 10)
def method_of(form: Format, source: str | None) -> Method | None:
    """Return how vLLM reads a format, in a checkpoint of this `quant_method`; None where it does not."""
    own, kernel = form.engine_name, form.kernel.value
    if form.told:
        if not any(form.told.startswith(key.rpartition("/")[2]) for key in _METHODS):
            return None
        own = form.told if any(f"{source}/{form.told}".startswith(key) for key in _keys(True)) else own
    names = (f"{source}/{own}", f"{form.quant_method}/{kernel}", f"{own}/{form.inputs}", own, kernel)
    found = (max(filter(name.startswith, _keys("/" in name)), key=len, default=None) for name in names)
    key = next((key for key in found if key is not None), None)
    return None if key is None else _METHODS[key]


def least_capability(method: str, rules: Rules) -> int | None:
    """Return the least compute capability × 10 of a row of the table; None where the version does not read it."""
    row = _METHODS[method]
    gone = row.until is not None and rules.version >= row.until
    return None if gone else at_version(row.least, rules.version)


def _keys(qualified: bool) -> Iterator[str]:
    return (key for key in _METHODS if ("/" in key) == qualified)


def method_reasons(
    form: Format, source: str | None, capability: int, dtype: str, rules: Rules, *, experts: bool = False
) -> Iterator[Reason]:
    """Say why a version does not read a format on a card of this capability × 10, or not in the dtype that the model computes in.

    `experts`: nothing else is stored so.
    """
    method = method_of(form, source)
    if method is None:
        remedy = "an ExLlama engine" if "exl" in form.label else "the dense model, or another format of it"
        yield Reason(f"{form.kind}_not_in_vllm", f"vLLM does not read {form.told or form.label} checkpoints", remedy)
        return
    first, newest = method.least[0][0], at_version(method.least, rules.version)
    if method is _NOT_READ:
        remedy = "the same weights exported in compressed-tensors' format (llm_compressor), or the dense model"
        yield Reason(f"{form.kind}_not_in_vllm", f"vLLM does not read {form.label} in {source} checkpoints", remedy)
    elif newest is None:
        message = f"vLLM {rules.said} does not read {form.label} yet"
        yield Reason(f"{form.kind}_not_in_vllm_yet", message, _pinned(first, "or newer"))
    elif method.until is not None and rules.version >= method.until:
        message = f"vLLM {rules.said} no longer reads {form.label}"
        yield Reason(f"{form.kind}_left_vllm", message, f"a vLLM before {said(method.until)}")
    elif capability < newest:
        yield Reason(
            f"{form.engine_name}_needs_sm{newest}",
            f"{form.label} needs a card of compute capability {_dotted(newest)} in vLLM {rules.said}; this one has {_dotted(capability)}",
            _remedy_of_card(method, capability, rules),
        )
    elif method.most is not None and capability > method.most and not (experts and method.kernels_beyond):
        cards = f"compute capability {'' if newest == method.most else 'up to '}{_dotted(method.most)}"
        message = f"vLLM runs {form.label} on cards of {cards} only; this one has {_dotted(capability)}"
        yield Reason(
            f"{form.engine_name}_ends_at_sm{method.most}", message, f"fp8 or w4a16 weights, or a card of {cards}"
        )
    elif dtype not in method.dtypes:
        known = " or ".join(sorted(name.lower() for name in method.dtypes))
        message = f"vLLM computes with {form.label} in {known}, not in {dtype.lower()}"
        yield Reason(f"{form.engine_name}_not_in_{dtype.lower()}", message, f"dtype {known}, or dense weights")


def _remedy_of_card(method: Method, capability: int, rules: Rules) -> str:
    later = next((since for since, least in method.least if since > rules.version and least <= capability), None)
    return "a newer card" if later is None else f"{_pinned(later, 'or newer')}, or a newer card"


def wheel_reasons(capability: int, rules: Rules) -> Iterator[Reason]:
    """Say why a version's wheels do not run on a card at all."""
    if capability > (at_version(_WHEELS_MOST, rules.version) or 0):
        first = next(since for since, most in _WHEELS_MOST if capability <= most)
        message = f"vLLM {rules.said} has no code for cards of compute capability {_dotted(capability)}, which it has from {said(first)} on"
        options = {"engine_version": said(first)}
        yield Reason("vllm_older_than_card", message, _pinned(first, "or newer"), options=options)
    least = at_version(_WHEELS, rules.version) or 0
    if capability >= least:
        return
    message = f"vLLM {rules.said} has code for cards of compute capability {_dotted(least)} and more; this one has {_dotted(capability)}"
    older = next((since for since, need in _WHEELS if need > capability), None)
    code = f"vllm_needs_sm{least}"
    if older is None or older == ALWAYS:
        yield Reason(code, message, "a newer card")
        return
    last = f"0.{older[1] - 1}"
    remedy = f'a vLLM before {said(older)} (engine: {{name: vllm, version: "{last}"}}), or a newer card'
    yield Reason(code, message, remedy, options={"engine_version": last})


def plugin_note(names: Iterator[str], rules: Rules) -> str | None:
    """Return what must be installed beside this version for the formats of these names."""
    for name in names:
        key = max(filter(name.startswith, _keys("/" in name)), key=len, default=None)
        plugin = _METHODS[key].plugin if key else None
        if plugin is not None and rules.version >= plugin[0]:
            return f"vLLM {said(plugin[0])} and newer read {name} through the package {plugin[1]}, which must be installed beside them"
    return None


def _pinned(version: Version, rest: str) -> str:
    return f'vLLM {said(version)} {rest} (engine: {{name: vllm, version: "{said(version)}"}})'


def _dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"
