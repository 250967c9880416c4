"""Blocks tuned as they are stored: nearer to the source's, from where the algorithm left them, whatever was dropped between them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from passes import chain
from passes.algorithms.learned.rounding import TunedMatrix, Tuning
from passes.algorithms.rtn import round_to_nearest
from passes.base import Pass
from passes.blocks.decoded_weights import decoded_model
from passes.blocks.dense_model import DenseModel
from passes.files.checkpoint import Checkpoint, write_shard
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.formats.format import Grid
from passes.ir.model import ModelIR
from passes.measure.evaluate import evaluate
from passes.prune.depth import DepthPrune
from passes.quantize.quantize import Quantize
from passes.walk.block_tuning import relative_distance
from passes.walk.source_outputs import Targets
from passes.walk.walk import Walk
from tests.walk.conftest import context

TUNING = Tuning(20_000, batch_tokens=128, latent_rate=1e-2, plain_rate=2e-3)


@pytest.mark.parametrize("grid", [Grid(3, 16), Grid(4, -1, symmetric=False)])
def test_a_matrix_begins_as_it_was_stored_and_follows_gradients_on_its_grid(grid: Grid) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 32, generator=generator)
    inputs = torch.randn(64, 4, generator=generator) @ torch.randn(4, 32, generator=generator)
    inputs += 0.1 * torch.randn(64, 32, generator=generator)
    quantized = round_to_nearest(weight, grid, torch.float32)
    tuned = TunedMatrix(weight, quantized, grid)
    assert torch.equal(tuned.stored().codes, quantized.codes) and torch.equal(tuned.stored().scale, quantized.scale)
    wanted, optimizer = inputs @ weight.T, torch.optim.Adam([tuned.latent, tuned.factor], lr=2e-3)
    with torch.no_grad():
        before = float(relative_distance(inputs @ tuned.weight().T, wanted))
    for _ in range(300):
        optimizer.zero_grad()
        relative_distance(inputs @ tuned.weight().T, wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        assert float(relative_distance(inputs @ tuned.weight().T, wanted)) < 0.8 * before
    codes, (low, high) = tuned.stored().codes, grid.bounds
    assert int(codes.min()) >= low and int(codes.max()) <= high and codes.dtype == quantized.codes.dtype


def kl(source: DenseModel, passes: tuple[Pass, ...], place: Path, text: torch.Tensor, tuning: Tuning | None) -> float:
    dense = source
    for pass_ in passes:
        after = pass_.dense(dense, context(place, text))
        dense = dense if after is dense else after.descends_from(dense)
    planned = chain.rewrite(source.ir, passes)
    Walk(dense, planned, chain.method(passes), context(place, text), tuning=tuning).run()
    write_shard(place / "shards" / "model-00000.safetensors", dense.outer(planned))
    result = decoded_model(dense.ir, planned, place / "shards", torch.float32)
    return evaluate(source, result, context(place / "judged", text)).kl


@pytest.mark.parametrize(
    "passes",
    [(Quantize("gptq", PackQuantized(3, 32)),), (DepthPrune(1, (2,)),)],
    ids=["stored in 3 bits", "a block gone"],
)
def test_tuned_blocks_come_nearer_to_the_source(
    llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path, passes: tuple[Pass, ...]
) -> None:
    source = DenseModel(llama_ir, Checkpoint(llama))
    plain = kl(source, passes, tmp_path / "plain", tokens, None)
    assert kl(source, passes, tmp_path / "tuned", tokens, TUNING) < 0.8 * plain
    assert not (tmp_path / "tuned" / "targets").exists()


def test_the_block_before_a_gap_gives_what_lies_behind_it(
    llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path
) -> None:
    source = DenseModel(llama_ir, Checkpoint(llama))
    dense = DepthPrune(1, (2,)).dense(source, context(tmp_path, tokens)).descends_from(source)
    targets = Targets(dense, context(tmp_path, tokens), 4096)
    assert [targets.behind(block)[1] for block in range(len(dense))] == [1, 3, 4]


def test_the_token_that_all_others_attend_to_counts_by_its_size() -> None:
    target = torch.cat([torch.full((1, 1, 8), 10.0), torch.ones(1, 31, 8)], 1)
    first, other = target.clone(), target.clone()
    first[:, 0] *= 1.1
    other[:, 5] *= 1.1
    assert float(relative_distance(first, target)) == pytest.approx(100 * float(relative_distance(other, target)))
