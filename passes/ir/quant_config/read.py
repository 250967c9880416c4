"""Already quantized checkpoints: which matrices `quantization_config` says are stored how.

Where there are headers they decide in the end (`passes.ir.readers.reconcile`); without them this is what the config amounts to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from passes.errors import InputError
from passes.ir.fields import Fields
from passes.ir.model import Linear, ModelIR, Role
from passes.ir.quant_config.kv_scheme import declared_cache
from passes.ir.quant_config.module_names import Matches, left_dense
from passes.ir.quant_config.quant_config import StorageOf, fields_of, quant_config


def quantization(config: Mapping[str, Any], name: str) -> tuple[str, Mapping[str, Any]] | None:
    """The quantization method of a checkpoint and its settings; None for a dense one."""
    root = Fields(config, name, "config.json")
    for part in (root, root.inside("text_config", {})):
        for field in ("quantization_config", "compression_config", "hf_quant_config"):
            if part.has(field):
                found = part.inside(field)
                inner = found.mapping("quantization", found.values)
                if not (method := found.text("quant_method", "modelopt" if "quant_algo" in inner else "")):
                    raise InputError(
                        f"{field} names no quant_method", remedy="Name the dense model, or mend its config.json."
                    )
                return method, inner
    return None


def quantized(ir: ModelIR) -> ModelIR:
    """The description with every matrix stored as the config's quantization says. Raises InputError on a scheme not known."""
    found = quantization(ir.config, ir.name)
    if found is None:
        return ir
    method, settings = found
    notes: list[str] = []
    config = quant_config(method, ir)
    dense = left_dense(fields_of(settings, ir), config.leaves, notes)
    storage_of, experts = config.read(settings, ir), config.experts(settings, ir)

    def change(prefix: str) -> Callable[[Linear], Linear]:
        def store(linear: Linear) -> Linear:
            if experts is None:
                return _stored(linear, storage_of, dense, prefix)
            return _stored(linear, (lambda _: experts) if linear.copies > 1 else storage_of, lambda _: False, prefix)

        return store

    stacks = []
    for stack in ir.stacks:
        if stack.name not in ("decoder", "mtp"):
            stacks.append(stack)
            continue
        blocks = [stack.block(i).map_linears(change(stack.layer_prefix(i))) for i in range(len(stack.layers))]
        stacks.append(stack.with_blocks(tuple(blocks)))
    cache = replace(ir.kv_cache, declared=declared_cache(settings))
    return replace(ir, stacks=tuple(stacks), quant_method=method, kv_cache=cache, notes=(*ir.notes, *notes))


def _stored(linear: Linear, storage_of: StorageOf, dense: Matches, prefix: str) -> Linear:
    if not linear.quantizable or linear.role in (Role.HEAD, Role.EMBEDDING) or linear.storage.is_quantized:
        return linear
    parts = linear.stacking.parts if linear.stacking else ((linear.name, linear.out_features),)
    names = [prefix + part.replace("{e}", "0") for part, _ in parts]
    whole = [prefix + linear.stacking.tensor] if linear.stacking else []
    if any(dense(name) for name in (*names, *whole)):
        return linear
    storage = storage_of(names[0])
    if storage is None or any(storage.illegal(rows, linear.in_features) for _, rows in parts):
        return linear
    return replace(linear, storage=storage)
