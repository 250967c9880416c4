"""How model families name and shape their parts. A registry; it fails closed on what it does not know."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from passes.ir.architectures.config import ESCAPE, Config
from passes.ir.model import ModelIR
from passes.reason import InputError, nearest

#: Which module describes an architecture. Modules are imported when one of theirs is asked for.
_MODULES: dict[str, tuple[str, ...]] = {
    "decoder": (
        "LlamaForCausalLM", "MistralForCausalLM", "Ministral3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MiMoForCausalLM",
        "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "CohereForCausalLM", "Cohere2ForCausalLM", "GraniteForCausalLM",
        "Olmo2ForCausalLM", "Olmo3ForCausalLM", "Phi3ForCausalLM", "Glm4ForCausalLM", "GlmForCausalLM", "SmolLM3ForCausalLM",
        "Exaone4ForCausalLM", "Starcoder2ForCausalLM", "NemotronForCausalLM", "PhiForCausalLM",
    ),
}  # fmt: skip
_MODULE_OF = {architecture: module for module, names in _MODULES.items() for architecture in names}

#: `assume:` values and the architecture that such a model is read as.
_ASSUMPTIONS = {"full-attention": "LlamaForCausalLM"}


def known_architectures() -> tuple[str, ...]:
    """Every architecture that is understood."""
    return tuple(sorted(_MODULE_OF))


def build_ir(config: Mapping[str, Any], name: str, *, assume: str | None = None) -> ModelIR:
    """The IR that a config.json describes, dense in the config's dtype.

    `assume="full-attention"` reads an unknown architecture as a Llama-like decoder. Raises InputError naming the first thing
    not understood.
    """
    root = Config(config, name)
    listed = root.get("architectures", default=[])
    architecture = listed[0] if isinstance(listed, list) and listed else None
    notes: tuple[str, ...] = ()
    if architecture not in _MODULE_OF:
        if assume is None:
            raise _unknown(name, architecture, root)
        if assume not in _ASSUMPTIONS:
            raise InputError(f"unknown assumption {assume!r}", remedy=f"Use one of: {', '.join(_ASSUMPTIONS)}.")
        notes = (f"{architecture} is not known; read as {_ASSUMPTIONS[assume]} because the spec assumes {assume}",)
        architecture = _ASSUMPTIONS[assume]
    module = importlib.import_module(f"passes.ir.architectures.{_MODULE_OF[architecture]}")
    dtype = root.dtype() or next((part.dtype() for part in _text_parts(root) if part.dtype()), None)
    if dtype is None:
        dtype, notes = "BF16", (*notes, "config.json names no dtype: BF16 assumed")
    ir: ModelIR = module.build(root, architecture, dtype)
    from dataclasses import replace

    return replace(ir, notes=ir.notes + notes) if notes else ir


def _text_parts(root: Config) -> list[Config]:
    return [
        root.part(field)
        for field in ("text_config", "llm_config", "language_config")
        if isinstance(root.values.get(field), Mapping)
    ]


def _unknown(name: str, architecture: str | None, root: Config) -> InputError:
    if architecture is None:
        return InputError(
            f"{name}: config.json names no architecture (model_type {root.get('model_type')!r})", remedy=ESCAPE
        )
    close = nearest(architecture, _MODULE_OF)
    hint = f" Nearest known: {', '.join(close)}." if close else ""
    return InputError(f"{name}: the architecture {architecture!r} is not understood.{hint}", remedy=ESCAPE)
