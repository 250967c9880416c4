"""Makes passes/ir/architectures/families/towers.jsonl: what multimodal models hold beside their decoder, from transformers' own classes.

Usage: python -m benchmarks.make_towers [ARCHITECTURE ...]

How each dimension depends on each field of the config is found by building the class on the meta device with that field doubled: a
dimension is a product of powers of fields (and a constant), plus one where it counts a class token. What a flag turns on has a
condition; how many layers or mergers there are is a product of fields, too, or the length of a list. The result is held against the class once more with several
fields changed together; an architecture that does not agree is left out, and said.
"""

from __future__ import annotations

import copy
import json
import re
import sys
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
TARGET = Path(__file__).resolve().parent.parent / "passes" / "ir" / "architectures" / "families" / "towers.jsonl"

#: The class of each architecture: its name in transformers where it differs.
ARCHITECTURES = {
    name: name
    for name in (
        "AriaForConditionalGeneration", "AudioFlamingo3ForConditionalGeneration", "Cohere2VisionForConditionalGeneration",
        "Exaone4_5_ForConditionalGeneration", "Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration",
        "GlmAsrForConditionalGeneration", "GlmOcrForConditionalGeneration", "GraniteSpeechForConditionalGeneration",
        "GraniteSpeechPlusForConditionalGeneration", "Idefics3ForConditionalGeneration", "Lfm2VlForConditionalGeneration",
        "LlavaNextVideoForConditionalGeneration", "LlavaOnevisionForConditionalGeneration",
        "MiniCPMV4_6ForConditionalGeneration", "MiniCPMV4_7ForConditionalGeneration",
        "MossTranscribeDiarizeForConditionalGeneration", "MuseGlimmerForConditionalGeneration", "Ovis2ForConditionalGeneration",
        "PaddleOCRVLForConditionalGeneration", "PaliGemmaForConditionalGeneration", "Qwen2AudioForConditionalGeneration",
        "Qwen3ASRForConditionalGeneration", "SmolVLMForConditionalGeneration", "Step3p7ForConditionalGeneration",
        "VoxtralForConditionalGeneration",
    )
} | {
    "LightOnOCRForConditionalGeneration": "LightOnOcrForConditionalGeneration",
    "VoxtralRealtimeGeneration": "VoxtralRealtimeForConditionalGeneration",
    "HCXVisionV2ForCausalLM": "HyperCLOVAXVisionV2ForConditionalGeneration",
    "Qwen2_5OmniForConditionalGeneration": "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen3OmniMoeForConditionalGeneration": "Qwen3OmniMoeThinkerForConditionalGeneration",
}  # fmt: skip

#: Fields that change no shape, or that only the decoder has.
_IGNORED = re.compile(
    r".*(token|_id|_ids|index|std|dropout|eps|seed|theta|rate|factor_|cache|loss|weight_decay|_theta)$|.*(dropout|initializer|token).*"
)
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")

Shapes = dict[str, tuple[int, ...]]


def build(kind: type, config: Any) -> Shapes:
    """Names and shapes of the tensors that the class writes for a config."""
    with torch.device("meta"):
        model = kind._from_config(config, dtype=torch.bfloat16)  # type: ignore[attr-defined]
    model.tie_weights()
    tied = set(model.all_tied_weights_keys)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, state).items()}


def decoder_base(shapes: Shapes) -> tuple[str, str]:
    """The prefix of the decoder's layers, and the name of its head."""
    [base, *_] = sorted(
        (
            name.removesuffix("embed_tokens.weight")
            for name in shapes
            if re.search(r"(language_model\.|^model\.|^)(.*\.)?embed_tokens\.weight$", name)
        ),
        key=lambda prefix: ("language" not in prefix, len(prefix)),
    )
    head = next((name.removesuffix(".weight") for name in shapes if name.endswith("lm_head.weight")), "lm_head")
    if "language_model." in base and base.index("language_model.") == 0:
        head = "language_model.lm_head"
    return base, head


def towers_of(shapes: Shapes, base: str, head: str) -> Shapes:
    """What is not the decoder's."""
    inner = re.compile(
        re.escape(base)
        + r"(layers|embed_tokens|norm|embed_tokens_per_layer|per_layer_|altup_|embedding_norm|final_layernorm)\b.*|"
        + re.escape(base)
        + r"(per_layer_|altup_).*"
    )
    return {name: shape for name, shape in shapes.items() if not inner.match(name) and not name.startswith(head)}


def fields_of(config: Any) -> dict[str, Any]:
    """Numbers, flags and lists of the parts of a config that are not the decoder's, by dotted path; and the decoder's width."""
    found: dict[str, Any] = {}

    def walk(part: Any, path: str) -> None:
        for name, value in part.to_dict().items():
            own = getattr(part, name, None)
            if hasattr(own, "to_dict") and name != "text_config" and not isinstance(own, dict):
                walk(own, f"{path}{name}.")
            elif not _IGNORED.match(name) and isinstance(value, (bool, int, float, list)):
                found[f"{path}{name}"] = value

    walk(config, "")
    if hasattr(config, "text_config"):
        found["text_config.hidden_size"] = config.text_config.hidden_size
    return {
        path: value
        for path, value in found.items()
        if path != "tie_word_embeddings" and not path.endswith("vocab_size")
    }


def changed(config: Any, values: dict[str, Any]) -> Any:
    """A copy of a config with some fields set."""
    other = copy.deepcopy(config)
    for path, value in values.items():
        *parts, name = path.split(".")
        part = other
        for step in parts:
            part = getattr(part, step)
        setattr(part, name, value)
    return other


def patterns(shapes: Shapes) -> dict[str, list[tuple[list[int], tuple[int, ...]]]]:
    """Tensors by name with numbers as `#`: the numbers, and the shapes. A number that shapes differ by stays in the name (`mlp.0`, `mlp.2`)."""
    found: dict[str, list[tuple[list[int], tuple[int, ...]]]] = defaultdict(list)
    for name, shape in shapes.items():
        found[_NUMBER.sub("#", name)].append(([int(x) for x in _NUMBER.findall(name)], shape))
    whole: dict[str, list[tuple[list[int], tuple[int, ...]]]] = defaultdict(list)
    for name, tensors in found.items():
        column = next(
            (
                k
                for k in range(len(tensors[0][0]) - 1, -1, -1)
                if len({s for _, s in tensors}) > 1 and decides(tensors, k)
            ),
            None,
        )
        for numbers, shape in tensors:
            if column is None:
                whole[name].append((numbers, shape))
            else:
                parts = name.split("#")
                kept = "".join(
                    part + ("" if k == len(parts) - 1 else str(numbers[k]) if k == column else "#")
                    for k, part in enumerate(parts)
                )
                whole[kept].append((numbers[:column] + numbers[column + 1 :], shape))
    return whole


def decides(tensors: list[tuple[list[int], tuple[int, ...]]], column: int) -> bool:
    """Whether one of the numbers decides the shape."""
    return all(len({s for n, s in tensors if n[column] == value}) == 1 for value in {n[column] for n, _ in tensors})


def power(before: int, after: int, factor: Fraction) -> tuple[int, int] | None:
    """(exponent, constant added) by which a dimension follows a field that was multiplied by `factor`."""
    for added in (0, 1, 2, -1):
        if before == added or after == added or before - added <= 0:
            continue
        ratio = Fraction(after - added, before - added)
        for exponent in (1, 2, -1, -2, 3, 4, -4):
            if ratio == factor**exponent:
                return exponent, added
    return None


@dataclass
class Findings:
    """What is known of how tensors follow from fields, by `name|axis` (or `name|n` and the place of a number)."""

    powers: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    added: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    conditions: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def template(architecture: str, kind: type, config: Any) -> dict[str, Any]:
    """What the class holds beside the decoder, in terms of the config's fields."""
    base, head = decoder_base(build(kind, config))
    fields = fields_of(config)
    config = fullest(kind, config, fields, base, head)
    plain = towers_of(build(kind, config), base, head)
    pinned: dict[str, Any] = {}
    findings = Findings()
    used: set[str] = set()
    known = dict(plain)
    tried: dict[str, Any] = {}
    for path, value in fields_of(config).items():
        understood = not alternatives(value)
        for new in alternatives(value):
            try:
                other = towers_of(build(kind, changed(config, {path: new})), base, head)
            except Exception:  # noqa: BLE001 - a value that the class refuses says nothing
                continue
            if other != plain:
                try:
                    note(path, (value, new), plain, other, findings)
                except ValueError:
                    continue
                used.add(path)
                tried[path] = new
            understood = True
            break
        if not understood:
            pinned[path] = value
    return {
        "architecture": architecture, "base": base, "head": head, "defaults": {path: fields[path] for path in sorted(used)},
        "tried": tried, "pinned": pinned, "tensors": finish(known, findings, fields_of(config)),
    }  # fmt: skip


def fullest(kind: type, config: Any, fields: dict[str, Any], base: str, head: str) -> Any:
    """The config with every flag set that adds tensors and takes none away."""
    plain = towers_of(build(kind, config), base, head)
    for path, value in fields.items():
        if isinstance(value, bool):
            try:
                other = towers_of(build(kind, changed(config, {path: not value})), base, head)
            except Exception:  # noqa: BLE001 - a value that the class refuses says nothing
                continue
            if other.keys() > plain.keys():
                config, plain = changed(config, {path: not value}), other
    return config


def alternatives(value: Any) -> list[Any]:
    """Other values of a field to try."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, list):
        return [value[:-1]] if value and not isinstance(value[0], (dict, list)) else []
    if value in (0, -1):
        return []
    return [value * 2, value // 2] if isinstance(value, int) else [value * 2, value / 2]


def note(path: str, change: tuple[Any, Any], plain: Shapes, other: Shapes, found: Findings) -> None:
    """Write down what one changed field does: `change` is its value before and after. Raises ValueError where that is not understood."""
    value, new = change
    if isinstance(value, bool):
        before, after = patterns(plain), patterns(other)
        if more := after.keys() - before.keys():
            raise ValueError(f"{sorted(more)[0]} comes with {path} {new}")
        for name in before.keys() - after.keys():
            found.conditions[name].append(path if value else f"!{path}")
        return
    counts_before, counts_after = patterns(plain), patterns(other)
    found_powers: list[tuple[str, str, int, int]] = []
    if counts_before.keys() != counts_after.keys():
        raise ValueError(f"{path} changes which tensors there are")
    for name in counts_before.keys() & counts_after.keys():
        columns = range(len(counts_before[name][0][0]))
        for column in columns:
            n0 = len({numbers[column] for numbers, _ in counts_before[name]})
            n1 = len({numbers[column] for numbers, _ in counts_after[name]})
            if n0 != n1 and {numbers[column] for numbers, _ in counts_before[name]} != set(range(n0)):
                raise ValueError(f"{name}: not all layers")
            if n0 != n1:
                if isinstance(value, list):
                    found_powers.append((f"{name}|n{column}", f"len:{path}", 1, 0))
                elif (step := power(n0, n1, Fraction(new) / Fraction(value))) is not None:
                    found_powers.append((f"{name}|n{column}", path, step[0], 0))
                else:
                    raise ValueError(f"{name}: {n0} became {n1} with {path} {value} -> {new}")
        s0, s1 = counts_before[name][0][1], counts_after[name][0][1]
        for axis, (d0, d1) in enumerate(zip(s0, s1, strict=True)):
            if d0 != d1:
                step = power(d0, d1, Fraction(new) / Fraction(value)) if not isinstance(value, list) else None
                if step is None:
                    raise ValueError(f"{name} axis {axis}: {d0} became {d1} with {path} {value} -> {new}")
                found_powers.append((f"{name}|{axis}", path, *step))
    for key, name, exponent, constant in found_powers:
        found.powers[key][name] = exponent
        found.added[key] = max(found.added[key], constant)


def product(powers: dict[str, int], fields: dict[str, Any]) -> Fraction:
    """The value of a product of fields."""
    result = Fraction(1)
    for path, exponent in powers.items():
        value = len(fields[path[4:]]) if path.startswith("len:") else fields[path]
        result *= Fraction(value) ** exponent
    return result


def expression(constant: int, powers: dict[str, int], added: int, fields: dict[str, Any]) -> int | list[Any]:
    """A dimension: a number, or [factor, added, {field: exponent}]; `grid` for patches of a square, which come out whole."""
    if not powers:
        return constant
    sides = [path for path, exponent in powers.items() if exponent == 2] + [
        path for path, exponent in powers.items() if exponent == -2
    ]
    if len(powers) == len(sides) == 2 and (fields[sides[0]] // fields[sides[1]]) ** 2 == constant - added:
        return ["grid", added, {sides[0]: 2, sides[1]: -2}]
    factor = Fraction(constant - added) / product(powers, fields)
    return [str(factor), added, powers]


def finish(known: Shapes, findings: Findings, fields: dict[str, Any]) -> list[Any]:
    """The tensors of a template as they are written."""
    tensors = []
    for name, found in patterns(known).items():
        numbers, shape = found[0]
        distinct = {s for _, s in found}
        if len(distinct) > 1:  # tensors of one name pattern with shapes of their own: each by itself, as it is
            for own, s in found:
                full = name
                for number in own:
                    full = full.replace("#", str(number), 1)
                if any(key.startswith(name + "|") for key in findings.powers):
                    raise ValueError(f"{name}: shapes differ by number and depend on fields")
                tensors.append([full, list(s), [], findings.conditions.get(name, [])])
            continue
        dims = [
            expression(d, findings.powers.get(f"{name}|{axis}", {}), findings.added.get(f"{name}|{axis}", 0), fields)
            for axis, d in enumerate(shape)
        ]
        columns = [sorted({n[column] for n, _ in found}) for column in range(len(numbers))]
        times = [
            [
                expression(len(column), findings.powers.get(f"{name}|n{k}", {}), 0, fields),
                column if column != list(range(len(column))) else None,
            ]
            for k, column in enumerate(columns)
        ]
        tensors.append([name, dims, times, findings.conditions.get(name, [])])
    return tensors


def tiny_text(config: Any) -> Any:
    """The config with a decoder of few layers, where the class allows it."""
    try:
        kind, text = type(config), config.text_config
        layers = {"num_hidden_layers": 2}
        smaller = type(text)(**layers)
        return kind(
            **{name: getattr(config, name) for name in kind.sub_configs if name != "text_config"}, text_config=smaller
        )
    except Exception:  # noqa: BLE001 - then with the decoder as it is
        return config


def agrees(kind: type, config: Any, made: dict[str, Any]) -> str:
    """Whether the template gives what the class writes with several fields changed together; else what differs."""
    from passes.ir.architectures.families.templates import expand

    if not made["tensors"]:
        return "no towers found"
    numbers = {
        path: new for path, new in made["tried"].items() if isinstance(new, (int, float)) and not isinstance(new, bool)
    }
    for chosen in (dict(list(numbers.items())[::2]), dict(list(numbers.items())[1::2]), made["tried"]):
        try:
            written = towers_of(build(kind, changed(config, chosen)), made["base"], made["head"])
        except Exception:  # noqa: BLE001 - fields that do not go together
            continue
        described = dict(expand(made, made["defaults"] | chosen))
        if described != written:
            different = {
                name: (described.get(name), written.get(name))
                for name in described.keys() | written.keys()
                if described.get(name) != written.get(name)
            }
            return f"{list(different.items())[:3]} with {chosen}"
    return ""


def main(names: list[str]) -> None:
    """Write the templates of all architectures, or those of some again."""
    lines = (
        {json.loads(line)["architecture"]: line for line in TARGET.read_text().splitlines()} if TARGET.exists() else {}
    )
    for architecture in names or ARCHITECTURES:
        kind = getattr(transformers, ARCHITECTURES[architecture])
        try:
            config = tiny_text(kind.config_class())
            made = template(architecture, kind, config)
            if difference := agrees(kind, config, made):
                raise ValueError(difference)
        except Exception as error:  # noqa: BLE001 - one that cannot be made is said and left out
            print(f"left out: {architecture}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        del made["tried"]
        print(
            f"{architecture}: {len(made['tensors'])} names, {len(made['defaults'])} fields, under {made['base']}",
            flush=True,
        )
        lines[architecture] = json.dumps(made)
        TARGET.write_text("".join(f"{lines[name]}\n" for name in sorted(lines)))


if __name__ == "__main__":
    main(sys.argv[1:])
