"""The choices of a chain that have to be measured: which blocks to drop, which option every slot of EXL2 takes.

Passes are resolved in the order in which they run, each on the source as the ones before it have left it. Measurements are kept
in the work folder under their keys and serve any budget.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from passes import chain
from passes.base import Pass
from passes.blocks.renumbered import RenumberedWeights
from passes.formats.compressed_tensors import PackQuantized
from passes.formats.format import Format
from passes.ir.model import ModelIR
from passes.prune.depth import DepthPrune
from passes.prune.influence import choose_blocks
from passes.quantize.exl2 import QuantizeExl2
from passes.quantize.mixed import QuantizeMixed
from passes.steps.key import content_key
from passes.steps.step import Report, Steps
from passes.text.source import tokens_digest
from passes.text.split import FISHER_SEQUENCES, fitted_part

if TYPE_CHECKING:
    import torch

    from passes.files.checkpoint import Weights

_P = TypeVar("_P", bound=Pass)
#: What a slot's loss at four bits is estimated with: a scale a row fits every shape.
_FOUR_BITS = PackQuantized(4, -1)


@dataclass
class Resolver:
    """Resolves a chain on `weights` described by `dense`; afterwards both are as the structural passes left them."""

    dense: ModelIR
    weights: Weights
    tokens: torch.Tensor
    work: Path
    dtype: torch.dtype
    device: torch.device
    identity: list[object]
    steps: Steps
    _passes: list[Pass] = field(default_factory=list)

    def resolved(self, passes: Sequence[Pass]) -> list[Pass]:
        """The chain with every choice made."""
        for one in passes:
            if isinstance(one, DepthPrune):
                one = one if one.resolved else self._cheapest_blocks(one)
                self.weights = RenumberedWeights(self.weights, self.dense, one.kept(len(self.dense.decoder.layers)))
                self.dense = one.rewrite(self.dense)
            elif isinstance(one, QuantizeExl2) and not one.resolved and one.backend == "native":
                one = self._exl2_choices(one)
            elif isinstance(one, QuantizeMixed) and not one.resolved:
                one = self._mixed_choices(one)
            self._passes.append(one)
        return self._passes

    def _cheapest_blocks(self, one: DepthPrune) -> DepthPrune:
        key = self._key("depth", one.count)
        path = self.work / f"depth-{key}.json"

        def make(parts: Path, report: Report) -> dict[str, Any]:
            chosen = choose_blocks(
                self.dense, self.weights, one.count, self.tokens, parts, self.dtype, self.device, report
            )
            return {"blocks": list(chosen)}

        return DepthPrune(one.count, tuple(self.steps.once("measure depth", key, path, make)["blocks"]))

    def _exl2_choices(self, one: QuantizeExl2) -> QuantizeExl2:
        """Measure every option of every slot (kept for any budget), then spend this pass's budget exactly."""
        from passes.quantize.exl2_errors import (
            allocate_exl2,
            in_divergence,
            measure,
            measured_layers,
            saved_errors,
            uniform_exl2,
        )

        key = self._key("exl2")
        folder = self.work / f"exl2-{key}"
        layers = len(self.dense.decoder.layers)

        def make(report: Report) -> None:
            measure(self.dense, self.weights, fitted_part(self.tokens), folder, self.dtype, self.device, report)

        self.steps.run("measure EXL2", key, measured_layers(folder) >= layers, make)
        shutil.rmtree(folder / "hidden", ignore_errors=True)
        errors = saved_errors(folder, layers)
        weighed = in_divergence(self.dense, errors, self._format_costs((_FOUR_BITS,)))
        found = (
            allocate_exl2(self.dense, one.bpw, weighed),
            allocate_exl2(self.dense, one.bpw, errors),
            uniform_exl2(self.dense, one.bpw, weighed),
        )
        return self._nearest([replace(one, choices=choices) for choices in dict.fromkeys(found)])

    def _mixed_choices(self, one: QuantizeMixed) -> QuantizeMixed:
        """Estimate every format of every matrix, allocate layer by layer and for all layers alike, hold them and uniform together."""
        costs = self._format_costs(one.palette)
        found = (
            one.allocated(self.dense, costs),
            one.allocated(self.dense, costs, tied=True),
            replace(one, assigned=()),
        )
        return self._nearest(list(dict.fromkeys(found)))

    def _format_costs(self, palette: tuple[Format, ...]) -> dict[str, list[float]]:
        """What storing each matrix in each format costs, in KL."""
        from passes.measure.fisher import option_costs

        key = self._key("fisher", [form.label for form in palette])
        path = self.work / f"fisher-{key}.json"

        def make(parts: Path, report: Report) -> dict[str, Any]:
            tokens = fitted_part(self.tokens)[:FISHER_SEQUENCES]
            return {**option_costs(self.dense, self.weights, tokens, palette, parts, self.dtype, self.device, report)}

        return self.steps.once("measure formats", key, path, make)

    def _nearest(self, candidates: Sequence[_P]) -> _P:
        """The candidate with the least divergence end to end."""
        from passes.measure.trial import divergences

        if len(candidates) == 1:
            return candidates[0]
        key = self._key("contest", chain.to_json(candidates))
        path = self.work / f"contest-{key}.json"

        def make(parts: Path, report: Report) -> dict[str, Any]:
            found = divergences(
                candidates, self.dense, self.weights, self.tokens, parts, self.dtype, self.device, report
            )
            return {"kl": found}

        costs: list[float] = self.steps.once("compare allocations", key, path, make)["kl"]
        return candidates[costs.index(min(costs))]

    def _key(self, *parts: Any) -> str:
        """The key of a measurement on the source as it is now."""
        return content_key(*parts, chain.to_json(self._passes), tokens_digest(self.tokens), self.identity)
