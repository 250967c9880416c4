"""GPTQ's settings (AutoGPTQ, GPTQModel; AutoRound writes the same): those of most matrices, and rules for the others.

The rules are `dynamic`, as GPTQModel writes it and vLLM reads it: `{"+:pattern": {"bits": 8, …}}` sets other values, `{"-:pattern": {}}`
leaves matrices dense. A pattern is matched from the start of a module's name; engines ask by the names of their own modules too, so fused
ones and whole banks of experts must match.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from passes.formats.format import Format
from passes.formats.gptq import Gptq
from passes.formats.published import Published
from passes.ir.fields import Fields
from passes.ir.model import ModelIR
from passes.ir.quant_config.patterns import compiled
from passes.ir.quant_config.quant_config import (
    NamedMatrix,
    QuantConfig,
    StorageOf,
    fields_of,
    group_size,
    not_understood,
)

#: Widths of its layout; GPTQModel stores 5 to 7 bits in planes, another one. A rule may say 16: dense.
_BITS, _PLANES = (2, 3, 4, 8), (5, 6, 7)
_MOST_BITS = 16


class GptqConfig(QuantConfig):
    """Bits, group size, zero points, order; `dynamic` where matrices differ."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """Read the settings, and what `dynamic` makes of them for a name."""
        said = fields_of(settings, ir)
        version = 2 if said.get("checkpoint_format") == "gptq_v2" else 1
        bits = said.integer("bits", at_least=1, at_most=_MOST_BITS)
        if bits in _PLANES:
            form = Published(f"planes{bits}-gptq", max(0, group_size(said)))
            return lambda _: form
        if bits not in _BITS:
            raise not_understood(ir, f"GPTQ in {bits} bits")
        base = Gptq(bits, group_size(said), said.flag("sym", default=True), said.flag("desc_act"), version)
        return format_of(base, said.inside("dynamic", {}))

    def stores_head(self, settings: Mapping[str, Any], ir: ModelIR) -> bool:
        """Read it from `lm_head`."""
        return fields_of(settings, ir).flag("lm_head")

    def write(self, ir: ModelIR, matrices: Sequence[NamedMatrix]) -> dict[str, Any]:
        """Write the settings of most matrices; rules for the others."""
        [(base, _)] = Counter(matrix.form for matrix in matrices if isinstance(matrix.form, Gptq)).most_common(1)
        others = [matrix for matrix in matrices if matrix.quantizable and matrix.form != base]
        dynamic = rules((matrix.prefix, matrix.name, matrix.form) for matrix in others)
        settings = {
            "quant_method": base.quant_method,
            "bits": base.bits,
            "group_size": base.group_size,
            "desc_act": base.desc_act,
            "sym": base.symmetric,
            "lm_head": False,
            "true_sequential": True,
            "checkpoint_format": "gptq" if base.version == 1 else "gptq_v2",
        }
        # Engines that look for quantized matrices in the files do not find there what has no tensors.
        listed = _listed(matrices) if any(matrix.absent and matrix.form == base for matrix in matrices) else []
        return (
            settings
            | ({"dynamic": dynamic} if dynamic else {})
            | ({"modules_in_block_to_quantize": listed} if listed else {})
        )

    def treats_alike(self, settings: Mapping[str, Any], ir: ModelIR, present: str, absent: str) -> bool:
        """Compare by `modules_in_block_to_quantize`, parts of names; without it engines take what the files hold."""
        listed = [name for group in settings.get("modules_in_block_to_quantize") or () for name in _flat(group)]
        return bool(listed) and any(name in present for name in listed) == any(name in absent for name in listed)

    def naming_absent(self, name: str) -> str:
        """Say that names stand in `modules_in_block_to_quantize`."""
        return f"modules_in_block_to_quantize with {name} and every other quantized matrix in quantization_config"


def _flat(group: str | Iterable[str]) -> Iterable[str]:
    return (group,) if isinstance(group, str) else group


def _listed(matrices: Sequence[NamedMatrix]) -> list[list[str]]:
    """The quantized matrices of a block by their names in it, one group for each module."""
    modules: dict[str, dict[str, None]] = {}
    for matrix in matrices:
        if isinstance(matrix.form, Gptq) and "{e}" not in matrix.name:
            modules.setdefault(matrix.name.rpartition(".")[0], {})[matrix.name] = None
    return [list(names) for names in modules.values()]


#: What engines call one module made of several.
FUSED = {
    ("q_proj", "k_proj", "v_proj"): "qkv_proj", ("gate_proj", "up_proj"): "gate_up_proj",
    ("q_a_proj", "kv_a_proj_with_mqa"): "fused_qkv_a_proj", ("in_proj_qkv", "in_proj_z"): "in_proj_qkvz",
}  # fmt: skip


def rules(others: Iterable[tuple[str, str, Format]]) -> dict[str, dict[str, Any]]:
    """Return `dynamic` for matrices in another format than most: (prefix of the layer, name in it with `{e}` for the expert, format)."""
    stems: dict[tuple[str, str, Format], list[str]] = {}
    for prefix, name, form in others:
        module, _, stem = name.rpartition(".")
        stems.setdefault((prefix, module, form), []).append(stem)
    layers: dict[tuple[str, str, Format], list[str]] = {}
    for (prefix, module, form), found in stems.items():
        *_, stack, layer = prefix.rstrip(".").split(".")
        layers.setdefault((stack, _names(module, found), form), []).append(layer)
    return dict(
        _rule(rf".*\b{re.escape(stack)}\.({'|'.join(numbers)})\.{names}$", form)
        for (stack, names, form), numbers in layers.items()
    )


def _names(module: str, stems: list[str]) -> str:
    """The pattern of matrices of one module of a layer, and of what engines make of them."""
    bank, expert, _ = module.partition(".{e}")
    if expert:
        return re.escape(bank) + r"(\..*)?"
    fused = [name for parts, name in FUSED.items() if set(parts) <= set(stems)]
    return "".join(re.escape(part) + r"\." for part in module.split(".") if part) + f"({'|'.join([*stems, *fused])})"


def _rule(pattern: str, form: Format) -> tuple[str, dict[str, Any]]:
    if isinstance(form, Gptq):
        return f"+:{pattern}", {"bits": form.bits, "group_size": form.group_size, "sym": form.symmetric}
    return f"-:{pattern}", {}


def format_of(base: Gptq, dynamic: Fields) -> Callable[[str], Gptq]:
    """Make what finds the format of a matrix by its full name: the first pattern that matches it sets other values."""
    overrides = [
        (compiled(pattern.removeprefix("+:")), _changed(base, dynamic.inside(pattern)))
        for pattern in dynamic.values
        if not pattern.startswith("-:")
    ]
    return lambda name: next((form for pattern, form in overrides if pattern.match(name)), base)


def _changed(base: Gptq, said: Fields) -> Gptq:
    return replace(
        base, bits=said.integer("bits", default=base.bits, at_least=1, at_most=_MOST_BITS),
        group_size=group_size(said, base.group_size), symmetric=said.flag("sym", default=base.symmetric),
        desc_act=said.flag("desc_act", default=base.desc_act),
    )  # fmt: skip
