"""Gradients of a loss of the logits, streamed: forward with the inputs of each block kept on disk, the head, block after block backward.

Memory is one block with its activations, whatever the depth. What was seen of a block on the way back is kept in a file of its own, so
that a run that was killed goes on at the block before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.blocks.dense_model import DenseModel
from passes.blocks.hidden_states import HiddenStates
from passes.blocks.memory import LOGIT_TOKENS
from passes.blocks.stream import BlockReplica, BlockStream
from passes.files.atomic import read_json, readable, write_json
from passes.steps.context import RunContext

if TYPE_CHECKING:
    import torch

#: Tokens that go through a block together; its activations are kept for the way back.
_BATCH_TOKENS = 2048
#: What a token with nothing behind it counts as in the loss: nothing.
NO_TARGET = -100

#: The token ids `[N]` whose negative log-likelihood is the loss, given logits `[N, vocabulary]` and the ids that follow in the text `[N]`
#: (`NO_TARGET` behind a sequence's last).
Targets = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
#: Takes the gradients in front of a block from those behind it (`through_block`); returns what it saw, as JSON values.
OfBlock = Callable[[BlockReplica, HiddenStates, HiddenStates], Mapping[str, Any]]


def as_it_follows(logits: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Return the ids that follow in the text: the loss is the text's own."""
    return following


def way_back(dense: DenseModel, run: RunContext, targets: Targets, of_block: OfBlock) -> list[Mapping[str, Any]]:
    """Return what `of_block` saw of every block, in their order, on a way through the model and back.

    The run's folder holds the blocks' inputs meanwhile (S·T·hidden·2 bytes a block) and what was seen: a run that was killed goes on
    there. Who has kept the result removes it.
    """
    depth = len(dense)
    stream = BlockStream(dense, run.part(run.folder / "inputs"), _BATCH_TOKENS, keep=depth + 1)
    gradients = HiddenStates(run.folder / "gradients", len(stream.batches))
    seen, waiting = _kept(run.folder, depth)
    if not (gradients.whole(waiting) and all(map(stream.hidden.whole, range(waiting)))):
        seen, waiting = [], depth
        for path in run.folder.glob("costs-*.json"):
            path.unlink()
    for block in stream.blocks(stream.resume(stream.reached()) if waiting == depth else depth):
        with block.loaded() as replicas:
            block.run(replicas)
        run.report(block.index + 1, 3 * depth)
    if waiting == depth and not gradients.whole(depth):
        _through_head(stream, gradients, targets)
    for index in reversed(range(waiting)):
        with stream.block(index).loaded() as (replica, *_):
            found = of_block(replica, stream.hidden, gradients)
        write_json(_file(run.folder, index), found)
        seen.append(found)
        stream.hidden.drop(index + 1)
        gradients.drop(index + 1)
        run.report(depth + 2 * (depth - index), 3 * depth)
    return seen[::-1]


def through_block(replica: BlockReplica, hidden: HiddenStates, gradients: HiddenStates) -> None:
    """Take every batch's gradient from the block's outputs to its inputs; parameters and outputs that are watched see theirs."""
    import torch

    index = replica.index
    for batch in range(len(hidden)):
        leaf = hidden.read(index, batch).to(replica.device).requires_grad_(True)
        with torch.enable_grad():
            gradient = gradients.read(index + 1, batch).to(replica.device)
            replica.run(leaf).backward(gradient)  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        gradients.write(index, batch, leaf.grad)


def _file(folder: Path, index: int) -> Path:
    return folder / f"costs-{index:05d}.json"


def _kept(folder: Path, depth: int) -> tuple[list[Mapping[str, Any]], int]:
    """What was seen of the blocks that are done, the last one first, and how many are not."""
    seen: list[Mapping[str, Any]] = []
    waiting = depth
    while waiting and readable(path := _file(folder, waiting - 1)):
        seen.append(read_json(path, "measurement"))
        waiting -= 1
    return seen, waiting


def _through_head(stream: BlockStream, gradients: HiddenStates, targets: Targets) -> None:
    """Gradients of the targets' negative log-likelihood at the last block's outputs, batch by batch."""
    import torch

    depth, decoder = len(stream.dense), stream.decoders[0]
    with decoder.head():
        for number, ids in enumerate(stream.batches):
            states = stream.hidden.read(depth, number).to(decoder.device)
            following = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=NO_TARGET).to(decoder.device)
            parts = []
            for part, after in zip(
                torch.split(states.flatten(0, 1), LOGIT_TOKENS),
                torch.split(following.flatten(), LOGIT_TOKENS),
                strict=True,
            ):
                leaf = part[None].detach().requires_grad_(True)
                with torch.enable_grad():
                    logits = decoder.logits(leaf)[0].float()
                    wanted = targets(logits, after)
                    loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum", ignore_index=NO_TARGET)
                    loss.backward()  # type: ignore[no-untyped-call]
                assert leaf.grad is not None
                parts.append(leaf.grad[0])
            gradients.write(depth, number, torch.cat(parts).view_as(states))
