"""The space of a spec: every candidate = engine × chain of passes × KV type × spread over cards × engine settings.

A *design* is what the candidates of one engine, chain and spread have in common; they differ in settings only, which change
neither the checkpoint nor its quality. Formats of fixed width are enumerated. Of those that take any bits a weight, the hundreds of
widths are *solved for* (`planner.choice.bits`): the most bits that fit and are fast enough, and where not quality but speed, size or
context is preferred, the fewest that are good enough. Where quality is, no more bits than anybody could tell (the band of quality).

Checkpoints that others published are candidates as they are (`planner.choice.published`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from functools import partial

from passes import chain
from passes.base import NATIVE, Pass, Stage
from passes.errors import InputError
from passes.formats import kv_dtypes
from passes.formats.kv_dtypes import OWN
from passes.ir.model import ModelIR
from passes.ir.names import Published
from passes.kv_cache import KVCachePass
from passes.quantize.format_names import pass_named
from passes.record import dataclass
from planner.asked import rewrite
from planner.choice.bits import fewest_bits, most_bits, widths
from planner.choice.capacity import Capacity, in_use, loaded
from planner.choice.goals import FLOOR
from planner.choice.published import published_checkpoints
from planner.choice.verdict import judge_quality, judge_speed
from planner.quality.expected import expected_quality, growth
from planner.spec.parts.choices import DistillChoice, PruneChoice, QuantizeChoice
from planner.spec.parts.goals import Goals
from planner.spec.parts.target import EngineChoice, EngineSettings, Target
from planner.spec.spec import Spec
from targets.engines.engine import ENGINE_NAMES, MemoryEstimate, Parallel, Settings, find_engine
from targets.gpu import Gpu
from targets.workload import Limit, Workload


def workload_of(spec: Spec) -> Workload:
    """Return the workload of a spec."""
    return spec.workload.asked


def limits_of(goals: Goals) -> tuple[Limit, ...]:
    """Return what users are promised by the goals on a request's own speed."""
    out = [Limit(name, statistic, 1e3 * seconds) for name, statistic, seconds in goals.times]
    if goals.decode:
        out.append(Limit("tpot", "mean", 1e3 / goals.decode))
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Design:
    """An engine, a chain of passes and a spread over cards. `settings`: what may be set, fewest changes of defaults first; the
    last leaves the cache the most room. `stands_for`: candidates that are settled with it, settings and solved widths. `published`: the
    checkpoint that the chain begins with, in the model's place.
    """

    engine: str
    passes: tuple[Pass, ...]
    settings: tuple[Settings, ...]
    stands_for: int
    published: Published | None = None


def designs(spec: Spec, ir: ModelIR, gpu: Gpu, names: Container[str], cards: int | None = None) -> Iterator[Design]:
    """Yield every design of some engines, legal or not: the illegal ones lose with a reason. `cards`: those that use so many only."""
    for name, choice in engines(spec, gpu):
        if name not in names:
            continue
        chains = list(_chains(spec, ir, name))
        siblings = [
            (made, passes) for made, served in published_checkpoints(spec, ir)
            for dtype in _kv_dtypes(spec, name) for passes in _caches(served, (), dtype)
        ]  # fmt: skip
        for parallel in spreads(name, spec, cards):
            settings = settings_options(name, choice, spec, gpu, parallel)
            for passes in chains:
                yield Design(name, passes, settings, len(settings))
            for made, passes in siblings:
                yield Design(name, passes, settings, len(settings), made)
            yield from _solved(spec, ir, gpu, name, settings)


def spreads(engine: str, spec: Spec, cards: int | None = None) -> Iterator[Parallel]:
    """Give the engine's ways over each number of cards that is weighed; over `cards` alone where given. Tensor parallelism stays inside a
    machine; replicas are given where more than one request comes at a time.
    """
    node, known, load = spec.target.node, find_engine(engine), spec.workload
    clients = load.concurrency if isinstance(load.concurrency, int) and not load.arrives else math.inf
    for used in (cards,) if cards else numbers_of_cards(spec.target):
        for parallel in known.spreads(used):
            if parallel.tp <= node:
                yield parallel
        for replicas in range(2, used + 1) if known.replicates else ():
            shared = used % replicas == 0 and used // replicas <= node
            if shared and replicas <= clients:
                yield Parallel(tp=used // replicas, dp=replicas)


def numbers_of_cards(target: Target) -> Iterable[int]:
    """Return how many cards are weighed: powers of two and all of them; every number of one machine where the fewest are asked for, then
    whole machines.
    """
    count, node = target.cards, target.node
    if target.fewest:
        return (*range(1, min(node, count) + 1), *range(2 * node, count + 1, node))
    powers = [1 << n for n in range(count.bit_length()) if 1 << n <= count]
    return dict.fromkeys([*powers, count])


def settings_options(
    engine: str, choice: EngineChoice, spec: Spec, gpu: Gpu, parallel: Parallel
) -> tuple[Settings, ...]:
    """Return the settings that are weighed: as the spec has them, and every subset of the engine's leaner ones."""
    base = _settings(choice, spec, parallel)
    knobs = find_engine(engine).leaner(gpu, base, workload_of(spec))
    subsets = (chosen for size in range(len(knobs) + 1) for chosen in itertools.combinations(knobs, size))
    return tuple(replace(base, **dict(chosen)) for chosen in subsets)  # type: ignore[arg-type]


def engines(spec: Spec, gpu: Gpu) -> Iterator[tuple[str, EngineChoice]]:
    """Yield the engines that are weighed. Raises InputError for an unknown name."""
    if isinstance(spec.engine, EngineChoice):
        find_engine(spec.engine.name)
        yield spec.engine.name, spec.engine
    elif spec.engine != "auto":
        find_engine(spec.engine)
        yield spec.engine, EngineChoice(name=spec.engine)
    else:
        for name in ENGINE_NAMES:
            if find_engine(name).weighed_on(gpu):
                yield name, EngineChoice(name=name)


def _chains(spec: Spec, ir: ModelIR, engine: str) -> Iterator[tuple[Pass, ...]]:
    """Pruning × quantization × KV type."""
    for pruning in _prunings(spec, ir):
        for first in _quantizations(spec, ir, engine):
            head: tuple[Pass, ...] = (*pruning, first) if first is not None else pruning
            for dtype in _kv_dtypes(spec, engine):
                yield from ((*head, *cache) for cache in _caches(ir, head, dtype))


def _prunings(spec: Spec, ir: ModelIR) -> Iterator[tuple[Pass, ...]]:
    """The structural heads of a chain: as asked, none, or none and each kind and degree; each with distillation where allowed."""
    choice, distill = spec.passes.prune, spec.passes.distill
    if isinstance(choice, PruneChoice):
        heads: list[tuple[Pass, ...]] = [pinned(choice)]
    else:
        heads = [(), *((pruning,) for pruning in (_degrees(ir) if choice == "allow" else ()))]
    for head in heads:
        if not isinstance(distill, DistillChoice) or (choice == "allow" and not head):
            yield head  # where pruning is weighed, so is the model as it is, which has nothing to recover
        if distill == "allow" and head:
            yield (*head, _recovery(DistillChoice()))
        elif isinstance(distill, DistillChoice) and (head or choice != "allow"):
            yield (*head, _recovery(distill))


def _recovery(choice: DistillChoice) -> Pass:
    """The distillation that a spec asks for."""
    from passes.distill.distill import BLOCKWISE, BLOCKWISE_TOKENS, Distill  # most specs ask for none

    asked = choice.model_dump(exclude_none=True)
    return Distill(**{"tokens": BLOCKWISE_TOKENS, **asked} if choice.method == BLOCKWISE else asked)


def pinned(choice: PruneChoice) -> tuple[Pass, ...]:
    """Return the prunings that a spec asks for."""
    from passes.prune.depth import DepthPrune  # most specs ask for none
    from passes.prune.experts import ExpertPrune
    from passes.prune.sparse import Sparsify
    from passes.prune.width import WidthPrune

    out: list[Pass] = [DepthPrune(choice.depth)] if choice.depth else []
    if choice.intermediate or choice.kv_heads:
        out.append(WidthPrune(choice.intermediate or 0, choice.kv_heads or 0, choice.importance))
    if choice.experts:
        out.append(ExpertPrune(choice.experts))
    if choice.sparse:
        out.append(Sparsify(choice.sparse.method, choice.sparse.share, choice.sparse.pattern))
    return tuple(out)


def _degrees(ir: ModelIR) -> Iterator[Pass]:
    """Every pruning, of other packages too, at every strength worth weighing, kind by kind."""
    for name in chain.PASSES.names(installed=True):
        kind = chain.PASSES.find(name)
        if kind.stage is Stage.PRUNE:
            yield from kind.degrees(ir)


def _kv_dtypes(spec: Spec, engine: str) -> tuple[str, ...]:
    known, asked = find_engine(engine).kv_dtypes, spec.passes.kv_cache
    wanted = asked if asked is not None else [dtype.name for dtype in kv_dtypes.KV_DTYPES if dtype.weighed]
    return tuple(name for name in known if name in wanted)


def nothing_to_weigh(spec: Spec, gpu: Gpu) -> InputError:
    """Return the error for a spec that leaves no candidate: types of the cache that no engine of it has, or no format at all."""
    names = [name for name, _ in engines(spec, gpu)]
    if spec.passes.kv_cache is not None and not any(_kv_dtypes(spec, name) for name in names):
        asked = ", ".join(spec.passes.kv_cache)
        has = "; ".join(f"{name} has {', '.join(find_engine(name).kv_dtypes)}" for name in names)
        return InputError(f"nothing is left to weigh: no engine here keeps its cache as {asked}", remedy=has)
    return InputError(
        f"nothing is left to weigh: no format of `passes: quantize:` is one of {' or '.join(names)}, by a method that is named there",
        remedy="name other formats or methods, or `dense: true` to weigh the model as it is",
    )


def _caches(ir: ModelIR, head: tuple[Pass, ...], dtype: str) -> Iterator[tuple[Pass, ...]]:
    """The ways to keep the cache so: with the engine's own scale (1), and with calibrated ones where weights are calibrated anyway."""
    if dtype == OWN:
        yield ()
        return
    yield (KVCachePass(dtype),)
    scaled = KVCachePass(dtype, scales=True)
    after, _ = rewrite(ir, head)
    if chain.needs_text(head, after) and not scaled.illegal(after) and not chain.outside(head):
        yield (scaled,)


def _quantizations(spec: Spec, ir: ModelIR, engine: str) -> Iterator[Pass | None]:
    choice = spec.passes.quantize
    if choice == "forbid" or ir.quant_method is not None:
        yield None
        return
    if choice.weighs_dense:
        yield None
    yield from (as_asked(choice, pass_) for pass_ in _stored(choice, engine))


def as_asked(choice: QuantizeChoice, pass_: Pass) -> Pass:
    """Return a pass with the damping, and made by the tool, that the spec names; what only one tool makes stays with that tool."""
    backend = choice.backend if pass_.backend == NATIVE else pass_.backend
    return pass_.with_options(damping=choice.damping, backend=backend)


def _stored(choice: QuantizeChoice, engine: str) -> Iterator[Pass]:
    """The formats that are weighed, each with its method, every one once."""
    yield from dict.fromkeys(_named(choice, engine))


def _named(choice: QuantizeChoice, engine: str) -> Iterator[Pass]:
    """The formats that are named, else those of the engine, each by the methods that are named, else by its usual one. A format that was
    asked for by name is made by whichever method was; of the engine's own, one that is calibrated may be rounded instead.
    """
    methods = choice.methods
    for name in choice.formats if choice.formats is not None else find_engine(engine).weighed_formats:
        parsed = pass_named(name)
        if parsed is None:
            continue
        if methods is None or parsed.rounds_by in methods:
            yield parsed
        elif not parsed.load_time:
            others = methods if choice.formats is not None else ("rtn",) if parsed.rounds_by == "gptq" else ()
            made = (parsed.with_options(method=method) for method in methods if method in others)
            yield from (pass_ for pass_ in made if pass_.rounds_by in methods)


def _solved(spec: Spec, ir: ModelIR, gpu: Gpu, engine: str, settings: tuple[Settings, ...]) -> Iterator[Design]:
    """For each head of a chain and each KV type the widths at which every goal is met, by their better end."""
    choice, any_width = spec.passes.quantize, find_engine(engine).any_width
    if any_width is None or choice == "forbid" or ir.quant_method is not None or choice.formats is not None:
        return
    kind, low, high = any_width.kind, any_width.low, any_width.high
    if choice.methods is not None and kind not in choice.methods:
        return
    for pruning, dtype in itertools.product(_prunings(spec, ir), _kv_dtypes(spec, engine)):
        family = _Family(spec, ir, gpu, engine, settings[0], kind, pruning, dtype)
        if family.illegal(high):
            yield Design(engine, family.chain(high), settings, len(settings) * widths(low, high))
            continue
        least = max(low, _lowest(chain.rewrite(ir, pruning), kind, low))
        if not spec.goals.asks_quality:
            least = fewest_bits(family.is_still_the_model, least, high) or least
        most = most_bits(family.slack, least, high)
        if most is not None and spec.goals.prefer == "quality":
            most = fewest_bits(partial(family.as_good_as, most), least, most)
        ends = {least if most is None else most}
        if spec.goals.prefer != "quality" and (fewest := fewest_bits(family.good, least, high)) is not None:
            ends.add(fewest)
        for bits in sorted(ends, reverse=True):
            yield Design(engine, family.chain(bits), settings, len(settings) * widths(low, high) // len(ends))


@dataclass(frozen=True, slots=True)
class _Family:
    """Chains that differ in bits a weight only."""

    spec: Spec
    ir: ModelIR
    gpu: Gpu
    engine: str
    settings: Settings
    kind: str
    pruning: tuple[Pass, ...]
    dtype: str

    def chain(self, bits: float) -> tuple[Pass, ...]:
        """Return the chain at a width."""
        stored = pass_named(f"{self.kind}-{bits:.2f}".rstrip("0").rstrip("."))
        assert stored is not None
        choice = self.spec.passes.quantize
        head = (*self.pruning, as_asked(choice, stored) if isinstance(choice, QuantizeChoice) else stored)
        return (*head, *next(_caches(self.ir, head, self.dtype)))

    def illegal(self, bits: float) -> bool:
        """Return whether a pass or the engine refuses the chain. At the widest, none of them can be legal: nothing is solved for."""
        ir, reasons = rewrite(self.ir, self.chain(bits))
        return bool(reasons or find_engine(self.engine).illegal(ir, self.gpu, self.settings))

    def slack(self, bits: float) -> float:
        """Return the bytes of cache surely left when the workload is served, by the upper end of what is assumed of the rest; negative
        where it is not, or where a goal on speed is less likely than is asked.
        """
        spec, (ir, workload, estimate, needs) = self.spec, self._held(bits)
        left = needs.room.low
        if left >= 0 and (spec.goals.asks_speed or workload.lasts):
            speed = find_engine(self.engine).speed(ir, self.gpu, self.settings, workload, estimate)
            if not all(goal.odds >= spec.goals.confidence for goal in judge_speed(spec.goals, workload, speed)):
                return -1.0
        return left

    def _held(self, bits: float) -> tuple[ModelIR, Workload, MemoryEstimate, Capacity]:
        engine = find_engine(self.engine)
        ir = chain.rewrite(self.ir, self.chain(bits))
        workload = loaded(engine, ir, self.gpu, self.settings, workload_of(self.spec))
        return ir, workload, *in_use(engine, ir, self.gpu, self.settings, workload)

    def good(self, bits: float) -> bool:
        """Return whether the goals on quality are as likely as is asked."""
        quality = expected_quality(self.ir, self.chain(bits))
        return all(goal.odds >= self.spec.goals.confidence for goal in judge_quality(self.spec.goals, quality))

    def is_still_the_model(self, bits: float) -> bool:
        """Return whether it loses no more than `FLOOR`."""
        return growth(expected_quality(self.ir, self.chain(bits)).log_ppl_increase.value) <= FLOOR

    def as_good_as(self, most: float, bits: float) -> bool:
        """Return whether nobody could tell these bits from more: they differ by less than the band of quality, and the goals are met."""
        more, fewer = (
            growth(expected_quality(self.ir, self.chain(width)).log_ppl_increase.value) for width in (most, bits)
        )
        return fewer - more <= self.spec.goals.bands.quality and (self.good(bits) or not self.good(most))


def _lowest(ir: ModelIR, kind: str, low: float) -> float:
    """The fewest bits the format reaches on this model, in hundredths upwards."""
    if kind != "exl2":
        return low
    from passes.quantize.exl2 import lowest_bpw

    return math.ceil(lowest_bpw(ir) * 100) / 100


def _settings(choice: EngineChoice, spec: Spec, parallel: Parallel) -> Settings:
    s: EngineSettings = choice.settings
    return Settings(
        version=choice.version, parallel=parallel, gpu_memory_utilization=s.gpu_memory_utilization,
        max_num_seqs=s.max_num_seqs, max_num_batched_tokens=s.max_num_batched_tokens, enforce_eager=s.enforce_eager,
        block_size=s.block_size, kv_cache_memory_bytes=s.kv_cache_memory, reserve_bytes=spec.target.reserve,
    )  # fmt: skip
