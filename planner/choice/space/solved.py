"""Widths that are solved for, of formats that take any bits a weight: the most bits that fit and are fast enough, and where not quality but
speed, size or context is preferred, the fewest that are good enough. Where quality is, no more bits than anybody could tell (the band of
quality).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial

from passes import chain
from passes.base import Pass
from passes.ir.model import ModelIR
from passes.quantize.format_names import pass_named
from passes.record import dataclass
from planner.asked import rewrite
from planner.choice.capacity import Capacity, in_use, loaded
from planner.choice.demand import asks_speed, workload_of
from planner.choice.goals import FLOOR
from planner.choice.space.bits import fewest_bits, most_bits, widths
from planner.choice.space.chains import as_asked, cache_dtypes, caches, prunings
from planner.choice.verdict import judge_quality, judge_speed
from planner.quality.expected import expected_quality, growth
from planner.spec.parts.choices import QuantizeChoice
from planner.spec.spec import Spec
from targets.engines.engine import MemoryEstimate, Settings, find_engine
from targets.gpu import Gpu
from targets.workload import Workload


def solved(
    spec: Spec, ir: ModelIR, gpu: Gpu, engine: str, settings: Settings
) -> Iterator[tuple[tuple[Pass, ...], int]]:
    """Yield, for each head of a chain and each KV type, the widths at which every goal is met, by their better end; each with the number of
    widths that it stands for.
    """
    choice, any_width = spec.passes.quantize, find_engine(engine).any_width
    if any_width is None or choice == "forbid" or ir.quant_method is not None or choice.formats is not None:
        return
    kind, low, high = any_width.kind, any_width.low, any_width.high
    if choice.methods is not None and kind not in choice.methods:
        return
    for pruning, dtype in itertools.product(prunings(spec, ir), cache_dtypes(spec, engine)):
        family = _Family(spec, ir, gpu, engine, settings, kind, pruning, dtype)
        if family.illegal(high):
            yield family.chain(high), widths(low, high)
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
        share, rest = divmod(widths(low, high), len(ends))
        for place, bits in enumerate(sorted(ends, reverse=True)):
            yield family.chain(bits), share + (rest if place == 0 else 0)


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
        return (*head, *next(caches(self.ir, head, self.dtype)))

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
        if left >= 0 and asks_speed(spec):
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
