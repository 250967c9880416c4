"""Which blocks of a decoder cost least to drop.

Block influence 1 − cos(input, output) averaged over tokens (ShortGPT, Men et al. 2024, eq. 1), and for a run of blocks the angular
distance across it (Gromov et al. 2024, arXiv 2403.17887). The two sets that these name are tried, and the one with the lower KL
against the source on the calibration text is taken. Both are of the commonest kind of block (`passes.prune.depth.candidates`), so
where kinds alternate there may be no such run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from passes.blocks.decoder import Decoder
from passes.blocks.hidden_states import Hidden
from passes.blocks.matrices import dense_block
from passes.blocks.memory import BATCH_TOKENS
from passes.blocks.renumbered import RenumberedWeights
from passes.files.atomic import read_json, readable, write_json
from passes.files.checkpoint import Weights
from passes.ir.model import ModelIR
from passes.measure.evaluate import Side, evaluate
from passes.prune.depth import DepthPrune, candidates
from passes.steps.step import once, part_of
from passes.text.split import JUDGED_TOKENS

if TYPE_CHECKING:
    import torch


#: Sets that are held against each other at most.
_SETS = 2


def choose_blocks(
    ir: ModelIR,
    weights: Weights,
    count: int,
    tokens: torch.Tensor,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, ...]:
    """The `count` blocks whose removal costs least on `tokens` `[S, T]`; the first and the last block always stay.

    Influence sees all tokens; the two sets it names are held against each other on the last `JUDGED_TOKENS` of them.
    `folder` keeps what was found: a run that was killed goes on there.
    """
    depth = len(ir.decoder.layers)
    total = _SETS * 2 * depth + depth
    influence, ends = _influence(
        ir, weights, count, tokens, folder / "influence", dtype, device, part_of(progress, 0, total)
    )
    free = candidates(ir.decoder)
    lowest = tuple(sorted(sorted(free, key=lambda block: influence[block])[:count]))
    runs = [start for start in free if set(range(start, start + count)) <= set(free)]
    shortest = [tuple(range(start, start + count)) for start in sorted(runs, key=lambda block: ends[block])[:1]]
    sets = dict.fromkeys((lowest, *shortest))
    if len(sets) == 1:
        return lowest
    judged = tokens[-max(1, JUDGED_TOKENS // tokens.shape[1]) :]
    costs = {}
    for number, dropped in enumerate(sets):
        one = DepthPrune(count, dropped)
        result = Side(one.rewrite(ir), RenumberedWeights(weights, ir, one.kept(depth)))
        done = depth + number * 2 * depth

        def divergence(parts: Path, result: Side = result, done: int = done) -> dict[str, float]:
            told = part_of(progress, done, total)
            return {"kl": evaluate(Side(ir, weights), result, judged, parts, dtype, device, progress=told).kl}

        costs[dropped] = once(folder / f"set-{number}.json", divergence)["kl"]
        progress(done + 2 * depth, total)
    return min(costs, key=lambda dropped: costs[dropped])


def _influence(
    ir: ModelIR,
    weights: Weights,
    count: int,
    tokens: torch.Tensor,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int], None],
) -> tuple[list[float], dict[int, float]]:
    """Of each block 1 − mean cos(input, output); of each start the same across `count` blocks. A run that was killed goes on."""
    import torch

    decoder = Decoder(ir, weights, dtype, device)
    batches = torch.split(tokens, max(1, BATCH_TOKENS // tokens.shape[1]))
    hidden = Hidden(folder / "hidden", len(batches))
    path = folder / "influence.json"
    saved = read_json(path, "measurement") if readable(path) else {}
    influence, across = list(saved.get("influence", ())), list(saved.get("across", ()))
    start = len(influence)
    if start < len(decoder) and not all(map(hidden.whole, range(max(0, start + 1 - count), start + 1))):
        influence, across, start = [], [], 0
    if start < len(decoder):
        hidden.embed([decoder], batches, start)
    for index in range(start, len(decoder)):
        with decoder.block(index, dense_block(ir, index, weights)) as layer:
            hidden.run(decoder, layer, index)
        influence.append(_distance(hidden, index, index + 1))
        if (first := index + 1 - count) >= 0:
            across.append(_distance(hidden, first, index + 1))
        write_json(path, {"influence": influence, "across": across})
        if first >= 0:
            hidden.drop(first)
        progress(index + 1)
    hidden.clear()
    return influence, dict(enumerate(across))


def _distance(hidden: Hidden, before: int, after: int) -> float:
    import torch

    cosines, tokens = 0.0, 0
    for batch in range(len(hidden)):
        one, two = (hidden.read(block, batch).float() for block in (before, after))
        cosines += float(torch.cosine_similarity(one, two, dim=-1).sum())
        tokens += one.shape[0] * one.shape[1]
    return 1.0 - cosines / tokens
