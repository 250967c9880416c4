"""The transformers class of a family: the model without weights, its list of blocks, and what it calls what a checkpoint names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from passes.errors import InputError
from passes.ir.architectures.config import Config
from passes.ir.model import ModelIR

if TYPE_CHECKING:
    import torch


#: Model types of the catalog that transformers has no class for; `tests/walk/test_families.py` holds the list against it.
WITHOUT_CLASS = frozenset({
    "bailing_moe", "baichuan", "chatglm", "deepseek_ref", "exaone", "internlm2", "interns1", "interns2_preview", "kimi_vl", "mimo",
    "minimax_m3", "nemotron-nas", "phi3_v", "qwen",
})  # fmt: skip
#: Model types that are another one's class under a name of their own.
SAME_CLASS = {"kimi_k2": "deepseek_v3"}
UNRUNNABLE_REMEDY = "choose passes that need no calibration, an outside backend, or another transformers"


def unwalkable(ir: ModelIR) -> str | None:
    """Say why a model's blocks cannot be run one by one here, in words; None where they can. Looks at the description only."""
    if ir.model_type in WITHOUT_CLASS:
        return _no_class(ir.model_type)
    root = Config(ir.config, ir.name)
    text = root.part("text_config") if root.has("text_config") else root
    if text.get("num_kv_shared_layers") or text.get("hidden_size_per_layer_input"):
        return "its blocks are given values of each text's own beside the hidden states (shared keys, inputs of every layer)"
    if ir.model_type == "deepseek_v4":
        return "its first layers route by token, and a block is called the same for every text here"
    return None


def unrunnable(ir: ModelIR) -> str | None:
    """Say as `unwalkable`, and by what this transformers has. Loads it."""
    return unwalkable(ir) or (None if _family(_kind(ir)) is not None else _no_class(_kind(ir)))


def _no_class(kind: str) -> str:
    return f"transformers has no model class for {kind!r}, so its blocks cannot be run"


def _kind(ir: ModelIR) -> str:
    """The model type by which transformers knows a model."""
    kind = str(ir.config.get("model_type", ir.model_type))
    return SAME_CLASS.get(kind, kind)


def _family(kind: str) -> Any:
    """The kind of models that a type is of, as transformers builds them; None where it knows none."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    families = {
        AutoModelForImageTextToText: MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    return next((auto for auto, kinds in families.items() if kind in kinds), None)


def skeleton(ir: ModelIR, dtype: torch.dtype) -> Any:
    """Return the family's model with parameters on the meta device and its buffers (rotary tables) real."""
    from accelerate import init_empty_weights
    from transformers import CONFIG_MAPPING

    if (why := unrunnable(ir)) is not None:
        raise InputError(f"{ir.name}: {why}", remedy=UNRUNNABLE_REMEDY)
    values = {key: value for key, value in ir.config.items() if key not in ("quantization_config", "auto_map")}
    kind = _kind(ir)
    config = CONFIG_MAPPING[kind].from_dict(_floats(values))
    with init_empty_weights(include_buffers=False):
        model = _family(kind).from_config(config, dtype=dtype)
    return model.eval()


def _floats(value: Any) -> Any:
    """Numbers that JSON has not, as transformers writes them (`{"__float__": "Infinity"}`), made numbers."""
    if isinstance(value, Mapping):
        return (
            float(value["__float__"]) if "__float__" in value else {key: _floats(each) for key, each in value.items()}
        )
    return [_floats(each) for each in value] if isinstance(value, list) else value


def body(model: Any, ir: ModelIR) -> tuple[Any, str]:
    """Return the module that holds the list of decoder blocks, and that list's name in it. Towers beside the decoder are not looked at."""
    import torch

    decoder = model.get_decoder()
    for path, module in decoder.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == len(ir.decoder.layers):
            parent, _, name = path.rpartition(".")
            return decoder.get_submodule(parent), name
    raise InputError(
        f"transformers builds no list of {len(ir.decoder.layers)} blocks for {ir.name}",
        remedy="check num_hidden_layers in config.json against the weights",
    )


class Names:
    """From a description's names, relative to a block, to the paths of modules and parameters in the family's class."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import WeightConverter, WeightRenaming, get_model_conversion_mapping
        from transformers.core_model_loading import Concatenate

        conversions = get_model_conversion_mapping(model)
        self._renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
        self._joins = [
            (each.source_patterns, each.target_patterns[0], each.operations[0].dim)
            for each in conversions
            if isinstance(each, WeightConverter) and len(each.operations) == 1 and isinstance(each.operations[0], Concatenate)
        ]  # fmt: skip
        self._fused: dict[str, str] = {}

    def parameters(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a block's tensors under the paths of its parameters; joined where the class keeps them so (convolutions of q, k, v)."""
        import torch

        named = {self.path(name): tensor for name, tensor in tensors.items()}
        for parts, whole, dim in self._joins:
            if all(part in named for part in parts):
                named[whole] = torch.cat([named.pop(part) for part in parts], dim)
        return named

    def path(self, name: str) -> str:
        """Return the path of a module or a parameter."""
        path = f".{name}"
        for renaming in self._renamings:
            path, _ = renaming.rename_source_key(path)
        module, _, leaf = path[1:].rpartition(".")
        if (whole := self._fused.get(path[1:])) is not None:
            return whole
        return f"{self._fused[module]}.{leaf}" if module in self._fused else path[1:]

    def outer(self, name: str) -> str:
        """Return the path of a parameter outside the blocks."""
        for renaming in self._renamings:
            name, _ = renaming.rename_source_key(name)
        return name

    def split(self, whole: str, parts: Iterable[str]) -> None:
        """Have the parts of a fused matrix found below it."""
        for part in parts:
            self._fused[part] = f"{whole}.{part.rpartition('.')[2]}"
