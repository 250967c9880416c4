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
_NOT_BY_BACKEND = re.compile(r"mamba|linear_attn|cross_att", re.IGNORECASE)


def _tables(source: Source) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """Give the tables of models: name, and (module, class) by architecture."""
    for node in [*source.tree(_PATH).body, *source.tree(_OLD_PATH).body]:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict() as value) if name.endswith("_MODELS"):
                literal = literal_of(value)
                if literal and all(isinstance(entry, tuple) for entry in literal[0].values()):
                    yield name, literal[0]


def architectures(source: Source) -> dict[str, str]:
    """Return how generators run, by architecture: `native`, or `transformers` where the registry names that backend's class."""
    found: dict[str, str] = {}
    for name, models in _tables(source):
        if any(word in name for word in _OTHER):
            continue
        for architecture, (module, _) in models.items():
            if not architecture.startswith("Transformers"):
                found[architecture] = "transformers" if module.startswith(_BACKEND) else "native"
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
