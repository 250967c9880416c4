"""Width pruning of SmolLM2's MLPs by a fifth: what compensation takes back, and what importance is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from benchmarks.prune_distill.bench import Bench, Line
from passes.measure.evaluate import evaluate
from passes.prune.width import WidthPrune
from passes.steps.key import content_key
from passes.text.source import tokens_digest
from planner.quality.expected import growth

#: A fifth of 1536 channels goes, to a multiple of the group of 64 that 4 bits are stored in.
CHANNELS = 1216


def pruned(importance: str, *, compensate: bool = True) -> WidthPrune:
    """Return the pass that is measured."""
    return WidthPrune(CHANNELS, importance=importance, compensate=compensate)


def rise(bench: Bench, pass_: WidthPrune) -> float:
    """Return by which share a pass makes perplexity grow on the judging text."""
    run = bench.within("prune")
    dense = pass_.dense(bench.source, run)
    key = content_key(*dense.identity, "rise", tokens_digest(bench.judging))
    judged = run.on_text(bench.judging)
    found = judged.measured("judge", "judged", key, lambda inside: asdict(evaluate(bench.source, dense, inside)))
    return growth(found["log_ppl_increase"])


def lines(bench: Bench) -> Iterator[Line]:
    """Yield the stage's lines."""
    raw = {name: rise(bench, pruned(name, compensate=False)) for name in ("activation",)}
    made_up = {name: rise(bench, pruned(name)) for name in ("activation", "taylor", "hessian", "magnitude", "random")}
    for name, share in raw.items():
        yield Line(f"raw, by {name}: perplexity grows by", 100 * share, "%")
    for name, share in made_up.items():
        yield Line(f"compensated, by {name}: perplexity grows by", 100 * share, "%")
    best = min(made_up["activation"], made_up["taylor"], made_up["hessian"])
    yield Line("compensated over raw, by activation", made_up["activation"] / raw["activation"], "of the rise", 0.5)
    yield Line("importance over magnitude, both compensated", best / made_up["magnitude"], "of the rise", 0.8)
    yield Line("importance over random, both compensated", best / made_up["random"], "of the rise", 0.8)
