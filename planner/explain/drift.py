"""`optimize drift`: a plan under other versions of its engine: cache, graphs, what the engine does by itself, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from passes.record import dataclass
from planner.choice.capacity import in_use, reasons
from planner.plan.codec import FORMAT_VERSION
from planner.plan.opened import Opened
from planner.plan.stated import StatedReason, stated
from targets.engines.engine import find_engine
from targets.quantity import Quantity


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a plan under a version, in `unit`."""

    name: str
    unit: str
    value: Quantity


@dataclass(frozen=True, slots=True)
class Changed:
    """What differs from the planned version: both values, and of figures by which share the new one is more."""

    what: str
    unit: str
    planned: float | str
    there: float | str
    share: float | None = None


@dataclass(frozen=True, slots=True)
class VersionDrift:
    """A plan under one version. `known`: its accounting was read; else `notes` say what is taken in its place. `fits`: it starts, serves
    what was asked, and refuses nothing.
    """

    version: str
    known: bool
    fits: bool
    refused: tuple[StatedReason, ...]
    figures: tuple[Figure, ...]
    by_itself: Mapping[str, float | str]
    changes: tuple[Changed, ...] = ()
    notes: tuple[str, ...] = ()

    def figure(self, name: str) -> Figure:
        """Return the figure of that name."""
        return next(each for each in self.figures if each.name == name)


@dataclass(frozen=True, slots=True)
class DriftDocument:
    """The answer of `drift`."""

    format_version: str
    model: str
    gpu: str
    engine: str
    label: str
    planned: VersionDrift
    versions: tuple[VersionDrift, ...]

    @property
    def fits(self) -> bool:
        """Whether the plan holds under every version that was asked for."""
        return all(each.fits for each in self.versions)

    @property
    def exit_code(self) -> int:
        """0: it holds under all; 3: not under one whose accounting is known; 6: what comes of it is not known of one."""
        if any(each.known and not each.fits for each in self.versions):
            return 3
        return 0 if all(each.known for each in self.versions) else 6


def drift(plan: Opened, versions: Sequence[str] = ()) -> DriftDocument:
    """Return what becomes of a plan under other versions of its engine; without any, under every one that is known to differ."""
    engine = plan.document.decision.engine
    planned = _under(plan, engine.version)
    asked = versions or find_engine(engine.name).known_versions()
    there = (_under(plan, version) for version in asked)
    return DriftDocument(
        FORMAT_VERSION, plan.document.model, plan.document.lock.gpu.name, engine.name, plan.document.decision.label, planned,
        tuple(_against(planned, each) for each in there),
    )  # fmt: skip


def _against(planned: VersionDrift, there: VersionDrift) -> VersionDrift:
    """A version with what differs from the planned one; its notes but for those that the plan has too."""
    notes = tuple(note for note in there.notes if note not in planned.notes)
    return replace(there, changes=tuple(changed(planned, there)), notes=notes)


def _under(plan: Opened, version: str | None) -> VersionDrift:
    """The plan's own settings, checkpoint and load under a version; its requests take the cache as they did when it was chosen."""
    chosen, gpu = plan.document.decision, plan.gpu
    engine, workload = find_engine(chosen.engine.name), plan.spec.workload.asked
    if chosen.capacity is not None:
        workload = replace(workload, concurrency=chosen.capacity.clients)
    settings = replace(chosen.settings.settings, version=version, reserve_bytes=plan.spec.target.reserve)
    ir = plan.ir
    estimate, used = in_use(engine, ir, gpu, settings, workload)
    refused = (*engine.illegal(ir, gpu, settings), *reasons(estimate, used, workload))
    memory, kv = estimate.memory, estimate.kv
    newer = tuple(note for note in estimate.notes if "newer than" in note)
    figures = (
        Figure("KV tokens", "tokens", kv.tokens),
        Figure("KV cache", "B", memory.kv_cache),
        Figure("longest context", "tokens", Quantity.exact(kv.max_context)),
        Figure("requests at full context", "", kv.max_concurrency),
        Figure("weights", "B", memory.weights),
        Figure("activations", "B", memory.activations),
        Figure("outside torch", "B", memory.non_torch),
        Figure("CUDA graphs", "B", memory.cuda_graphs),
        Figure("budget", "B", memory.budget),
    )
    own = engine.by_itself(ir, gpu, settings, workload)
    return VersionDrift(
        version or "newest",
        not newer,
        not refused and estimate.starts,
        tuple(map(stated, refused)),
        figures,
        own,
        notes=estimate.notes,
    )


def changed(planned: VersionDrift, there: VersionDrift) -> Iterator[Changed]:
    """Give what differs between a plan under two versions: figures, then what the engine does by itself."""
    for old, new in zip(planned.figures, there.figures, strict=True):
        before, after = old.value.value, new.value.value
        if before != after:
            yield Changed(old.name, old.unit, before, after, after / before - 1 if before > 0 else None)
    for name in dict.fromkeys([*planned.by_itself, *there.by_itself]):
        first, second = planned.by_itself.get(name, "none"), there.by_itself.get(name, "none")
        if first != second:
            numbers = isinstance(first, int | float) and isinstance(second, int | float)
            yield Changed(name, "", first, second, second / first - 1 if numbers and first else None)  # type: ignore[operator]
