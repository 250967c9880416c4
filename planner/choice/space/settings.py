"""The engine's settings that are weighed: the spec's own, the engine's leaner ones, and those that buy room with speed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from planner.choice.demand import workload_of
from targets.engines.engine import Engine, Parallel, Settings, find_engine
from targets.gpu import Gpu
from targets.workload import Workload

if TYPE_CHECKING:
    from planner.spec.parts.target import EngineChoice
    from planner.spec.spec import Spec


def settings_options(
    engine: str, choice: EngineChoice, spec: Spec, gpu: Gpu, parallel: Parallel, *, frugal: bool = False
) -> tuple[Settings, ...]:
    """Return the settings that are weighed: as the spec has them, and every subset of the engine's leaner ones; `frugal`: as the spec has
    them, and those that buy room with speed, none where the engine has none.
    """
    base, load, known = _settings(choice, spec, parallel), workload_of(spec), find_engine(engine)
    if frugal:
        bought = frugal_settings(known, gpu, base, load)
        return (base, *(replace(base, **each) for each in bought)) if bought else ()
    return tuple(replace(base, **each) for each in subsets(known.leaner(gpu, base, load)))


def frugal_settings(engine: Engine, gpu: Gpu, base: Settings, load: Workload) -> tuple[dict[str, Any], ...]:
    """Return the changes that are tried where nothing fits: all of an engine's leaner settings, and beside them each subset of those that
    buy room with speed, the cheapest first.
    """
    lean = dict(engine.leaner(gpu, base, load))
    return tuple(lean | each for each in subsets(engine.frugal(gpu, base, load), fewest=1))


def subsets(knobs: Sequence[tuple[str, Any]], fewest: int = 0) -> Iterator[dict[str, Any]]:
    """Yield every choice of `fewest` settings or more, those of few first."""
    for size in range(fewest, len(knobs) + 1):
        yield from (dict(chosen) for chosen in itertools.combinations(knobs, size))


def _settings(choice: EngineChoice, spec: Spec, parallel: Parallel) -> Settings:
    s = choice.settings
    return Settings(
        version=choice.version, parallel=parallel, gpu_memory_utilization=s.gpu_memory_utilization,
        max_num_seqs=s.max_num_seqs, max_num_batched_tokens=s.max_num_batched_tokens, enforce_eager=s.enforce_eager,
        block_size=s.block_size, kv_cache_memory_bytes=s.kv_cache_memory, reserve_bytes=spec.target.reserve,
    )  # fmt: skip
