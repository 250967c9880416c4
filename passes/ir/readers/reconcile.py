"""Holds a description against the headers of its checkpoint: the headers win on dtypes, biases and storage.

What the description expects and the headers lack, or the headers hold and the description cannot explain, ends the reading with
an error that names the tensor. Three things are let through and said: buffers that engines compute themselves, MTP heads, and
towers of a layout that is not described (kept as they are, never quantized).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

from passes.formats.dense import Dense
from passes.formats.format import Format
from passes.formats.opaque import OpaqueFormat
from passes.formats.tensor import Tensor
from passes.ir.architectures.config import not_understood
from passes.ir.model import Block, Linear, ModelIR, Role, Stack, untied_head
from passes.ir.state import NoState

#: Buffers that engines compute themselves; older checkpoints carry them.
_IGNORED = re.compile(
    r".*\.(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias|attn\.bias|attention\.bias|position_ids|self_attention\.mask)"
)
#: Calibrated scales of the KV cache and of attention inputs.
_KV_SCALE = re.compile(r".*\.([kv]_scale|(self_)?attn\.(q|prob|output)_scale|kv_cache\.(key|value)_scale)")
_WEIGHT = re.compile(r"\.weight(?=\.|$)")
_MTP = re.compile(r"(model\.)?mtp\.|.*\.mtp_|model\.layers\.\d+\.(enorm|hnorm|eh_proj|shared_head)")
_TOWER = re.compile(
    r"(model\.)?(visual|vision|vit|audio|img_|multi_modal|mm_|embed_vision|embed_audio|patch_merge|vision_tower)"
)
_FLOATS = frozenset({"BF16", "F16", "F32"})


class Reader:
    """The header's tensors, taken out one by one as the description explains them."""

    def __init__(self, ir: ModelIR, tensors: Mapping[str, Tensor]) -> None:
        self.ir = ir
        self.left = dict(tensors)
        self.others = {tensor.name for tensor in ir.outer_tensors} | {
            stack.layer_prefix(i) + tensor.name
            for stack in ir.stacks
            for i in range(len(stack.layers))
            for tensor in stack.block(i).tensors
        }
        self.modules: dict[str, list[str]] = defaultdict(list)
        for name in tensors:
            stem = name.rpartition(".")[0]
            if name not in self.others:
                # bitsandbytes keeps its statistics below the weight (`x.weight.absmax`).
                self.modules[_WEIGHT.split(stem)[0]].append(name)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Take a tensor that must be there, with this shape."""
        found = self.left.pop(name, None)
        if found is None:
            raise not_understood(self.ir.name, f"the checkpoint lacks {name!r} {list(shape)}")
        if found.shape != shape:
            raise not_understood(self.ir.name, f"{name!r} has shape {list(found.shape)}, expected {list(shape)}")
        return found

    def linear(self, prefix: str, linear: Linear) -> Linear:
        """Read a matrix (or bank) as the headers store it."""
        if linear.stacking is not None and (whole := self._whole(prefix, linear)) is not None:
            return whole
        parts = linear.stacking.parts if linear.stacking else ((linear.name, linear.out_features),)
        found = {
            self._matrix(prefix + part.replace("{e}", str(expert)), rows, linear)
            for expert in range(linear.copies)
            for part, rows in parts
        }
        if len(found) > 1 and not (linear.stacking and len({type(form) for form, _ in found}) == 1):
            raise not_understood(
                self.ir.name, f"{prefix}{linear.name}: its {linear.copies} copies are stored differently"
            )
        storage, bias = next(iter(found))
        return replace(linear, storage=storage, bias=bias)

    def _whole(self, prefix: str, linear: Linear) -> Linear | None:
        assert linear.stacking is not None
        name = prefix + linear.stacking.tensor
        bias = self.left.pop(f"{name}_bias", None)
        if name in self.left and self.left[name].dtype not in _FLOATS:
            return replace(linear, storage=self._quantized_bank(name, linear), bias=bias.dtype if bias else None)
        if name in self.left:
            found = self.take(name, _bank_shape(linear))
            return replace(linear, storage=Dense(found.dtype), bias=bias.dtype if bias else None)
        stacked = linear.storage.stacked(name, linear.copies, linear.out_features, linear.in_features)
        if stacked is None or stacked[0].name not in self.left:
            return None
        for tensor in stacked:
            self.take(tensor.name, tensor.shape)
        return replace(linear, bias=bias.dtype if bias else None)

    def _quantized_bank(self, name: str, linear: Linear) -> Format:
        """A bank whose codes and scales are whole tensors (`gate_up_proj`, `gate_up_proj_scale_inv`)."""
        found = [self.left.pop(other) for other in list(self.left) if other == name or other.startswith(f"{name}_")]
        odd = [tensor for tensor in found if tensor.shape[:1] != (linear.copies,)]
        if odd or self.ir.quant_method is None:
            tensor = (odd or found)[0]
            raise not_understood(self.ir.name, f"{tensor.name!r} {tensor.dtype} {list(tensor.shape)} is not explained")
        parts = tuple(sorted((t.name[len(name) :], t.dtype, t.shape[1:]) for t in found))
        return OpaqueFormat(self.ir.quant_method, linear.out_features, linear.in_features, parts, bank=True)

    def _matrix(self, module: str, rows: int, linear: Linear) -> tuple[Format, str | None]:
        """The storage and bias dtype of one matrix; its tensors are taken."""
        names = [name for name in self.modules.get(module, ()) if name in self.left and not _KV_SCALE.fullmatch(name)]
        bias = self.left.get(f"{module}.bias")
        held = {name: self.left[name] for name in names if name != f"{module}.bias"}
        if not held:
            self.take(f"{module}.weight", (rows, linear.in_features))
        for name in names:
            del self.left[name]
        weight = held.get(f"{module}.weight")
        if len(held) == 1 and weight is not None and weight.dtype in _FLOATS:
            if weight.shape != (rows, linear.in_features):
                self.left[weight.name] = weight
                self.take(weight.name, (rows, linear.in_features))
            return Dense(weight.dtype), bias.dtype if bias else None
        declared = with_dtypes(linear.storage, held.values())
        if {(t.name, t.dtype, t.shape) for t in declared.tensors(module, rows, linear.in_features)} == {
            (t.name, t.dtype, t.shape) for t in held.values()
        }:
            return declared, bias.dtype if bias else None
        if self.ir.quant_method is None:
            raise not_understood(
                self.ir.name,
                f"{next(iter(held))!r} is of {next(iter(held.values())).dtype}, and config.json names no quantization",
            )
        parts = tuple(sorted((t.name[len(module) + 1 :], t.dtype, t.shape) for t in held.values()))
        found = OpaqueFormat(self.ir.quant_method, rows, linear.in_features, parts, told=declared.layout_name)
        return found, bias.dtype if bias else None

    def block(self, prefix: str, block: Block) -> Block:
        """Read a layer as the headers store it, KV scales among its tensors."""
        block = self._turned(prefix, block)
        linears = tuple(self.linear(prefix, linear) for linear in block.linears)
        tensors = tuple(
            replace(tensor, dtype=self.take(prefix + tensor.name, tensor.shape).dtype) for tensor in block.tensors
        )
        return block.replace(linears=linears, tensors=tensors)

    def _turned(self, prefix: str, block: Block) -> Block:
        """The layer with its banks the other way round where the headers have them so: newer transformers save some families thus."""

        def fits(block: Block) -> bool:
            banks = [(lin, self.left.get(prefix + lin.stacking.tensor)) for lin in block.linears if lin.stacking]
            return all(found is None or found.shape == _bank_shape(linear) for linear, found in banks)

        if fits(block):
            return block
        turned = block.map_linears(_turn)
        return turned if fits(turned) else block

    def stack(self, stack: Stack) -> Stack:
        """Read a stack as the headers store it."""
        blocks = [self.block(stack.layer_prefix(i), stack.block(i)) for i in range(len(stack.layers))]
        return stack.with_blocks(tuple(blocks))

    def present(self, stack: Stack) -> bool:
        """Tell whether the headers hold anything of a stack."""
        prefixes = tuple(stack.layer_prefix(i) for i in range(len(stack.layers)))
        return any(name.startswith(prefixes) for name in self.left)


def with_dtypes(storage: Format, tensors: Collection[Tensor]) -> Format:
    """Put the scales of a declared format in the dtype that the checkpoint stores them in; GPTQ's has `g_idx` or not."""
    scales = [
        t.dtype for t in tensors if t.name.endswith((".weight_scale", ".weight_scale_inv")) and t.dtype in _FLOATS
    ]
    stored = storage.stored_under(tensor.name for tensor in tensors)
    return stored.with_scales_in(scales[0]) if scales else stored


def reconcile(ir: ModelIR, tensors: Mapping[str, Tensor]) -> ModelIR:
    """Describe what the headers confirm: `ir.tensors()` of the result equals `tensors`, ignored buffers aside.

    Raises InputError naming the first tensor that is missing, of another shape, or unexplained.
    """
    reader, notes = Reader(ir, tensors), list(ir.notes)
    stacks = []
    for stack in ir.stacks:
        if stack.name != "mtp" or reader.present(stack):
            stacks.append(reader.stack(stack))
        else:
            notes.append("the checkpoint leaves the MTP head out")
    outer = [reader.linear("", linear) for linear in (*ir.outer, *_head_apart(ir, reader))]
    outer_tensors = [replace(t, dtype=reader.take(t.name, t.shape).dtype) for t in ir.outer_tensors]
    stacks = _with_kv_scales(stacks, reader)
    for name, pattern in (("mtp", _MTP), ("vision", _TOWER)):
        if found := [name for name in reader.left if pattern.match(name)]:
            stacks.append(_opaque(name, [reader.left.pop(tensor) for tensor in found]))
            notes.append(f"{len(found)} tensors of the {name} part are kept as they are")
    ignored = [name for name in reader.left if _IGNORED.fullmatch(name)]
    if ignored:
        notes.append(f"{len(ignored)} buffers that engines compute themselves are ignored, such as {ignored[0]}")
    unexplained = [name for name in reader.left if name not in set(ignored)]
    if unexplained:
        more = f" (and {len(unexplained) - 1} more)" if len(unexplained) > 1 else ""
        raise not_understood(ir.name, f"the tensor {unexplained[0]!r} is not explained by {ir.architecture}{more}")
    scales = any(t.name.endswith(".k_scale") for stack in stacks for block in stack.classes for t in block.tensors)
    return replace(
        ir,
        stacks=tuple(stacks),
        outer=tuple(outer),
        outer_tensors=tuple(outer_tensors),
        dtype=_compute_dtype(ir, stacks),
        kv_cache=replace(ir.kv_cache, scales=True) if scales else ir.kv_cache,
        notes=tuple(notes),
    )


def _head_apart(ir: ModelIR, reader: Reader) -> list[Linear]:
    """The head of a tied model where the checkpoint stores one in a quantized format beside the embedding (ExLlama's)."""
    if not ir.tied_embeddings or any(linear.role is Role.HEAD for linear in ir.outer):
        return []
    head = untied_head(ir, next(linear.storage for linear in ir.outer if linear.role is Role.EMBEDDING))
    stored = [name for name in reader.modules.get(head.name, ()) if name != f"{head.name}.weight"]
    return [head] if stored else []


def _turn(linear: Linear) -> Linear:
    """A bank stored transposed, if it was not, and the other way round."""
    if linear.stacking is None:
        return linear
    return replace(linear, stacking=replace(linear.stacking, transposed=not linear.stacking.transposed))


def _bank_shape(linear: Linear) -> tuple[int, ...]:
    """The shape of a dense stacked bank."""
    return next(replace(linear, storage=Dense(), bias=None).tensors()).shape


def _with_kv_scales(stacks: list[Stack], reader: Reader) -> list[Stack]:
    """The stacks with the KV scales that are left in the header put into their blocks."""
    found = [name for name in reader.left if _KV_SCALE.fullmatch(name)]
    if not found:
        return stacks
    result = []
    for stack in stacks:
        blocks = [stack.block(i) for i in range(len(stack.layers))]
        index = {stack.layer_prefix(i): i for i in range(len(stack.layers))}
        for name in found:
            prefix = next((prefix for prefix in _prefixes(name) if prefix in index), None)
            if prefix is not None and name in reader.left:
                tensor = reader.left.pop(name)
                block = blocks[index[prefix]]
                added = (*block.tensors, replace(tensor, name=name.removeprefix(prefix)))
                blocks[index[prefix]] = block.replace(tensors=added)
        result.append(stack.with_blocks(tuple(blocks)))
    return result


def _prefixes(name: str) -> list[str]:
    return [name[: match.end()] for match in re.finditer(r"\.", name)]


def _opaque(name: str, tensors: list[Tensor]) -> Stack:
    """A stack of one block that holds tensors as they are, with their whole names."""
    return Stack(name, "", (Block((), tuple(tensors), NoState()),), (0,))


def _compute_dtype(ir: ModelIR, stacks: list[Stack]) -> str:
    """The dtype of the decoder's norms where config.json was silent, else config.json's."""
    if not any("names no dtype" in note for note in ir.notes):
        return ir.dtype
    decoder = next(stack for stack in stacks if stack.name == "decoder")
    found = [tensor.dtype for tensor in decoder.classes[0].tensors if tensor.dtype in _FLOATS]
    return found[0] if found else ir.dtype
