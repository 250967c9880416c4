"""What storing a matrix another way costs in KL divergence: a second-order estimate from one streamed forward and backward.

For a small change δ_t of a matrix's outputs, KL(model ‖ changed) ≈ ½ Σ_t (g_t · δ_t)², where g_t is the gradient of the negative
log-likelihood of tokens *sampled from the model itself* (the true Fisher information; Martens 2020, arXiv 1412.1193, section 9).
A stored matrix changes its outputs by δ_t = E x_t with E = decoded − dense, so the cost of every option is a product of what one
pass shows: the inputs x_t, the gradients g_t, and the options' errors E. Terms between tokens and between matrices are left out.

Streamed as everything here is: forward, the inputs of each block kept on disk; head; then block after block backward. Memory is one
block with its activations, whatever the depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.algorithms.method import GPTQ_DEFAULT, Gptq, Matrix
from passes.blocks.dense_model import DenseModel
from passes.blocks.hidden_states import HiddenStates
from passes.blocks.input_statistics import InputStatistics
from passes.blocks.matrices import copy_names, members
from passes.blocks.memory import LOGIT_TOKENS
from passes.blocks.stream import BlockReplica, BlockStream
from passes.files.atomic import read_json, readable, write_json
from passes.formats.format import Format
from passes.ir.model import Linear, ModelIR
from passes.steps.context import RunContext
from passes.steps.key import content_key
from passes.text.source import tokens_digest
from passes.text.split import FISHER_SEQUENCES, fitted_part

if TYPE_CHECKING:
    import torch

#: Tokens that go through a block together; its activations are kept for the way back.
_BATCH_TOKENS = 2048


def format_costs(dense: DenseModel, palette: Sequence[Format], run: RunContext) -> dict[str, list[float]]:
    """What storing each matrix in each format of `palette` costs in KL, as a step (`option_costs`); seen on a part of the run's text."""
    key = content_key(*dense.identity, "fisher", [form.label for form in palette], tokens_digest(run.text))
    seen = run.on_text(fitted_part(run.text)[:FISHER_SEQUENCES])
    return seen.measured("measure formats", "fisher", key, lambda inside: option_costs(dense, palette, inside))


def option_costs(dense: DenseModel, options: Sequence[Format], run: RunContext) -> dict[str, tuple[float, ...]]:
    """Return the estimated KL in nats a token of storing a matrix as each of `options`, by its full name (`{e}`: all experts).

    The run's folder holds the blocks' inputs meanwhile (S·T·hidden·2 bytes a block) and what was found: a run that was killed goes on
    there. Who has kept the result removes it.
    """
    depth, decoder = len(dense), dense.ir.decoder
    stream = BlockStream(dense, run.part(run.folder / "inputs"), _BATCH_TOKENS, keep=depth + 1)
    gradients = HiddenStates(run.folder / "gradients", len(stream.batches))
    costs, waiting = _kept(run.folder, depth)
    if not (gradients.whole(waiting) and all(map(stream.hidden.whole, range(waiting)))):
        costs, waiting = {}, depth
        for path in run.folder.glob("costs-*.json"):
            path.unlink()
    for block in stream.blocks(stream.resume(stream.reached()) if waiting == depth else depth):
        with block.loaded() as replicas:
            block.run(replicas)
        run.report(block.index + 1, 3 * depth)
    if waiting == depth and not gradients.whole(depth):
        _head_gradients(stream, gradients)
    for index in reversed(range(waiting)):
        with stream.block(index).loaded() as (replica, *_):
            back = _Backward(replica, [matrix for matrix in members(decoder.block(index)) if matrix.quantizable])
            back.run(stream.hidden, gradients, back.errors(stream.hidden, options))
        of_block = _costs_of(dense.ir, index, back.sums, run.text.numel())
        write_json(_costs_file(run.folder, index), of_block)
        costs |= of_block
        stream.hidden.drop(index + 1)
        gradients.drop(index + 1)
        run.report(depth + 2 * (depth - index), 3 * depth)
    return costs


def _costs_file(folder: Path, index: int) -> Path:
    return folder / f"costs-{index:05d}.json"


def _kept(folder: Path, depth: int) -> tuple[dict[str, tuple[float, ...]], int]:
    """The costs of the blocks that are done, the last ones, and how many are not."""
    costs: dict[str, tuple[float, ...]] = {}
    waiting = depth
    while waiting and readable(path := _costs_file(folder, waiting - 1)):
        costs |= {name: tuple(each) for name, each in read_json(path, "measurement").items()}
        waiting -= 1
    return costs, waiting


def _costs_of(
    ir: ModelIR, index: int, sums: Mapping[str, Sequence[float]], tokens: int
) -> dict[str, tuple[float, ...]]:
    """A block's costs in nats a token by full name: half the sums of squares of its matrices, experts together."""
    prefix, costs = ir.decoder.layer_prefix(index), {}
    for linear in ir.decoder.block(index).linears:
        if linear.quantizable:
            parts = [sums[name] for name in copy_names(linear)]
            costs[prefix + linear.name] = tuple(0.5 * sum(each) / tokens for each in zip(*parts, strict=True))
    return costs


def _head_gradients(stream: BlockStream, gradients: HiddenStates) -> None:
    """Gradients of −log p(sampled next token) at the last block's outputs, batch by batch; sampled on the processor, seeded."""
    import torch

    generator = torch.Generator().manual_seed(0)
    depth, decoder = len(stream.dense), stream.decoders[0]
    with decoder.head():
        for number in range(len(stream.hidden)):
            states = stream.hidden.read(depth, number).to(decoder.device)
            parts = []
            for part in torch.split(states.flatten(0, 1), LOGIT_TOKENS):
                leaf = part[None].detach().requires_grad_(True)
                with torch.enable_grad():
                    logits = decoder.logits(leaf)[0].float()
                    chances = torch.softmax(logits.detach(), -1).cpu()
                    sampled = torch.multinomial(chances, 1, generator=generator).squeeze(-1).to(logits.device)
                    torch.nn.functional.cross_entropy(logits, sampled, reduction="sum").backward()  # type: ignore[no-untyped-call]
                assert leaf.grad is not None
                parts.append(leaf.grad[0])
            gradients.write(depth, number, torch.cat(parts).view_as(states))


class _Backward:
    """One dense block on the way back: its matrices' errors under every option, and what they cost."""

    def __init__(self, replica: BlockReplica, matrices: Sequence[Linear]) -> None:
        self._replica, self._index, self._matrices = replica, replica.index, matrices
        self.sums: dict[str, list[float]] = {}

    def errors(self, hidden: HiddenStates, options: Sequence[Format]) -> dict[str, list[torch.Tensor | None]]:
        """decoded − dense `[N, K]` of every matrix and option, by GPTQ on these inputs; None for a dense option."""
        inputs: dict[str, InputStatistics] = {}
        firsts = {linear.reads or linear.name: linear for linear in reversed(self._matrices)}

        def gather(reads: str, in_features: int) -> Callable[..., None]:
            def note(module: Any, args: tuple[torch.Tensor, ...]) -> None:
                inputs.setdefault(reads, InputStatistics(in_features, self._replica.device)).add(args[0])

            return note

        handles = [
            self._replica.module(first.name).register_forward_pre_hook(gather(reads, first.in_features))
            for reads, first in firsts.items()
        ]
        for batch in range(len(hidden)):
            self._replica.run(hidden.read(self._index, batch))
        for handle in handles:
            handle.remove()
        method = Gptq(GPTQ_DEFAULT)
        errors: dict[str, list[torch.Tensor | None]] = {}
        for linear in self._matrices:
            seen = inputs.get(linear.reads or linear.name)
            hessian = seen.hessian(linear.name) if seen is not None else None
            errors[linear.name] = [self._error(linear, form, method, hessian) for form in options]
        return errors

    def _error(self, linear: Linear, form: Format, method: Gptq, hessian: torch.Tensor | None) -> torch.Tensor | None:
        if form.grid is None:
            return None
        weight = self._replica.parameter(f"{linear.name}.weight").float()
        [stored] = method.store([Matrix(linear.name, replace(linear, storage=form), weight)], hessian, weight.dtype)
        return stored.decoded - weight

    def run(
        self, hidden: HiddenStates, gradients: HiddenStates, errors: Mapping[str, Sequence[torch.Tensor | None]]
    ) -> None:
        """Sums up every option's cost over all tokens; `gradients` go on from the block's outputs to its inputs."""
        import torch

        self.sums = {name: [0.0] * len(each) for name, each in errors.items()}
        with self._watched(errors):
            for batch in range(len(hidden)):
                leaf = self._on_device(hidden, self._index, batch).requires_grad_(True)
                with torch.enable_grad():
                    gradient = self._on_device(gradients, self._index + 1, batch)
                    self._replica.run(leaf).backward(gradient)  # type: ignore[no-untyped-call]
                assert leaf.grad is not None
                gradients.write(self._index, batch, leaf.grad)

    def _on_device(self, states: HiddenStates, block: int, batch: int) -> torch.Tensor:
        return states.read(block, batch).to(self._replica.device)

    @contextmanager
    def _watched(self, errors: Mapping[str, Sequence[torch.Tensor | None]]) -> Iterator[None]:
        handles = [
            self._replica.module(name).register_forward_hook(self._hook(name, each)) for name, each in errors.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str, errors: Sequence[torch.Tensor | None]) -> Callable[..., None]:
        def forward(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x_TK = args[0].detach().reshape(-1, args[0].shape[-1]).float()

            def backward(gradient: torch.Tensor) -> None:
                g_TN = gradient.reshape(-1, gradient.shape[-1]).float()
                for number, error in enumerate(errors):
                    if error is not None:
                        self.sums[name][number] += float((g_TN * (x_TK @ error.T)).sum(-1).square().sum())

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward
