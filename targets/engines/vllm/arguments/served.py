"""What a pasted `vllm serve` command asks of `check`: its model with what it overrides, what drafts, the quantization it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from passes.errors import InputError, Reason, nearest
from passes.ir.architectures import build_ir
from passes.ir.model import ModelIR
from passes.ir.names import find
from passes.ir.quant_config.quant_config import QUANT_CONFIGS
from passes.ir.quant_config.read import quantized
from passes.ir.sources import Source, open_model
from targets.engines.engine import Settings
from targets.engines.pasted import Pasted
from targets.engines.vllm.arguments.asked import Asked, asked, with_draft
from targets.engines.vllm.arguments.command import is_command, read_command, read_flags, with_config_file
from targets.engines.vllm.rules.versions import parse_version

#: Quantizations of a command that name what a checkpoint is, by the `quant_method` of its config; `_marlin` is a kernel of it.
_KERNELS = ("_marlin", "_bitblas")
#: The first version that takes `repository:type` of GGUF files (vllm-project/vllm#29137).
_REPOSITORY_AND_TYPE = (0, 12, 0)
#: Names of the same format.
_SAME = {
    "modelopt_fp4": "modelopt",
    "modelopt_mixed": "modelopt",
    "auto-round": "auto_round",
    "inc": "auto_round",
    "gguf": "gguf",
}
#: What a quantization that the engine makes while loading is refused on: a checkpoint that has one already, of another kind.
_ONLINE = (
    "fp8",
    "fp8_per_tensor",
    "fp8_per_block",
    "bitsandbytes",
    "mxfp8",
    "int8_per_channel_weight_only",
    "torchao",
    "experts_int8",
    "online",
)


def pasted(words: Sequence[str], known: Sequence[str], version: str | None, model: str | None) -> Pasted | None:
    """Return what words ask for: a command that starts vLLM's server, or flags of it beside options, whose names are `known`. `version`,
    `model`: where another place names them. None where nothing names a model. Raises InputError for what vLLM does not take.
    """
    whole = is_command(words) or (len(words) == 1 and " " in words[0])
    if not whole and words and not words[0].startswith("-"):  # flags behind it are another program's
        raise _no_command(words[0])
    command = read_command(words) if whole else with_config_file(read_flags(words, known=known))
    if not whole and command.words:
        raise _no_command(command.words[0])
    read = asked(command, version)
    named = model or read.model
    if named is None:
        return None
    source = _opened(named, read.revision, command.flags) if whole else open_model(named, revision=read.revision)
    if whole and source.as_stored is not None:
        read = _with_gguf(read, named, version or command.version)
    notes: list[str] = []
    if read.overrides:
        notes.extend(_judged(source.ir, read.overrides))
        source = replace(source, ir=overridden(source.ir, read.overrides))
        notes.append(f"the model's config with {', '.join(sorted(map(str, read.overrides)))} overridden")
    settings, drafted = _drafting(read, source.ir)
    stored = source.as_stored or source.ir
    mismatch, guessed = _mismatch(read, stored), _guessed(source, named) and _read_here(read.quantization)
    return Pasted(
        named, source, settings, whole, command.cards, read.context, read.longest, read.weights, read.kv_cache_dtype,
        (*read.reasons, *(() if guessed else mismatch)),
        (*read.notes, *notes, *drafted, *(f"{each.message} by what its name usually means" for each in mismatch if guessed)),
    )  # fmt: skip


def _opened(named: str, revision: str | None, flags: Mapping[str, Any]) -> Source:
    """The model of a server, which may be another machine's. Raises InputError, with what the server calls it."""
    try:
        return open_model(named, revision=revision, elsewhere=_shaped_like(flags))
    except InputError as error:
        called = flags.get("served-model-name")
        known = [
            each for each in (called if isinstance(called, list) else [called]) if isinstance(each, str) and find(each)
        ]
        if not known or named == known[0]:
            raise
        raise InputError(
            error.message,
            remedy=f"The server calls it {known[0]}: if it is that, --model {known[0]} before the command. {error.remedy}",
        ) from None


def _shaped_like(flags: Mapping[str, Any]) -> str:
    """The model whose config or tokenizer a command names beside a file; empty where it names none."""
    named = flags.get("hf-config-path") or flags.get("tokenizer")
    return named if isinstance(named, str) else ""


def _with_gguf(read: Asked, named: str, version: str | None) -> Asked:
    """A command that serves a GGUF file: by the package that reads them, where its vLLM does not; by its type's name from 0.12 on."""
    settings = replace(read.settings, features=replace(read.settings.features, reads_gguf=True))
    reasons = read.reasons
    if ":" in named and version is not None and parse_version(version) < _REPOSITORY_AND_TYPE:
        why = f"vLLM {version} takes the path of a GGUF file, and no {named} (`repository:type`, from 0.12 on)"
        reasons = (*reasons, Reason("flag_not_in_version", why, "download the file, and name its path"))
    return replace(read, settings=settings, reasons=reasons)


def _no_command(word: str) -> InputError:
    """The error for a word that names nothing which can be checked: a model without its option, or a program that is not vLLM."""
    model = word if find(word) is not None else "MODEL"
    return InputError(
        f"{word!r} is no spec, plan or result, and starts no server of vLLM",
        remedy=f"name the model: optimize check --model {model} …; or paste the command: optimize check -- vllm serve {model} …",
    )


def _guessed(source: Source, named: str) -> bool:
    """Whether how a checkpoint is stored is told by its name alone."""
    match = find(named) if source.kind == "catalog" else None
    return match is not None and match.quantization is not None


def _read_here(quantization: str | None) -> bool:
    """Whether a quantization is one that checkpoints are known to have."""
    return quantization is not None and _kind_of(quantization) in QUANT_CONFIGS.names()


def _kind_of(quantization: str) -> str:
    """The `quant_method` of a checkpoint that a quantization of a command names."""
    kind = _SAME.get(quantization, quantization)
    for suffix in _KERNELS:
        kind = kind.removesuffix(suffix)
    return kind


def _judged(ir: ModelIR, overrides: Mapping[str, Any]) -> Iterator[str]:
    """Refuse a value that a model's code cannot read where its config has one of another type; give a note for keys that it lacks, which
    vLLM sets all the same.
    """
    text = ir.config.get("text_config")
    config = {**ir.config, **(text if isinstance(text, Mapping) else {})}
    for key, value in overrides.items():
        stored = config.get(key)
        if key not in config:
            near = nearest(key, config)
            yield f"{key} of --hf-overrides is no key of {ir.name}'s config: it is set all the same" + (
                f" (did you mean {' or '.join(near)}?)" if near else ""
            )
        elif stored is not None and value is not None and _called(stored) != _called(value):
            raise InputError(
                f"--hf-overrides: {key} is {value!r:.60}, and {ir.name}'s config has {_called(stored)} there ({stored!r:.60})",
                remedy=f"write {key} as {_called(stored)}",
            )


def _called(value: Any) -> str:
    """What a value of a config is, as people say it. A list is what it holds: many keys take either (`eos_token_id`)."""
    if isinstance(value, list) and value:
        return _called(value[0])
    names = ((bool, "true or false"), (int | float, "a number"), (str, "a text"), (Mapping, "an object"))
    return next((name for kind, name in names if isinstance(value, kind)), "a list")


def overridden(ir: ModelIR, overrides: Mapping[str, Any]) -> ModelIR:
    """Return a model whose config has keys at other values. Where its layers stay as they are, so does what was read of their files."""
    config = _merged(ir.config, overrides)
    before, after = (quantized(build_ir(each, ir.name)) for each in (ir.config, config))
    if before.stacks == after.stacks and before.outer == after.outer:
        return replace(ir, config=config, max_context=after.max_context)
    return replace(after, notes=ir.notes)


def _merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for key, value in overrides.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def _drafting(asked: Asked, ir: ModelIR) -> tuple[Settings, tuple[str, ...]]:
    """The settings with the model that drafts, and what is assumed of it."""
    drafting = asked.settings.features.drafting
    if drafting is None:
        return asked.settings, ()
    speed = "speeds are those without drafting"
    if drafting.own and asked.draft not in (None, asked.model):  # layers of another checkpoint
        return _drafting(replace(asked, settings=with_draft(asked.settings, own=False, assumed=True)), ir)
    if drafting.own:
        if any(stack.name == "mtp" for stack in ir.stacks):
            return asked.settings, (speed,)
        return with_draft(asked.settings, own=False, assumed=True), (
            f"{ir.name}'s own layers for drafting ({drafting.method}) are not described: one of its size is assumed", speed,
        )  # fmt: skip
    if asked.draft is None:
        return asked.settings, (speed,)
    try:
        draft = open_model(asked.draft).ir
    except InputError:
        if not drafting.assumed or drafting.method == "draft_model":
            raise
        return asked.settings, (
            f"{asked.draft} is not known here: a head of {drafting.method} for {ir.name} is assumed", speed,
        )  # fmt: skip
    return with_draft(asked.settings, draft=draft, assumed=False), (speed,)


def _mismatch(asked: Asked, ir: ModelIR) -> tuple[Reason, ...]:
    """A quantization that is named and is not the checkpoint's (`config/model.py:_verify_quantization`)."""
    named = asked.quantization
    if named is None or (asked.weights is not None and ir.quant_method is None):
        return ()
    kind, stored = _kind_of(named), ir.quant_method
    if stored is None:
        if named in _ONLINE:
            return ()
        message = f"--quantization {named} asks for a checkpoint that is quantized so, and {ir.name} is not quantized"
        return (Reason("quantization_mismatch", message, "leave --quantization out, or name a quantized checkpoint"),)
    if kind.replace("-", "_") == stored.replace("-", "_"):
        return ()
    message = f"--quantization {named} is not the checkpoint's own, which is {stored}"
    return (Reason("quantization_mismatch", message, "leave --quantization out: the checkpoint says what it is"),)
