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
from passes.blocks.decoder import Decoder
from passes.blocks.hidden_states import Hidden
from passes.blocks.input_statistics import Inputs
from passes.blocks.matrices import copy_names, dense_block, members
from passes.blocks.memory import LOGIT_TOKENS
from passes.files.atomic import read_json, readable, write_json
from passes.files.checkpoint import Weights
from passes.formats.format import Format
from passes.ir.model import Linear, ModelIR

if TYPE_CHECKING:
    import torch

#: Tokens that go through a block together; its activations are kept for the way back.
_BATCH_TOKENS = 2048


def option_costs(
    ir: ModelIR,
    weights: Weights,
    tokens: torch.Tensor,
    options: Sequence[Format],
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, tuple[float, ...]]:
    """The estimated KL in nats a token of storing a matrix as each of `options`, by its full name (`{e}`: all experts).

    `tokens` `[S, T]`; `folder` holds the blocks' inputs meanwhile (S·T·hidden·2 bytes a block) and what was found: a run that was
    killed goes on there. Who has kept the result removes it.
    """
    import torch

    decoder = Decoder(ir, weights, dtype, device)
    batches = torch.split(tokens, max(1, _BATCH_TOKENS // tokens.shape[1]))
    depth = len(decoder)
    inputs, gradients = Hidden(folder / "inputs", len(batches)), Hidden(folder / "gradients", len(batches))
    costs, waiting = _found(folder, depth)
    if not (gradients.whole(waiting) and all(map(inputs.whole, range(waiting)))):
        costs, waiting = {}, depth
        for path in folder.glob("costs-*.json"):
            path.unlink()
    reached = inputs.last(depth) if waiting == depth else depth
    if not all(map(inputs.whole, range(min(reached, waiting)))):
        reached = 0
    inputs.embed([decoder], batches, reached)
    for index in range(reached, depth):
        with decoder.block(index, dense_block(ir, index, weights)) as layer:
            inputs.run(decoder, layer, index)
        progress(index + 1, 3 * depth)
    if waiting == depth and not gradients.whole(depth):
        _head_gradients(decoder, inputs, gradients)
    for index in reversed(range(waiting)):
        with decoder.block(index, dense_block(ir, index, weights)) as layer:
            back = _Backward(decoder, layer, index, [m for m in members(ir.decoder.block(index)) if m.quantizable])
            back.run(inputs, gradients, back.errors(inputs, options))
        found = _costs_of(ir, index, back.sums, tokens.numel())
        write_json(_costs_file(folder, index), found)
        costs |= found
        inputs.drop(index + 1)
        gradients.drop(index + 1)
        progress(depth + 2 * (depth - index), 3 * depth)
    return costs


def _costs_file(folder: Path, index: int) -> Path:
    return folder / f"costs-{index:05d}.json"


def _found(folder: Path, depth: int) -> tuple[dict[str, tuple[float, ...]], int]:
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


def _head_gradients(decoder: Decoder, hidden: Hidden, gradients: Hidden) -> None:
    """Gradients of −log p(sampled next token) at the last block's outputs, batch by batch; sampled on the processor, seeded."""
    import torch

    generator = torch.Generator().manual_seed(0)
    depth = len(decoder)
    with decoder.head():
        for number in range(len(hidden)):
            states = hidden.read(depth, number).to(decoder.device)
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

    def __init__(self, decoder: Decoder, layer: torch.nn.Module, index: int, matrices: Sequence[Linear]) -> None:
        self._decoder, self._layer, self._index, self._matrices = decoder, layer, index, matrices
        self.sums: dict[str, list[float]] = {}

    def errors(self, hidden: Hidden, options: Sequence[Format]) -> dict[str, list[torch.Tensor | None]]:
        """decoded − dense `[N, K]` of every matrix and option, by GPTQ on these inputs; None for a dense option."""
        inputs: dict[str, Inputs] = {}
        firsts = {linear.reads or linear.name: linear for linear in reversed(self._matrices)}

        def gather(reads: str, in_features: int) -> Callable[..., None]:
            def note(module: Any, args: tuple[torch.Tensor, ...]) -> None:
                inputs.setdefault(reads, Inputs(in_features, self._decoder.device)).add(args[0])

            return note

        handles = [
            self._decoder.module(self._layer, first.name).register_forward_pre_hook(gather(reads, first.in_features))
            for reads, first in firsts.items()
        ]
        for batch in range(len(hidden)):
            self._decoder.run(self._layer, self._index, self._on_device(hidden, self._index, batch))
        for handle in handles:
            handle.remove()
        method = Gptq(GPTQ_DEFAULT)
        out: dict[str, list[torch.Tensor | None]] = {}
        for linear in self._matrices:
            seen = inputs.get(linear.reads or linear.name)
            hessian = seen.hessian(linear.name) if seen is not None else None
            out[linear.name] = [self._error(linear, form, method, hessian) for form in options]
        return out

    def _error(self, linear: Linear, form: Format, method: Gptq, hessian: torch.Tensor | None) -> torch.Tensor | None:
        if form.grid is None:
            return None
        weight = self._decoder.parameter(self._layer, f"{linear.name}.weight").float()
        [stored] = method.store([Matrix(linear.name, replace(linear, storage=form), weight)], hessian, weight.dtype)
        return stored.decoded - weight

    def run(self, hidden: Hidden, gradients: Hidden, errors: Mapping[str, Sequence[torch.Tensor | None]]) -> None:
        """Sums up every option's cost over all tokens; `gradients` go on from the block's outputs to its inputs."""
        import torch

        self.sums = {name: [0.0] * len(each) for name, each in errors.items()}
        with self._watched(errors):
            for batch in range(len(hidden)):
                leaf = self._on_device(hidden, self._index, batch).requires_grad_(True)
                with torch.enable_grad():
                    gradient = self._on_device(gradients, self._index + 1, batch)
                    self._decoder.run(self._layer, self._index, leaf).backward(gradient)  # type: ignore[no-untyped-call]
                assert leaf.grad is not None
                gradients.write(self._index, batch, leaf.grad)

    def _on_device(self, states: Hidden, block: int, batch: int) -> torch.Tensor:
        return states.read(block, batch).to(self._decoder.device)

    @contextmanager
    def _watched(self, errors: Mapping[str, Sequence[torch.Tensor | None]]) -> Iterator[None]:
        handles = [
            self._decoder.module(self._layer, name).register_forward_hook(self._hook(name, each))
            for name, each in errors.items()
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
