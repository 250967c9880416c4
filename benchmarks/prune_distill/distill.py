"""Distillation of SmolLM2 without a fifth of its blocks, tuning of its blocks at 3 bits, and the forecast of five runs.

The student is trained on text that its teacher wrote, and judged on another. Budgets are those of two cores and half an hour: what more
tokens bring is the forecast's matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

from benchmarks.prune_distill.bench import Bench, Line
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
from passes.measure.evaluate import Measured, evaluate
from passes.prune.depth import DepthPrune
from passes.quantize.quantize import Quantize
from passes.steps.context import RunContext
from passes.steps.key import content_key
from passes.text.source import tokens_digest
from passes.walk.walk import Walk
from planner.quality.expected import growth

#: A fifth of 30 blocks, chosen by influence.
BLOCKS = 6
#: The stated budget of the recovery, and of each of the runs whose end is forecast after a fifth.
RECOVERY = Distill(tokens=49_152, length=128, epochs=2, learning_rate=3e-4)
FORECAST = replace(RECOVERY, tokens=12_288)
SEEDS = range(5)
#: Three bits with a scale for 64 weights, and the tokens that each block is tuned on.
QUANTIZE = Quantize("gptq", PackQuantized(3, 64))
TUNING = Tuning(32_768)


def judged(bench: Bench, dense: DenseModel, run: RunContext) -> Measured:
    """Return what a model loses on the judging text, measured once."""
    key = content_key(*dense.identity, "judged", tokens_digest(bench.judging))
    on_text = run.on_text(bench.judging)
    return Measured(
        **on_text.measured("judge", "judged", key, lambda inside: asdict(evaluate(bench.source, dense, inside)))
    )


def pruned(bench: Bench, run: RunContext) -> DenseModel:
    """Return SmolLM2 without the blocks that matter least."""
    pass_ = DepthPrune(BLOCKS).resolve(bench.source, run)
    return pass_.dense(bench.source, run).descends_from(bench.source)


def recovery(bench: Bench) -> Iterator[Line]:
    """Yield what a budget of distillation takes back."""
    run = bench.within("distill")
    before = pruned(bench, run)
    after = distilled(RECOVERY, before, run)
    rises = [growth(judged(bench, dense, run).log_ppl_increase) for dense in (before, after)]
    yield Line("a fifth of the blocks gone: perplexity grows by", 100 * rises[0], "%")
    yield Line(f"after {RECOVERY.tokens:,} tokens of distillation", 100 * rises[1], "%")
    yield Line("what distillation leaves of it", rises[1] / rises[0], "of the rise", 0.5)


def forecasts(bench: Bench) -> Iterator[Line]:
    """Yield how many of the runs end where their first fifth says."""
    run = bench.within("distill")
    before = pruned(bench, run)
    held = 0
    for seed in SEEDS:
        plan = replace(FORECAST, seed=seed)
        after = distilled(plan, before, run)
        curve = Curve(after.weights.folder.parent).points
        fifth = [point for point in curve if point.tokens <= curve[-1].tokens / 5]
        expected = expected_loss(fifth, curve[-1].tokens)
        assert expected is not None, curve
        inside = expected.low <= curve[-1].loss <= expected.high
        held += inside
        yield Line(f"seed {seed}: ends at {curve[-1].loss:.4f}, after a fifth {expected} was expected", inside, "held")
    yield Line("forecasts that do not hold the end", len(SEEDS) - held, f"of {len(SEEDS)}", 1)


def blockwise(bench: Bench) -> Iterator[Line]:
    """Yield what tuning the blocks takes off the KL of 3 bits."""
    kl = {name: three_bits(bench, name, tuning) for name, tuning in (("GPTQ", None), ("GPTQ, tuned", TUNING))}
    for name, value in kl.items():
        yield Line(f"3 bits by {name}: KL", value, "nats")
    yield Line("tuned over plain", kl["GPTQ, tuned"] / kl["GPTQ"], "of the KL", 0.8)


def three_bits(bench: Bench, name: str, tuning: Tuning | None) -> float:
    """Return the KL of the model stored in 3 bits, its blocks tuned or not."""
    run, source = bench.within("distill"), bench.source
    planned = QUANTIZE.rewrite(source.ir)
    key = content_key(*source.identity, "w3", asdict(tuning) if tuning else None, tokens_digest(run.text))

    def make(inside: RunContext) -> dict[str, float]:
        Walk(source, planned, chain.method([QUANTIZE]), inside, tuning=tuning).run()
        shards = inside.folder / "shards"
        write_shard(shards / "model-00000.safetensors", source.outer(planned))
        result = decoded_model(source.ir, planned, shards, inside.dtype)
        return asdict(evaluate(source, result, inside.part(inside.folder / "judged").on_text(bench.judging)))

    return float(run.measured(f"3 bits by {name}", "w3", key, make)["kl"])
