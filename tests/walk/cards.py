"""Cards that a processor plays: tensors that say they are on `card:0` or `card:1`, and as on cards, nothing mixes with what is elsewhere.

    python -m tests.walk.cards FAMILY FOLDER [CHAIN …]      # for each chain, the share of agreeing values of the worst tensor

Walks a tiny model with two processors for devices and with two such cards. An operation on tensors of two devices fails here as it
would there. What this does not show: speed, memory, kernels that round otherwise.

It changes torch for the whole process (a device backend written in Python, torch's own means for it): run it in one of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from passes.base import Pass
from passes.blocks.dense_model import DenseModel
from passes.chain import method, rewrite
from passes.files.checkpoint import Checkpoint
from passes.formats.compressed_tensors.integers import IntQuantized, PackQuantized
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.measure.fisher import option_costs
from passes.measure.trial import trial
from passes.prune.sparse import Sparsify
from passes.quantize.exl2 import QuantizeExl2
from passes.quantize.exl2_errors import measure, saved_errors
from passes.quantize.format_names import pass_named
from passes.quantize.quantize import Quantize
from passes.walk.walk import Walk
from tests.walk.conftest import context
from tests.walk.families import save_tiny

_COPIES = ("aten::copy_",)


class OnCard(torch.Tensor):
    """A tensor whose values a processor's tensor holds, and which says that it is on a card."""

    held: torch.Tensor
    card: torch.device

    @staticmethod
    def __new__(cls, held: torch.Tensor, card: torch.device) -> OnCard:
        made: OnCard = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device="meta", dispatch_device=True,
        )  # fmt: skip
        made.held, made.card = held, card
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.card

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("cards exist only within `with Cards():`")


class Cards(TorchDispatchMode):
    """Within: `torch.device("card", n)` can be computed on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func.name()
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name == "prim::device" and isinstance(args[0], OnCard):
            return args[0].card
        cards = {tensor.card for tensor in tensors if isinstance(tensor, OnCard)}
        elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnCard) and tensor.dim()]
        if name not in _COPIES and (len(cards) > 1 or (cards and elsewhere)):
            raise RuntimeError(
                f"{name}: tensors on {', '.join(map(str, cards))}{' and the processor' * bool(elsewhere)}"
            )
        card = next(iter(cards), None)
        if kwargs.get("device") is not None:
            wanted = torch.device(kwargs["device"])
            card = wanted if wanted.type == "card" else None
            kwargs["device"] = torch.device("cpu") if card else wanted
        held = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, OnCard)}
        args, kwargs = tree_map(lambda leaf: leaf.held if isinstance(leaf, OnCard) else leaf, (args, kwargs))
        out = func(*args, **kwargs)
        return out if card is None else tree_map(lambda leaf: _on(leaf, card, held), out)


def _on(value: Any, card: torch.device, held: dict[int, OnCard]) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return held[id(value)] if id(value) in held else OnCard(value, card)


def chains() -> dict[str, tuple[Pass, ...]]:
    """One chain for each way through the walk."""
    names = ("w4a16-g32", "awq-4-g32", "gptq-4-g32", "w8a8-static-smoothquant", "fp8", "nvfp4", "mxfp4")
    quantized = {name: one for name in names if (one := pass_named(name)) is not None}
    return {name: (one,) for name, one in quantized.items()} | {
        "w4a16-g32 + fp8 KV": (quantized["w4a16-g32"], KVCachePass("fp8", True)),
        "2:4 + w4a16-g32": (Sparsify("sparsegpt", 0.5, "2:4"), quantized["w4a16-g32"]),
        "2:4": (Sparsify("wanda", 0.5, "2:4"),),
        "exl2": (QuantizeExl2(4.0, choices=((5, 5), (8, 9))),),
    }


def _walked(
    ir: ModelIR, chain: tuple[Pass, ...], source: Path, folder: Path, devices: tuple[torch.device, ...]
) -> Checkpoint:
    ids = torch.randint(3, 280, (8, 32), generator=torch.Generator().manual_seed(0))
    target = rewrite(ir, chain)
    run = context(folder, ids, devices)
    Walk(DenseModel(ir, Checkpoint(source)), target, method(chain), run, batch_tokens=64).run()
    return Checkpoint(folder / "shards")


def _agreement(one: Checkpoint, other: Checkpoint) -> float:
    names = [tensor.name for tensor in one.describe()]
    ours, theirs = one.read(names), other.read(names)
    return min(
        float(torch.isclose(ours[n].float(), theirs[n].float(), rtol=1e-3, atol=1e-6).float().mean()) for n in names
    )


def main(family: str, folder: Path, names: Sequence[str]) -> None:
    _setup_privateuseone_for_python_backend("card")
    save_tiny(family, folder / "source")
    ir = open_model(folder / "source").ir
    found: dict[str, float] = {}
    for number, (name, chain) in enumerate(chains().items()):
        if names and name not in names:
            continue
        plain = _walked(ir, chain, folder / "source", folder / f"{number}", (torch.device("cpu"),) * 2)
        with Cards():
            carded = _walked(
                ir, chain, folder / "source", folder / f"{number}-card", tuple(torch.device("card", n) for n in (0, 1))
            )
        found[name] = _agreement(plain, carded)
    print(json.dumps(found if names else found | _measured(ir, folder)))


def _measured(ir: ModelIR, folder: Path) -> dict[str, float]:
    """The same of what is measured before a walk: EXL2's options, the cost of formats."""
    ids = torch.randint(3, 280, (8, 32), generator=torch.Generator().manual_seed(0))
    source, palette = DenseModel(ir, Checkpoint(folder / "source")), (PackQuantized(4, 32), IntQuantized())

    def numbers(device: torch.device, into: Path) -> tuple[list[float], ...]:
        run = context(into, ids, (device,))
        measure(source, run.part(into / "options"))
        options = saved_errors(into / "options", len(source))
        costs = option_costs(source, palette, run.part(into / "costs"))
        rounded = (Quantize("rtn", palette[0]),)
        trialled = trial(rounded, rewrite(ir, rounded), source, run.part(into / "trial"), ids)
        return (
            [x for each in options for x in each.attention + each.mlp],
            [x for each in costs.values() for x in each],
            [trialled.kl, trialled.perplexity],
        )

    plain = numbers(torch.device("cpu"), folder / "plain")
    with Cards():
        carded = numbers(torch.device("card", 0), folder / "carded")
    return {
        name: sum(abs(a - b) <= 1e-3 * a for a, b in zip(*pair, strict=True)) / len(pair[0])
        for name, pair in zip(("EXL2 options", "format costs", "a trial"), zip(plain, carded, strict=True), strict=True)
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
