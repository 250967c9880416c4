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

from passes.adapters import Decoder
from passes.checkpoint import Checkpoint, Weights, write_shard
from passes.formats.format import Format
from passes.inputs import Inputs
from passes.ir.model import Linear, ModelIR
from passes.members import copy_names, dense_block, members
from passes.quantize.methods import GPTQ_DEFAULT, Gptq, Matrix

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

    `tokens` `[S, T]`; `folder` holds the blocks' inputs meanwhile (S·T·hidden·2 bytes a block).
    """
    import torch

    decoder = Decoder(ir, weights, dtype, device)
    hidden = decoder.embed(torch.split(tokens, max(1, _BATCH_TOKENS // tokens.shape[1])))
    depth = len(decoder)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(depth):
        write_shard(_inputs_file(folder, index), {str(n): each for n, each in enumerate(hidden)})
        with decoder.block(index, dense_block(ir, index, weights)) as layer:
            hidden = [decoder.run(layer, index, each) for each in hidden]
        progress(index + 1, 3 * depth)
    gradients = _head_gradients(decoder, hidden)
    costs: dict[str, tuple[float, ...]] = {}
    for index in reversed(range(depth)):
        saved = _inputs_file(folder, index)
        hidden = [batch.to(device) for batch in _numbered(Checkpoint.of_files([saved]), len(gradients))]
        tensors = dense_block(ir, index, weights)
        with decoder.block(index, tensors) as layer:
            back = _Backward(decoder, layer, index, [m for m in members(ir.decoder.block(index)) if m.quantizable])
            errors = back.errors(hidden, options)
            gradients = back.run(hidden, gradients, errors)
        prefix = ir.decoder.layer_prefix(index)
        for linear in ir.decoder.block(index).linears:
            if linear.quantizable:
                sums = [back.sums[name] for name in copy_names(linear)]
                costs[prefix + linear.name] = tuple(
                    0.5 * sum(each) / tokens.numel() for each in zip(*sums, strict=True)
                )
        saved.unlink()
        progress(depth + 2 * (depth - index), 3 * depth)
    return costs


def _inputs_file(folder: Path, index: int) -> Path:
    return folder / f"inputs-{index:05d}.safetensors"


def _numbered(saved: Checkpoint, count: int) -> Iterator[torch.Tensor]:
    for number in range(count):
        yield saved.read([str(number)])[str(number)]


def _head_gradients(decoder: Decoder, hidden: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of −log p(sampled next token) at the last block's outputs, batch by batch; sampled on the processor, seeded."""
    import torch

    generator = torch.Generator().manual_seed(0)
    out = []
    with decoder.head():
        for batch in hidden:
            rows = []
            for row in torch.split(batch, 1):
                leaf = row.detach().requires_grad_(True)
                with torch.enable_grad():
                    logits = decoder.logits(leaf).float().flatten(0, 1)
                    chances = torch.softmax(logits.detach(), -1).cpu()
                    sampled = torch.multinomial(chances, 1, generator=generator).squeeze(-1).to(logits.device)
                    torch.nn.functional.cross_entropy(logits, sampled, reduction="sum").backward()  # type: ignore[no-untyped-call]
                assert leaf.grad is not None
                rows.append(leaf.grad)
            out.append(torch.cat(rows))
    return out


class _Backward:
    """One dense block on the way back: its matrices' errors under every option, and what they cost."""

    def __init__(self, decoder: Decoder, layer: torch.nn.Module, index: int, matrices: Sequence[Linear]) -> None:
        self._decoder, self._layer, self._index, self._matrices = decoder, layer, index, matrices
        self.sums: dict[str, list[float]] = {}

    def errors(self, hidden: Sequence[torch.Tensor], options: Sequence[Format]) -> dict[str, list[torch.Tensor | None]]:
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
        for batch in hidden:
            self._decoder.run(self._layer, self._index, batch)
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

    def run(
        self,
        hidden: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        errors: Mapping[str, Sequence[torch.Tensor | None]],
    ) -> list[torch.Tensor]:
        """Sums up every option's cost over all tokens; returns the gradients at the block's inputs."""
        import torch

        self.sums = {name: [0.0] * len(each) for name, each in errors.items()}
        out = []
        with self._watched(errors):
            for batch, gradient in zip(hidden, gradients, strict=True):
                leaf = batch.detach().requires_grad_(True)
                with torch.enable_grad():
                    self._decoder.run(self._layer, self._index, leaf).backward(gradient)  # type: ignore[no-untyped-call]
                assert leaf.grad is not None
                out.append(leaf.grad)
        return out

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
