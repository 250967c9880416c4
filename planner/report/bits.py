"""Bits a weight, matrix by matrix and layer by layer, where they are not the same everywhere."""

from __future__ import annotations

from collections import defaultdict

from passes.ir.model import Block
from passes.record import dataclass
from planner.report.facts import Facts


@dataclass(frozen=True, slots=True)
class Cell:
    """A matrix of a layer: bits a weight, what stores it, and how dark it is drawn (0 … 1)."""

    bits: float
    said: str
    shade: float


@dataclass(frozen=True, slots=True)
class BitsMap:
    """`layers`: their numbers; each row a matrix, None where a layer has none of it."""

    layers: tuple[int, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def bits_map(facts: Facts) -> BitsMap | None:
    """Map the bits of the served decoder; None where all layers are alike, or a choice still waits to be measured."""
    if facts.ir is None or waits(facts):
        return None
    stack = facts.ir.decoder
    layers = [_bits(stack.block(layer)) for layer in range(len(stack.layers))]
    if len({tuple(sorted(layer.items())) for layer in layers}) == 1:
        return None
    names = list(dict.fromkeys(name for layer in layers for name in layer))
    known = [bits for layer in layers for bits, _ in layer.values()]
    low, high = min(known), max(known)

    def cell(held: tuple[float, str] | None) -> Cell | None:
        if held is None:
            return None
        return Cell(held[0], held[1], round((held[0] - low) / (high - low), 2) if high > low else 0.5)

    rows = tuple((name, tuple(cell(layer.get(name)) for layer in layers)) for name in names)
    return BitsMap(tuple(range(len(layers))), rows)


def waits(facts: Facts) -> bool:
    """Return whether bits are chosen only when the plan is applied."""
    return facts.plan.chosen is not None and facts.plan.chosen.state != "resolved"


def _bits(block: Block) -> dict[str, tuple[float, str]]:
    """Bits a weight of a block's matrices by the last part of their names; experts that share it are averaged."""
    held: defaultdict[str, list[tuple[float, int, str]]] = defaultdict(list)
    for linear in block.linears:
        if linear.quantizable:
            bits = linear.storage.bits_per_weight(linear.out_features, linear.in_features)
            held[linear.name.rsplit(".", 1)[-1]].append((bits, linear.weights, linear.storage.label))
    return {
        name: (round(sum(b * n for b, n, _ in parts) / sum(n for _, n, _ in parts), 2), parts[0][2])
        for name, parts in held.items()
    }
