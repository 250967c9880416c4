"""compressed-tensors: config groups, each with the matrices that it is for; scales of the KV cache."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from passes.formats.compressed_tensors.config_group import CompressedTensors, ConfigGroup
from passes.formats.compressed_tensors.integers import IntQuantized
from passes.formats.format import Format, formats
from passes.formats.published import Published
from passes.ir.fields import Fields
from passes.ir.model import ModelIR, Role
from passes.ir.quant_config.module_names import Matches, is_pattern, matcher
from passes.ir.quant_config.quant_config import (
    NamedMatrix,
    QuantConfig,
    StorageOf,
    fields_of,
    group_size,
    not_understood,
)

#: In names that say of which layer a module is.
_LAYER_NAME = re.compile(r"\.\d+\.")


class CompressedTensorsConfig(QuantConfig):
    """Any of the package's formats, one config group each."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """Read the groups: those that name their matrices come before those that name a class of modules (`Linear`).

        A group without weights (of attention) stores nothing, and a checkpoint without groups may still hold scales of the cache.
        """
        said = fields_of(settings, ir)
        groups = said.inside("config_groups", {})
        if not groups.values and not said.has("kv_cache_scheme"):
            raise not_understood(ir, "compressed-tensors without config_groups")
        read = [group for name in groups.values if (group := groups.inside(name)).has("weights")]
        formats = [
            (described(read_group(group, said), ir), group.names("targets", default=()) or ["Linear"]) for group in read
        ]
        named = [
            (self.leaves(target), form) for form, targets in formats for target in targets if not _is_class(target)
        ]
        rest = next((form for form, targets in formats if any(map(_is_class, targets))), None)
        return lambda name: next((form for test, form in named if test(name)), rest)

    def leaves(self, pattern: str) -> Matches:
        """Match a plain name with that module, behind a wrapper's prefix too, and nothing below it (`compressed_tensors.utils.match`)."""
        if is_pattern(pattern):
            return matcher(pattern)
        whole = _LAYER_NAME.search(pattern) is not None
        return lambda name: name == pattern or (whole and name.endswith("." + pattern))

    def stores_head(self, settings: Mapping[str, Any], ir: ModelIR) -> bool:
        """Return whether a target names it: a class of modules does not mean it (`ParallelLMHead` is no linear layer in vLLM)."""
        groups = fields_of(settings, ir).inside("config_groups", {})
        targets = [target for name in groups.values for target in groups.inside(name).names("targets", default=())]
        heads = [linear.name for linear in ir.outer if linear.role is Role.HEAD]
        return any(self.leaves(target)(head) for target in targets if not _is_class(target) for head in heads)

    def write(self, ir: ModelIR, matrices: Sequence[NamedMatrix]) -> dict[str, Any]:
        """Write one group a format; what is dense is ignored."""
        by_format: dict[Format, list[str]] = {}
        for matrix in matrices:
            by_format.setdefault(matrix.form, []).append(matrix.prefix + matrix.name)
        quantized = {form: names for form, names in by_format.items() if isinstance(form, CompressedTensors)}
        dense = [
            name
            for form, names in by_format.items() if not form.is_quantized for name in names if "embed" not in name
        ]  # fmt: skip
        groups = {}
        for number, (form, names) in enumerate(quantized.items()):
            targets = ["Linear"] if len(quantized) == 1 else sorted(map(_target, names))
            groups[f"group_{number}"] = {"targets": targets, "format": form.kind, **form.scheme()}
        kinds = {form.kind for form in quantized}
        return {
            "quant_method": CompressedTensors.quant_method,
            "format": kinds.pop() if len(kinds) == 1 else ("mixed-precision" if kinds else "dense"),
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "config_groups": groups,
            "ignore": sorted({*map(_target, dense), "lm_head"}) if groups else [],
            "kv_cache_scheme": _kv_scheme() if ir.kv_cache.scales else None,
        }


def _is_class(target: str) -> bool:
    """Whether a target is a class of modules (`Linear`), not a module's name or a pattern."""
    return target[:1].isupper() and "." not in target


def read_group(said: Fields, settings: Fields) -> ConfigGroup:
    """Read what a config group says; the format's name may stand beside the groups."""
    weights, inputs = said.inside("weights"), said.inside("input_activations", {})
    strategy = weights.text("strategy", "")
    whole = {"channel": -1, "tensor": 0}.get(strategy)
    block = weights.counts("block_structure", 2, (128, 128) if strategy == "block" else (0, 0))
    return ConfigGroup(
        said.text("format", settings.text("format", "")), weights.text("type", "int"),
        weights.integer("num_bits", at_least=1, at_most=32),
        group_size(weights, -1) if whole is None else whole, weights.flag("symmetric", default=True),
        (block[0], block[1]) if all(block) else None, _input_type(inputs),
        bool(inputs.values) and inputs.get("dynamic") in (None, False),
    )  # fmt: skip


def _input_type(inputs: Fields) -> str:
    """What the inputs are quantized to (`int8`, `fp8`); empty where they are not."""
    if not inputs.values:
        return ""
    return f"{'fp' if inputs.text('type', 'int') == 'float' else 'int'}{inputs.integer('num_bits', default=8, at_least=1, at_most=32)}"


def described(group: ConfigGroup, ir: ModelIR) -> Format:
    """Return the format of a config group: the first whose own reader knows it. Raises InputError where none does."""
    if group.form == IntQuantized.kind and group.type == "int" and group.bits < 8:
        return Published("int-in-bytes", group.group_size)
    for form in formats():
        if issubclass(form, CompressedTensors) and (found := form.described_by(group, ir.dtype)) is not None:
            return found
    raise not_understood(ir, f"compressed-tensors {group.type}{group.bits}")


def _target(name: str) -> str:
    """A matrix's name; of every expert, the pattern that their names match."""
    return "re:" + re.escape(name).replace(r"\{e\}", r"\d+") + "$" if "{e}" in name else name


def _kv_scheme() -> dict[str, Any]:
    """Static per-tensor e4m3 scales, `k_scale` and `v_scale` of every attention."""
    return {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False, "observer": "minmax",
        "group_size": None, "block_structure": None, "actorder": None, "observer_kwargs": {},
    }  # fmt: skip
