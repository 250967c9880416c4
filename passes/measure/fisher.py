"""What storing a matrix another way costs in KL divergence: a second-order estimate from one streamed forward and backward.

For a small change δ_t of a matrix's outputs, KL(model ‖ changed) ≈ ½ Σ_t (g_t · δ_t)², where g_t is the gradient of the negative
log-likelihood of tokens *sampled from the model itself* (the true Fisher information; Martens 2020, arXiv 1412.1193, section 9).
A stored matrix changes its outputs by δ_t = E x_t with E = decoded − dense, so the cost of every option is a product of what one
pass shows: the inputs x_t, the gradients g_t, and the options' errors E. Terms between tokens and between matrices are left out.

Streamed as everything here is (`passes.measure.backward`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from passes.algorithms.method import GPTQ_DEFAULT, Gptq, Matrix
from passes.blocks.dense_model import DenseModel
from passes.blocks.hidden_states import HiddenStates
from passes.blocks.input_statistics import InputStatistics
from passes.blocks.matrices import copy_names, members
from passes.blocks.stream import BlockReplica
from passes.formats.format import Format
from passes.ir.model import Linear, ModelIR
from passes.measure.backward import Targets, through_block, way_back
from passes.steps.context import RunContext
from passes.steps.key import content_key
from passes.text.source import tokens_digest
from passes.text.split import FISHER_SEQUENCES, fitted_part

if TYPE_CHECKING:
    import torch


def format_costs(dense: DenseModel, palette: Sequence[Format], run: RunContext) -> dict[str, list[float]]:
    """Measure what storing each matrix in each format of `palette` costs in KL (nats a token), as a step (`option_costs`),
    seen on a part of the run's text.
    """
    key = content_key(*dense.identity, "fisher", [form.label for form in palette], tokens_digest(run.text))
    seen = run.on_text(fitted_part(run.text)[:FISHER_SEQUENCES])
    return seen.measured("measure formats", "fisher", key, lambda inside: option_costs(dense, palette, inside))


def option_costs(dense: DenseModel, options: Sequence[Format], run: RunContext) -> dict[str, tuple[float, ...]]:
    """Return the estimated KL in nats a token of storing a matrix as each of `options`, by its full name (`{e}`: all experts).

    The run's folder holds the blocks' inputs meanwhile (S·T·hidden·2 bytes a block) and what was found: a run that was killed goes on
    there. Who has kept the result removes it.
    """

    def of_block(replica: BlockReplica, hidden: HiddenStates, gradients: HiddenStates) -> dict[str, tuple[float, ...]]:
        block = dense.ir.decoder.block(replica.index)
        back = _Backward(replica, [matrix for matrix in members(block) if matrix.quantizable])
        back.run(hidden, gradients, back.errors(hidden, options))
        return _costs_of(dense.ir, replica.index, back.sums, run.text.numel())

    blocks = way_back(dense, run, _sampled(), of_block)
    return {name: tuple(costs) for block in blocks for name, costs in block.items()}


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


def _sampled() -> Targets:
    """Tokens drawn from the model's own distribution, on the processor, seeded."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def draw(logits: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        chances = torch.softmax(logits.detach(), -1).cpu()
        return torch.multinomial(chances, 1, generator=generator).squeeze(-1).to(logits.device)

    return draw


class _Backward:
    """One dense block on the way back: its matrices' errors under every option, and what they cost."""

    def __init__(self, replica: BlockReplica, matrices: Sequence[Linear]) -> None:
        self._replica, self._index, self._matrices = replica, replica.index, matrices
        self.sums: dict[str, list[float]] = {}

    def errors(self, hidden: HiddenStates, options: Sequence[Format]) -> dict[str, list[torch.Tensor | None]]:
        """Return decoded − dense `[N, K]` of every matrix and option, by GPTQ on these inputs; None for a dense option."""
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
        """Sum up every option's cost over all tokens; `gradients` go on from the block's outputs to its inputs."""
        self.sums = {name: [0.0] * len(each) for name, each in errors.items()}
        with self._watched(errors):
            through_block(self._replica, hidden, gradients)

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
