"""Already quantized checkpoints: which matrices `quantization_config` says are stored how.

Where there are headers they decide in the end (`passes.ir.readers.reconcile`); without them this is what the config amounts to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from passes.errors import InputError
from passes.formats.format import Format
from passes.ir.fields import Fields
from passes.ir.model import Block, Linear, ModelIR, Role
from passes.ir.quant_config.kv_scheme import declared_cache
from passes.ir.quant_config.module_names import Matches, left_dense
from passes.ir.quant_config.quant_config import StorageOf, fields_of, quant_config


def quantization(config: Mapping[str, Any], name: str) -> tuple[str, Mapping[str, Any]] | None:
    """Find the quantization method of a checkpoint and its settings; None for a dense one."""
    root = Fields(config, name, "config.json")
    for part in (root, root.inside("text_config", {})):
        for field in ("quantization_config", "compression_config", "hf_quant_config"):
            if part.has(field):
                found = part.inside(field)
                # ModelOpt's own file keeps most of it one level down.
                inner = {**found.values, **found.mapping("quantization", {})}
                if not (method := found.text("quant_method", "modelopt" if "quant_algo" in inner else "")):
                    raise InputError(
                        f"{field} names no quant_method", remedy="Name the dense model, or mend its config.json."
                    )
                return method, inner
    return None


def quantized(ir: ModelIR) -> ModelIR:
    """Store every matrix of a description as the config's quantization says. Raises InputError on a scheme not known."""
    found = quantization(ir.config, ir.name)
    if found is None:
        return ir
    method, settings = found
    notes: list[str] = []
    config = quant_config(method, ir)
    dense = left_dense(fields_of(settings, ir), config.leaves, notes)
    storage_of, experts = config.read(settings, ir), config.experts(settings, ir)

    def forms(block: Block, prefix: str) -> tuple[Format | None, ...]:
        """Name what the matrices of a layer are stored in; None for those that stay as they are."""
        if experts is None:
            return tuple(_form(linear, storage_of, dense, prefix) for linear in block.linears)
        of_banks: StorageOf = lambda _: experts  # noqa: E731
        return tuple(
            _form(linear, of_banks if linear.copies > 1 else storage_of, lambda _: False, prefix)
            for linear in block.linears
        )

    stacks = []
    for stack in ir.stacks:
        if stack.name not in ("decoder", "mtp"):
            stacks.append(stack)
            continue
        layers = range(len(stack.layers))
        if config.tells_layers_apart(settings):
            blocks = [_stored(stack.block(i), forms(stack.block(i), stack.layer_prefix(i))) for i in layers]
        else:
            first = {stack.layers[i]: i for i in reversed(layers)}
            classes = {
                index: _stored(stack.block(i), forms(stack.block(i), stack.layer_prefix(i)))
                for index, i in first.items()
            }
            blocks = [classes[index] for index in stack.layers]
        if notes:
            blocks = [_alike(block, stack.block(i)) for i, block in enumerate(blocks)]
        stacks.append(stack.with_blocks(tuple(blocks)))
    outer = ir.outer
    if config.stores_head(settings, ir):
        outer = tuple(_stored_head(linear, storage_of) if linear.role is Role.HEAD else linear for linear in outer)
    return replace(
        ir, stacks=tuple(stacks), outer=outer, quant_method=method, notes=(*ir.notes, *notes),
        kv_cache=replace(ir.kv_cache, declared=declared_cache(settings)),
    )  # fmt: skip


def _alike(block: Block, dense: Block) -> Block:
    """A layer whose fused matrices are left dense as one: a list that was cut short may name some of their parts only."""
    cut = {linear.agree for linear in block.linears if linear.quantizable and not linear.storage.is_quantized}
    before = {linear.name: linear for linear in dense.linears}
    return block.map_linears(lambda linear: before[linear.name] if linear.agree and linear.agree in cut else linear)


def _stored_head(head: Linear, storage_of: StorageOf) -> Linear:
    storage = storage_of(head.name)
    legal = storage is not None and storage.illegal(head.out_features, head.in_features) is None
    return replace(head, storage=storage) if storage is not None and legal else head


@lru_cache(maxsize=1 << 10)
def _stored(block: Block, forms: tuple[Format | None, ...]) -> Block:
    """A layer with its matrices in these formats; most layers of a model share theirs."""
    linears = zip(block.linears, forms, strict=True)
    return block.replace(
        linears=tuple(linear if form is None else replace(linear, storage=form) for linear, form in linears)
    )


def _form(linear: Linear, storage_of: StorageOf, dense: Matches, prefix: str) -> Format | None:
    if not linear.quantizable or linear.role in (Role.HEAD, Role.EMBEDDING) or linear.storage.is_quantized:
        return None
    parts = linear.stacking.parts if linear.stacking else ((linear.name, linear.out_features),)
    names = [prefix + part.replace("{e}", "0") for part, _ in parts]
    whole = [prefix + linear.stacking.tensor] if linear.stacking else []
    if any(dense(name) for name in (*names, *whole)):
        return None
    storage = storage_of(names[0])
    return None if storage is None or any(storage.illegal(rows, linear.in_features) for _, rows in parts) else storage
