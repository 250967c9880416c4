"""Which blocks of a decoder cost least to drop.

Block influence 1 − cos(input, output) averaged over tokens (ShortGPT, Men et al. 2024, eq. 1): of all blocks at once, and greedily,
measured again on what is left after each removal; for a run of blocks the angular distance across it (Gromov et al. 2024, arXiv
2403.17887). The sets that these name are tried, and the one with the lowest KL against the source on the calibration text is taken. All
are of the commonest kind of block (`passes.prune.depth.candidates`), so where kinds alternate there may be no such run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from passes.blocks.dense_model import DenseModel
from passes.blocks.hidden_states import HiddenStates
from passes.blocks.stream import BlockStream
from passes.files.atomic import read_json, readable, write_json
from passes.measure.evaluate import evaluate
from passes.prune.depth import DepthPrune, candidates
from passes.steps.context import RunContext
from passes.steps.step import part_of
from passes.text.split import JUDGED_TOKENS

#: Sets that are held against each other at most.
_SETS = 3


def choose_blocks(count: int, dense: DenseModel, run: RunContext) -> tuple[int, ...]:
    """Choose the `count` blocks whose removal costs least on the run's text; the first and the last block always stay.

    Influence sees all tokens; what is measured again, and the sets that it names, are held against each other on the last `JUDGED_TOKENS`
    of them. The run's folder keeps what was found: a run that was killed goes on there.
    """
    depth = len(dense)
    total = _SETS * 2 * depth + count * depth
    influence, ends = _influence(count, dense, run.part(run.folder / "influence", part_of(run.report, 0, total)))
    judged = run.on_text(run.text[-max(1, JUDGED_TOKENS // run.text.shape[1]) :])
    free = candidates(dense.ir.decoder)
    lowest = tuple(sorted(sorted(free, key=lambda block: influence[block])[:count]))
    greedy = _greedily(count, influence, dense, replace(judged, report=part_of(run.report, depth, total)))
    runs = [start for start in free if set(range(start, start + count)) <= set(free)]
    shortest = [tuple(range(start, start + count)) for start in sorted(runs, key=lambda block: ends[block])[:1]]
    sets = dict.fromkeys((lowest, greedy, *shortest))
    if len(sets) == 1:
        return lowest
    costs = {}
    for number, dropped in enumerate(sets):

        def divergence(inside: RunContext, dropped: tuple[int, ...] = dropped) -> dict[str, float]:
            return {"kl": evaluate(dense, DepthPrune(count, dropped).dense(dense, inside), inside).kl}

        done = count * depth + number * 2 * depth
        costs[dropped] = judged.kept(f"set-{number}", part_of(run.report, done, total), divergence)["kl"]
        run.report(done + 2 * depth, total)
    return min(costs, key=lambda dropped: costs[dropped])


def _greedily(count: int, influence: Sequence[float], dense: DenseModel, run: RunContext) -> tuple[int, ...]:
    """The blocks that go when the one of the least influence goes, and the influence of those that are left is measured again."""
    depth, free = len(dense), candidates(dense.ir.decoder)
    left, dropped = list(range(depth)), list[int]()
    for number in range(count):
        if number:
            shown = DepthPrune(number, tuple(dropped)).dense(dense, run)
            told = part_of(run.report, (number - 1) * depth, count * depth)

            def measure(inside: RunContext, shown: DenseModel = shown) -> dict[str, list[float]]:
                return {"influence": _influence(1, shown, inside)[0]}

            influence = run.kept(f"without-{number}", told, measure)["influence"]
        lowest = min((place for place, block in enumerate(left) if block in free), key=lambda place: influence[place])
        dropped.append(left.pop(lowest))
    return tuple(sorted(dropped))


def _influence(count: int, dense: DenseModel, run: RunContext) -> tuple[list[float], dict[int, float]]:
    """Of each block 1 − mean cos(input, output); of each start the same across `count` blocks. A run that was killed goes on."""
    path = run.folder / "influence.json"
    saved = read_json(path, "measurement") if readable(path) else {}
    influence, across = list(saved.get("influence", ())), list(saved.get("across", ()))
    if len(influence) < len(dense):
        stream = BlockStream(dense, run.part(run.folder / "hidden"), keep=count)
        start = stream.resume(len(influence))
        influence, across = influence[:start], across[: max(0, start + 1 - count)]
        for block in stream.blocks(start):
            with block.loaded() as replicas:
                block.run(replicas)
            influence.append(_distance(stream.hidden, block.index, block.index + 1))
            if (first := block.index + 1 - count) >= 0:
                across.append(_distance(stream.hidden, first, block.index + 1))
            write_json(path, {"influence": influence, "across": across})
            run.report(block.index + 1, len(dense))
        stream.hidden.clear()
    return influence, dict(enumerate(across))


def _distance(hidden: HiddenStates, before: int, after: int) -> float:
    import torch

    cosines, tokens = 0.0, 0
    for batch in range(len(hidden)):
        entering, leaving = (hidden.read(block, batch).float() for block in (before, after))
        cosines += float(torch.cosine_similarity(entering, leaving, dim=-1).sum())
        tokens += entering.shape[0] * entering.shape[1]
    return 1.0 - cosines / tokens
