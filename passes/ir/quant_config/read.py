"""Already quantized checkpoints: which matrices `quantization_config` says are stored how.

Where there are headers they decide in the end (`passes.ir.reconcile`); without them this is what the config amounts to.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from passes.errors import InputError
from passes.formats.awq import Awq
from passes.formats.compressed_tensors import FloatQuantized, IntQuantized, PackQuantized
from passes.formats.dense import Dense
from passes.formats.format import Format
from passes.formats.fp4 import Mxfp4, Nvfp4
from passes.formats.gptq import Gptq
from passes.formats.published import Published
from passes.ir.model import Linear, ModelIR, Role
from passes.ir.quant_config.gptq_rules import format_of

#: Says whether a module (full name) stays dense.
Ignore = Callable[[str], bool]
#: Says in which format a matrix (full name) is stored, if it is not left dense.
StorageOf = Callable[[str], Format]

_DROPPED = re.compile(r"\.\.\.\d+ more entries dropped")
_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")


def quantization(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The quantization method of a checkpoint and its settings; None for a dense one."""
    for part in (config, config.get("text_config") or {}):
        for field in ("quantization_config", "compression_config", "hf_quant_config"):
            found = part.get(field)
            if isinstance(found, Mapping):
                nested = found.get("quantization")
                inner: Mapping[str, Any] = nested if isinstance(nested, Mapping) else found
                method = str(found.get("quant_method") or ("modelopt" if "quant_algo" in inner else ""))
                if not method:
                    raise InputError(
                        f"{field} names no quant_method", remedy="Name the dense model, or mend its config.json."
                    )
                return method, inner
    return None


def quantized(ir: ModelIR) -> ModelIR:
    """The description with every matrix stored as the config's quantization says. Raises InputError on a scheme not known."""
    found = quantization(ir.config)
    if found is None:
        return ir
    method, settings = found
    if method in ("exl2", "exl3"):
        return replace(ir, quant_method=method)
    notes: list[str] = []
    ignore = _ignore(settings, notes)
    storage = _storage_of(method, settings, ir)
    experts = _experts(settings, ir)

    def change(prefix: str) -> Callable[[Linear], Linear]:
        def store(linear: Linear) -> Linear:
            if experts is None:
                return _stored(linear, storage, ignore, prefix)
            return _stored(linear, (lambda _: experts) if linear.copies > 1 else storage, lambda _: False, prefix)

        return store

    stacks = []
    for stack in ir.stacks:
        if stack.name not in ("decoder", "mtp"):
            stacks.append(stack)
            continue
        blocks = [stack.block(i).map_linears(change(stack.layer_prefix(i))) for i in range(len(stack.layers))]
        stacks.append(stack.with_blocks(tuple(blocks)))
    return replace(ir, stacks=tuple(stacks), quant_method=method, notes=(*ir.notes, *notes))


def _experts(settings: Mapping[str, Any], ir: ModelIR) -> Format | None:
    """The format of the experts where it is another than that of the rest (DeepSeek V4): then lists name only these."""
    if settings.get("moe_quant_algo") == "NVFP4":
        return Published("nvfp4-modelopt")
    return Mxfp4() if ir.config.get("expert_dtype") == "fp4" else None


def _stored(linear: Linear, storage_of: StorageOf, ignore: Ignore, prefix: str) -> Linear:
    if not linear.quantizable or linear.role in (Role.HEAD, Role.EMBEDDING) or not isinstance(linear.storage, Dense):
        return linear
    parts = linear.stacking.parts if linear.stacking else ((linear.name, linear.out_features),)
    names = [prefix + part.replace("{e}", "0") for part, _ in parts]
    whole = [prefix + linear.stacking.tensor] if linear.stacking else []
    if any(ignore(name) for name in (*names, *whole)):
        return linear
    storage = storage_of(names[0])
    if any(storage.illegal(rows, linear.in_features) for _, rows in parts):
        return linear
    return replace(linear, storage=storage)


def _ignore(settings: Mapping[str, Any], notes: list[str]) -> Ignore:
    """What the config leaves dense, by whichever list it has. Lists cut short are read as a rule for every layer, and that is said."""
    listed: list[str] = []
    for field in ("ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules"):
        listed += [str(item) for item in settings.get(field) or ()]
    listed += [key[2:] and f"re:{key[2:]}" for key in settings.get("dynamic") or () if str(key).startswith("-:")]
    cut = [item for item in listed if _DROPPED.fullmatch(item)]
    patterns = [item for item in listed if item not in cut]
    if cut:
        notes.append(
            "the list of matrices left dense is cut short here; what it says of several layers is taken for all"
        )
        stems = [_LAYER.sub("*", item) for item in patterns if _LAYER.search(item)]
        patterns += sorted(
            {stem for stem in stems if stems.count(stem) > 1 and not stem.rstrip("*").endswith("layers.")}
        )
    tests = [_test(pattern) for pattern in patterns]
    return lambda name: any(test(name) for test in tests)


def _test(pattern: str) -> Ignore:
    if pattern.startswith("re:"):
        compiled = re.compile(pattern[3:])
        return lambda name: compiled.match(name) is not None
    if "*" in pattern or "?" in pattern:
        wild = re.compile(fnmatch.translate(pattern) + "|" + fnmatch.translate(pattern + ".*"))
        return lambda name: wild.match(name) is not None
    return lambda name: name == pattern or name.startswith(pattern + ".") or f".{pattern}." in f".{name}."


def _storage_of(method: str, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
    """The format of each quantized matrix; most methods have one for all."""
    if method in ("gptq", "gptq_marlin", "auto-round", "autoround"):
        version = 2 if settings.get("checkpoint_format") == "gptq_v2" else 1
        bits, size = int(settings["bits"]), int(settings["group_size"])
        base = Gptq(bits, size, bool(settings.get("sym", True)), bool(settings.get("desc_act", False)), version)
        return format_of(base, settings.get("dynamic") or {})
    if method in ("compressed-tensors", "compressed_tensors"):
        return _by_group(settings, ir)
    one = _storage(method, settings, ir)
    return lambda _: one


def _storage(method: str, settings: Mapping[str, Any], ir: ModelIR) -> Format:
    """The one format of a method's matrices."""
    if method == "awq":
        return Awq(int(settings.get("group_size", 128)), not settings.get("zero_point", True))
    if method == "fp8":
        return _fp8(settings)
    if method == "fbgemm_fp8":
        return Published("fp8-row")
    if method == "mxfp4":
        return Published("mxfp4-blocks")
    if method == "bitsandbytes":
        if settings.get("load_in_8bit"):
            raise _unknown(ir, "bitsandbytes in 8 bits")
        return Published("nf4")
    if method == "modelopt" or method.startswith("modelopt"):
        return _modelopt(settings, ir)
    raise _unknown(ir, f"quant_method {method!r}")


def _unknown(ir: ModelIR, what: str) -> InputError:
    return InputError(f"{ir.name}: {what} is not understood", remedy="Name the dense model that it was made from.")


def _fp8(settings: Mapping[str, Any]) -> Format:
    block = settings.get("weight_block_size")
    if block:
        return Published("fp8-block", int(block[0]))
    return Published("fp8-static" if settings.get("activation_scheme") == "static" else "fp8-tensor")


def _modelopt(settings: Mapping[str, Any], ir: ModelIR) -> Format:
    algorithm = str(settings.get("quant_algo", "")).upper()
    if algorithm == "FP8":
        return Published("fp8-static")
    if algorithm == "NVFP4":
        return Published("nvfp4-modelopt")
    if algorithm == "MIXED_PRECISION":
        return Published("nvfp4-modelopt")
    if algorithm in ("FP8_PB_WO", "FP8_BLOCK"):
        return Published("fp8-block")
    raise _unknown(ir, f"modelopt's quant_algo {algorithm!r}")


def _by_group(settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
    """Groups that name their matrices come before those that name a class of modules (`Linear`)."""
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise _unknown(ir, "compressed-tensors without config_groups")
    formats = [(_compressed(group, settings, ir), group.get("targets") or ["Linear"]) for group in groups.values()]
    named = [(_test(str(target)), form) for form, targets in formats for target in targets if target != "Linear"]
    rest = next((form for form, targets in formats if "Linear" in targets), formats[0][0])
    return lambda name: next((form for test, form in named if test(name)), rest)


def _compressed(group: Mapping[str, Any], settings: Mapping[str, Any], ir: ModelIR) -> Format:
    weights, inputs = group["weights"], group.get("input_activations")
    kind, bits = weights.get("type", "int"), int(weights["num_bits"])
    size = {"channel": -1, "tensor": 0}.get(str(weights.get("strategy")), int(weights.get("group_size") or -1))
    static = inputs is not None and not inputs.get("dynamic")
    form = str(group.get("format") or settings.get("format") or "")
    if kind == "float" and bits == 4:
        return Mxfp4() if "mxfp4" in form or size == 32 else Nvfp4(bool(inputs))
    if kind == "float" and bits == 8:
        block = weights.get("block_structure") or ((128, 128) if weights.get("strategy") == "block" else None)
        if block:
            return FloatQuantized(-1, (int(block[0]), int(block[1])), ir.dtype)
        return FloatQuantized(size, None, ir.dtype, static)
    if kind == "int" and bits == 8 and inputs:
        return IntQuantized(ir.dtype, static)
    if kind == "int" and bits in (4, 8):
        return PackQuantized(bits, size, bool(weights.get("symmetric", True)), ir.dtype)
    raise _unknown(ir, f"compressed-tensors {kind}{bits}")
