"""Chains of passes that are weighed: prunings × formats with their methods × types of the cache."""

from __future__ import annotations

from collections.abc import Iterator

from passes import chain
from passes.base import NATIVE, Pass, Stage
from passes.formats import kv_dtypes
from passes.formats.kv_dtypes import OWN
from passes.ir.model import ModelIR
from passes.kv_cache import KVCachePass
from passes.quantize.format_names import pass_named
from planner.asked import rewrite
from planner.spec.parts.choices import DistillChoice, PruneChoice, QuantizeChoice
from planner.spec.spec import Spec
from targets.engines.engine import find_engine


def chains(spec: Spec, ir: ModelIR, engine: str) -> Iterator[tuple[Pass, ...]]:
    """Yield every chain of fixed widths: pruning × quantization × KV type."""
    for pruning in prunings(spec, ir):
        for first in _quantizations(spec, ir, engine):
            head: tuple[Pass, ...] = (*pruning, first) if first is not None else pruning
            for dtype in cache_dtypes(spec, engine):
                yield from ((*head, *cache) for cache in caches(ir, head, dtype))


def prunings(spec: Spec, ir: ModelIR) -> Iterator[tuple[Pass, ...]]:
    """Yield the structural heads of a chain: as asked, or none, or none and each kind and degree; with distillation where allowed."""
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


def cache_dtypes(spec: Spec, engine: str) -> tuple[str, ...]:
    """Return the types of the cache that a spec asks for, else those that are weighed, as far as the engine has them."""
    known, asked = find_engine(engine).kv_dtypes, spec.passes.kv_cache
    wanted = asked if asked is not None else [dtype.name for dtype in kv_dtypes.KV_DTYPES if dtype.weighed]
    return tuple(name for name in known if name in wanted)


def caches(ir: ModelIR, head: tuple[Pass, ...], dtype: str) -> Iterator[tuple[Pass, ...]]:
    """Yield the ways to keep the cache: with the engine's own scale (1), and with calibrated ones where weights are calibrated anyway."""
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
