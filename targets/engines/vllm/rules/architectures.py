"""Whether a version of vLLM has a model for an architecture, by the registries of its wheels.

`architectures.json` is made by `python -m benchmarks.read_vllm_wheels --table` from `model_executor/models/registry.py` of the wheels
that it names: for each architecture the versions at which the answer changed, oldest first. `native` is a model of vLLM's own,
`whole` one that cannot be cut into pipeline stages (its class is no `SupportsPP`), `transformers` one that its Transformers backend runs,
`none` one that it no longer has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from passes.errors import Reason
from passes.ir.model import ModelIR
from passes.ir.state import NoState
from passes.record import dataclass
from targets.engines.vllm.rules.versions import Rules, Version, parse_version, version_text

Change = tuple[Version, str]


@dataclass(frozen=True, slots=True)
class _Registries:
    """The versions that were read, oldest first, and the changes by architecture."""

    versions: tuple[Version, ...]
    changes: dict[str, tuple[Change, ...]]


@cache
def _registries() -> _Registries:
    text = Path(__file__).with_name("architectures.json").read_text(encoding="utf-8")
    table = json.loads(text)
    changes = {
        name: tuple((parse_version(since), how) for since, how in listed)
        for name, listed in table["architectures"].items()
    }
    return _Registries(tuple(parse_version(version) for version in table["versions"]), changes)


def support(architecture: str, version: Version) -> str | None:
    """Return how a version runs an architecture: `native`, `whole`, `transformers`, `none` (any more), `later`; None where no registry has
    it.
    """
    changes = _registries().changes.get(architecture)
    if changes is None:
        return None
    return next((how for since, how in reversed(changes) if version >= since), "later")


def architecture_reasons(ir: ModelIR, rules: Rules) -> Iterator[Reason]:
    """Say why this version has no model for the architecture: it came later, or was removed. What no registry has is not judged."""
    how = support(ir.architecture, rules.version)
    if how not in ("later", "none"):
        return
    registries = _registries()
    changes, asked = registries.changes[ir.architecture], rules.said
    if how == "later":
        first = version_text(changes[0][0])
        message = f"vLLM {asked} does not know {ir.architecture}, which it has from {first} on"
        yield Reason("architecture_too_new", message, f"vLLM {first} or newer")
    else:
        gone = max(since for since, _ in changes if since <= rules.version)
        last = version_text(max(version for version in registries.versions if version < gone))
        message = f"vLLM {asked} has no model for {ir.architecture} any more: it was removed in {version_text(gone)}"
        yield Reason("architecture_removed", message, f"vLLM {last}, the last that has it")


def stage_reasons(ir: ModelIR, stages: int, rules: Rules) -> Iterator[Reason]:
    """Say why this version does not cut the model into pipeline stages."""
    if stages == 1 or support(ir.architecture, rules.version) != "whole":
        return
    message = f"vLLM {rules.said} cuts no {ir.architecture} into pipeline stages"
    later = next(
        (since for since, how in _registries().changes[ir.architecture] if since > rules.version and how == "native"),
        None,
    )
    newer = f", or vLLM {version_text(later)} or newer" if later else ""
    yield Reason("no_pipeline_stages", message, f"tensor parallelism{newer}")


def architecture_note(ir: ModelIR, rules: Rules) -> str | None:
    """Say who runs the model where that is not vLLM's own: its Transformers backend, or nobody by the registries that were read."""
    if all(isinstance(block.state, NoState) for block, _ in ir.decoder.counts):
        return (
            None  # encoders stand in tables of their own (`_EMBEDDING_MODELS`, `_CROSS_ENCODER_MODELS` of its registry)
        )
    match support(ir.architecture, rules.version):
        case "transformers":
            return f"vLLM {rules.said} runs {ir.architecture} by its Transformers backend; computed here like a model of its own"
        case None:
            newest = version_text(_registries().versions[-1])
            return f"no version of vLLM up to {newest} names {ir.architecture} in its registry: it may need a plugin"
    return None
