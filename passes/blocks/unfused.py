"""Modules of their own for what a transformers class keeps together: the experts of a bank, the parts of a fused matrix.

A bank is two 3-D parameters there. The families' experts share one interface, `forward(hidden [T, D], expert indices [T, k], their
weights [T, k])` (Llama 4 has another: `forward(hidden [E·T, D])`, a run of all tokens for each expert, zero where a token goes elsewhere),
and one computation, `down(act(gate(x)) * up(x))`; what a family does differently between (clamps, interleaving) is in its own
`_apply_gate`, which is called as it is. With every expert a module the walk can stop at its matrices.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from passes.blocks.matrices import expert_parts, fused_parts, members
from passes.blocks.model_class import Names
from passes.ir.model import Block, Linear, Role

if TYPE_CHECKING:
    import torch


def unstack(layer: Any, block: Block, names: Names) -> None:
    """Put a module for every expert in place of stacked banks, named as the description names them."""
    banks = [linear for linear in block.linears if linear.copies > 1]
    for path, module in list(layer.named_modules()):
        mine = [linear for linear in banks if names.path(_first_part(linear)).startswith(f"{path}.0.")]
        if not mine or not _is_bank(module):
            continue
        experts = [
            {part.name.rpartition(".")[2]: part for linear in mine for part in expert_parts(linear, expert)}
            for expert in range(mine[0].copies)
        ]
        interleaved = any(linear.stacking is not None and linear.stacking.interleaved for linear in mine)
        _replace(layer, path, _expert_bank(module, experts, interleaved))


def _first_part(bank: Linear) -> str:
    return next(expert_parts(bank, 0)).name


def unfuse(layer: Any, block: Block, stored: Block, names: Names) -> None:
    """Put a module for each part in place of fused matrices whose parts are stored apart."""
    apart = {linear.name for linear in members(stored)}
    for whole, parts in fused_parts(block).items():
        if parts[0].name in apart:
            path = names.path(whole)
            _replace(layer, path, _split_linear(parts))
            names.split(path, [names.path(part.name) for part in parts])


def _replace(root: Any, path: str, module: Any) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(root.get_submodule(parent) if parent else root, leaf, module)


def _split_linear(parts: Iterable[Linear]) -> Any:
    """A fused matrix as a module for each of its parts, whose outputs are joined again."""
    import torch

    class SplitLinear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for part in parts:
                each = torch.nn.Linear(part.in_features, part.out_features, bool(part.bias), device="meta")
                self.add_module(part.name.rpartition(".")[2], each)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.cat([child(inputs) for child in self.children()], dim=-1)

    return SplitLinear()


def _is_bank(module: Any) -> bool:
    """Whether a module keeps experts as 3-D parameters and is called as described above."""
    parameters = dict(module.named_parameters(recurse=False))
    stacked = [parameter for name, parameter in parameters.items() if name in ("up_proj", "gate_up_proj", "down_proj")]
    called = list(inspect.signature(type(module).forward).parameters)
    return len(stacked) == 2 and all(parameter.dim() == 3 for parameter in stacked) and len(called) in (2, 4)


def _expert_bank(original: Any, experts: Sequence[Mapping[str, Linear]], interleaved: bool) -> torch.nn.Module:
    """`original` with a module for each of `experts` (its matrices by the last part of their names), on the meta device."""
    import torch

    class Expert(torch.nn.Module):
        def __init__(self, matrices: Mapping[str, Linear]) -> None:
            super().__init__()
            self.leaves = {linear.role: leaf for leaf, linear in matrices.items()}
            for leaf, each in matrices.items():
                self.add_module(
                    leaf, torch.nn.Linear(each.in_features, each.out_features, bool(each.bias), device="meta")
                )

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            up = getattr(self, self.leaves[Role.UP])(hidden)
            gate = getattr(self, self.leaves[Role.GATE])(hidden) if Role.GATE in self.leaves else None
            out: torch.Tensor = getattr(self, self.leaves[Role.DOWN])(_between(original, gate, up, interleaved))
            return out

    class ExpertBank(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for number, matrices in enumerate(experts):
                self.add_module(str(number), Expert(matrices))

        def forward(
            self, hidden: torch.Tensor, indices: torch.Tensor | None = None, shares: torch.Tensor | None = None
        ) -> torch.Tensor:
            """Send each token through its experts, weighed by `shares` `[T, k]`; without `indices`, `hidden` has a run of each expert's."""
            out = torch.zeros_like(hidden)
            if indices is None or shares is None:
                for number, (run, into) in enumerate(
                    zip(hidden.chunk(len(experts)), out.chunk(len(experts)), strict=True)
                ):
                    tokens = run.abs().amax(-1).nonzero().flatten()
                    if len(tokens):
                        into[tokens] = self.get_submodule(str(number))(run[tokens]).to(out.dtype)
                return out
            for number in range(len(experts)):
                tokens, place = torch.where(indices == number)
                if len(tokens):
                    result = self.get_submodule(str(number))(hidden[tokens]) * shares[tokens, place, None]
                    out.index_add_(0, tokens, result.to(out.dtype))
            return out

    return ExpertBank()


def _between(original: Any, gate: torch.Tensor | None, up: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """What the down projection reads."""
    import torch

    if gate is None:
        alone: torch.Tensor = original.act_fn(up)
        return alone
    if hasattr(original, "_apply_gate"):
        joined = torch.stack((gate, up), dim=-1).flatten(-2) if interleaved else torch.cat((gate, up), dim=-1)
        gated: torch.Tensor = original._apply_gate(joined)
        return gated
    product: torch.Tensor = original.act_fn(gate) * up
    return product
