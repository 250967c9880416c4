"""Which architectures a version of vLLM has a model for, as its own registry says (`model_executor/models/registry.py`)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from benchmarks.vllm_wheel import Source, literal_of

_PATH = "model_executor/models/registry.py"
_OLD_PATH = "model_executor/models/__init__.py"  # to 0.6.2
#: Tables of what generates no text by itself.
_OTHER = ("EMBEDDING", "REWARD", "CLASSIFICATION", "CROSS_ENCODER", "SPECULATIVE", "LATE_INTERACTION")
#: The module whose classes run a model by the code of the package transformers.
_BACKEND = "transformers"
_CLASS = re.compile(r"^class (\w+For(?:CausalLM|ConditionalGeneration))\(", re.MULTILINE)
_BASES = re.compile(r"^class (\w+)\(([^)]*)\)", re.MULTILINE)
#: What classes inherit that run in pipeline stages (`model_executor/models/interfaces.py`, from 0.6.3 on).
_STAGES = "SupportsPP"
_NOT_BY_BACKEND = re.compile(r"mamba|linear_attn|cross_att", re.IGNORECASE)


def _tables(source: Source) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """Give the tables of models: name, and (module, class) by architecture."""
    for node in [*source.tree(_PATH).body, *source.tree(_OLD_PATH).body]:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict() as value) if name.endswith("_MODELS"):
                literal = literal_of(value)
                if literal and all(isinstance(entry, tuple) for entry in literal[0].values()):
                    yield name, literal[0]


def _in_stages(source: Source) -> set[str] | None:
    """Return the classes that run in pipeline stages, by what they inherit; None where a version does not say it so."""
    folders = (source.folder / source.package / "model_executor" / "models", source.folder / source.package / "models")
    texts = [file.read_text(encoding="utf-8") for folder in folders for file in sorted(folder.rglob("*.py"))]
    bases = [(name, set(re.findall(r"\w+", listed))) for text in texts for name, listed in _BASES.findall(text)]
    if not any(name == _STAGES for name, _ in bases):
        return None
    found, before = {_STAGES}, 0
    while len(found) > before:
        before = len(found)
        found |= {name for name, inherited in bases if inherited & found}
    return found


def architectures(source: Source) -> dict[str, str]:
    """Return how generators run, by architecture: `native`, `whole` where that is in no pipeline stages, or `transformers` where the
    registry names that backend's class.
    """
    found: dict[str, str] = {}
    in_stages = _in_stages(source)
    for name, models in _tables(source):
        if any(word in name for word in _OTHER):
            continue
        for architecture, (module, class_) in models.items():
            if not architecture.startswith("Transformers"):
                whole = in_stages is not None and class_ not in in_stages
                found[architecture] = "transformers" if module.startswith(_BACKEND) else "whole" if whole else "native"
    return found


def backend(source: Source, transformers: Source) -> set[str]:
    """Return the architectures of a version of transformers that the backend runs (`is_backend_compatible` of its classes, as text).

    Experts and media need backend classes of their own, layers with states or cross attention have none.
    """
    registry = source.text(_PATH)
    takes_any = "_can_set_attn_implementation" in registry
    found: set[str] = set()
    for file in sorted((transformers.folder / transformers.package / "models").glob("*/modeling_*.py")):
        text = file.read_text(encoding="utf-8")
        compatible = "_supports_attention_backend = True" in text or (takes_any and "ALL_ATTENTION_FUNCTIONS" in text)
        if not compatible or _NOT_BY_BACKEND.search(text) or ("experts" in text and '"TransformersMoE' not in registry):
            continue
        media = '"TransformersForMultimodalLM"' in registry or '"TransformersMultiModal' in registry
        found |= {name for name in _CLASS.findall(text) if media or name.endswith("ForCausalLM")}
    return found if '"Transformers' in registry else set()


def changes(sources: Iterable[tuple[Source, Source | None]]) -> dict[str, list[tuple[str, str]]]:
    """Return by architecture the versions at which the answer changed, of sources oldest first, each with its transformers.

    What the oldest has may be older: it stands under `0.0`. `none`: a later version has it no more.
    """
    read = [
        (source.version, architectures(source), backend(source, used) if used else set()) for source, used in sources
    ]
    told: dict[str, list[tuple[str, str]]] = {name: [] for _, listed, _ in read for name in listed}
    for index, (version, listed, by_backend) in enumerate(read):
        for name, before in told.items():
            how = listed.get(name, "transformers" if name in by_backend else "none")
            if how != (before[-1][1] if before else "none"):
                before.append((version if index else "0.0", how))
    return told
