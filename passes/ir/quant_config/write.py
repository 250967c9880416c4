"""`quantization_config` of config.json, from the description of the finished model: what engines read to load a checkpoint."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from passes.errors import TightfitError
from passes.formats.awq import Awq
from passes.formats.compressed_tensors import FloatQuantized, IntQuantized, PackQuantized
from passes.formats.dense import Dense
from passes.formats.format import Format
from passes.formats.fp4 import Mxfp4, Nvfp4
from passes.formats.gptq import Gptq
from passes.ir.model import ModelIR
from passes.ir.quant_config.gptq_rules import rules

_COMPRESSED = (PackQuantized, IntQuantized, FloatQuantized, Nvfp4, Mxfp4)


@dataclass(frozen=True)
class _Stored:
    """One matrix (`{e}`: of every expert) under the name it has on disk."""

    prefix: str
    name: str
    form: Format
    quantizable: bool


def quantization_config(ir: ModelIR) -> dict[str, Any] | None:
    """The `quantization_config` of a model whose matrices are stored as `ir` says; None for a dense one without KV scales.

    Raises TightfitError where the formats of its matrices cannot stand in one checkpoint.
    """
    matrices = list(_matrices(ir))
    packed = {one.form for one in matrices if not isinstance(one.form, Dense)}
    if not packed and not ir.kv_cache.scales:
        return None
    if all(isinstance(form, _COMPRESSED) for form in packed):
        return _compressed(ir, matrices)
    if all(isinstance(form, Gptq) for form in packed):
        return _gptq(matrices)
    if len(packed) == 1 and isinstance(form := next(iter(packed)), Awq):
        return form.config()
    kinds = ", ".join(sorted({form.kind for form in packed}))
    raise TightfitError(
        f"one checkpoint cannot hold these formats together: {kinds}", remedy="choose formats of one family"
    )


def _matrices(ir: ModelIR) -> Iterator[_Stored]:
    for stack in ir.stacks:
        for layer in range(len(stack.layers)):
            prefix = stack.layer_prefix(layer)
            for linear in stack.block(layer).linears:
                apart = linear.stacking is not None and not isinstance(linear.storage, Dense)
                for part, _ in linear.stacking.parts if apart and linear.stacking else ((linear.name, 0),):
                    yield _Stored(prefix, part, linear.storage, linear.quantizable and stack.name == "decoder")
    for linear in ir.outer:
        yield _Stored("", linear.name, linear.storage, False)


def _compressed(ir: ModelIR, matrices: Sequence[_Stored]) -> dict[str, Any]:
    by_format: dict[Format, list[str]] = {}
    for one in matrices:
        by_format.setdefault(one.form, []).append(one.prefix + one.name)
    packed = {form: names for form, names in by_format.items() if isinstance(form, _COMPRESSED)}
    dense = [
        name for form, names in by_format.items() if isinstance(form, Dense) for name in names if "embed" not in name
    ]
    groups, kinds = {}, set()
    for number, (form, names) in enumerate(packed.items()):
        assert isinstance(form, _COMPRESSED)
        kinds.add(form.kind)
        targets = ["Linear"] if len(packed) == 1 else sorted(map(_target, names))
        groups[f"group_{number}"] = {"targets": targets, "format": form.kind, **form.scheme()}
    return {
        "quant_method": "compressed-tensors",
        "format": kinds.pop() if len(kinds) == 1 else ("mixed-precision" if kinds else "dense"),
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "config_groups": groups,
        "ignore": sorted({*map(_target, dense), "lm_head"}) if groups else [],
        "kv_cache_scheme": _kv_scheme() if ir.kv_cache.scales else None,
    }


def _target(name: str) -> str:
    """A matrix's name; of every expert, the pattern that their names match."""
    return "re:" + re.escape(name).replace(r"\{e\}", r"\d+") + "$" if "{e}" in name else name


def _gptq(matrices: Sequence[_Stored]) -> dict[str, Any]:
    """The settings of most matrices; rules for the others."""
    [(base, _)] = Counter(one.form for one in matrices if isinstance(one.form, Gptq)).most_common(1)
    dynamic = rules((one.prefix, one.name, one.form) for one in matrices if one.quantizable and one.form != base)
    return base.config() | ({"dynamic": dynamic} if dynamic else {})


def _kv_scheme() -> dict[str, Any]:
    """Static per-tensor e4m3 scales, `k_scale` and `v_scale` of every attention."""
    return {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False, "observer": "minmax",
        "group_size": None, "block_structure": None, "actorder": None, "observer_kwargs": {},
    }  # fmt: skip
