"""Distillation of a model without a fifth of its blocks, and of one a fifth narrower, tuning of its blocks at 3 bits, and the forecast of
five runs.

Students are trained on other news and other documentation than what judges, and on text that their teacher wrote. What more tokens bring
than two cores get through in forty minutes is the forecast's matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

from benchmarks.prune_distill.bench import Bench, Figure, Line, grown, lines, ratio
from benchmarks.prune_distill.prune import narrower
from passes import chain
from passes.algorithms.learned.rounding import Tuning
from passes.blocks.decoded_weights import decoded_model
from passes.blocks.dense_model import DenseModel
from passes.distill.curve import expected_loss
from passes.distill.distill import Distill
from passes.distill.student import distilled
from passes.distill.trainer import Curve
from passes.files.checkpoint import write_shard
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.measure.evaluate import evaluate
from passes.prune.depth import DepthPrune
from passes.quantize.quantize import Quantize
from passes.steps.context import RunContext
from passes.steps.key import content_key
from passes.text.source import tokens_digest
from passes.walk.walk import Walk

#: The part of the blocks that goes, chosen by influence.
SHARE = 5
SEEDS = range(5)
#: Three bits with a scale for 64 weights.
QUANTIZE = Quantize("gptq", PackQuantized(3, 64))


def pruned(bench: Bench, run: RunContext) -> DenseModel:
    """Return the model without the blocks that matter least."""
    pass_ = DepthPrune(max(1, round(len(bench.source) / SHARE))).resolve(bench.source, run)
    return pass_.dense(bench.source, run).descends_from(bench.source)


def recovery(bench: Bench) -> Iterator[Line]:
    """Yield what a budget of distillation takes back of a model with fewer blocks."""
    run = bench.within("distill", bench.subject.chosen_on)
    yield from _taken_back(bench, "a fifth of the blocks gone", pruned(bench, run), bench.subject.recovery)


def narrowed(bench: Bench) -> Iterator[Line]:
    """Yield what a budget of distillation takes back of the narrower model, whose matrices have made up for what is gone."""
    before = narrower(bench, bench.subject.chosen, compensate=True)
    yield from _taken_back(
        bench, f"a fifth narrower by {bench.subject.chosen}, compensated", before, bench.subject.narrowed
    )


def _taken_back(bench: Bench, cut: str, before: DenseModel, plan: Distill) -> Iterator[Line]:
    lost = bench.rises(before)
    yield from lines(f"{cut}: perplexity grows by", "%", {text: grown(found) for text, found in lost.items()})
    run = bench.within("distill", bench.subject.chosen_on)
    left = bench.rises(distilled(replace(plan, dataset=str(bench.lessons)), before, run))
    adapters = f" by adapters of rank {plan.lora_rank}" if plan.lora_rank else ""
    budget = f"after {plan.tokens:,} tokens of distillation{adapters}"
    yield from lines(f"{budget}: perplexity grows by", "%", {text: grown(found) for text, found in left.items()})
    figures = {text: ratio(found, lost[text]) for text, found in left.items()}
    yield from lines("what distillation leaves", "of the rise", figures, 0.5)


def forecasts(bench: Bench) -> Iterator[Line]:
    """Yield how many of the runs end where their first fifth says."""
    run = bench.within("distill", bench.subject.chosen_on)
    before = pruned(bench, run)
    missed = 0
    for seed in SEEDS:
        after = distilled(replace(bench.subject.forecast, dataset=str(bench.lessons), seed=seed), before, run)
        curve = Curve(after.weights.folder.parent).points
        fifth = [point for point in curve if point.tokens <= curve[-1].tokens / 5]
        expected = expected_loss(fifth, curve[-1].tokens)
        assert expected is not None, curve
        missed += not expected.low <= curve[-1].loss <= expected.high
        told = f"seed {seed}: after a fifth {expected} was expected, the loss ends at"
        yield Line(told, Figure(curve[-1].loss), "nats")
    yield Line("forecasts that do not hold the end", Figure(missed), f"of {len(SEEDS)}", 1)


def blockwise(bench: Bench) -> Iterator[Line]:
    """Yield what tuning the blocks takes off the KL of 3 bits, on Python's reference."""
    kl = {
        name: three_bits(bench, name, tuning)
        for name, tuning in (("GPTQ", None), ("GPTQ, tuned", bench.subject.tuning))
    }
    for name, figure in kl.items():
        yield Line(f"3 bits by {name}: KL", figure, "nats")
    yield Line("tuned over plain", Figure(kl["GPTQ, tuned"].value / kl["GPTQ"].value), "of the KL", 0.8)


def three_bits(bench: Bench, name: str, tuning: Tuning | None) -> Figure:
    """Return the KL of the model stored in 3 bits, its blocks tuned or not."""
    run, source = bench.within("distill", bench.subject.fitted_to), bench.source
    judging = bench.judging[: bench.subject.judged]
    planned = QUANTIZE.rewrite(source.ir)
    options = asdict(tuning) if tuning else None
    key = content_key(*source.identity, "w3", options, tokens_digest(run.text), tokens_digest(judging))

    def make(inside: RunContext) -> dict[str, float]:
        Walk(source, planned, chain.method([QUANTIZE]), inside, tuning=tuning).run()
        shards = inside.folder / "shards"
        write_shard(shards / "model-00000.safetensors", source.outer(planned))
        result = decoded_model(source.ir, planned, shards, inside.dtype)
        return asdict(evaluate(source, result, inside.part(inside.folder / "judged").on_text(judging)))

    found = run.measured(f"3 bits by {name}", "w3", key, make)
    return Figure(found["kl"], found["kl_stderr"])
