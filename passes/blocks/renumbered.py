"""Shows a model's weights, and its other stacks, as they are numbered after blocks were dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from passes.ir.model import ModelIR, Stack

if TYPE_CHECKING:
    import torch

    from passes.files.checkpoint import Weights


class RenumberedWeights:
    """A source's weights under the names they have after blocks were dropped. Nothing is copied."""

    def __init__(self, weights: Weights, ir: ModelIR, kept: Sequence[int]) -> None:
        self._weights = weights
        stack = ir.decoder
        self._prefixes = {stack.layer_prefix(new): stack.layer_prefix(old) for new, old in enumerate(kept)}
        moved = renumbered(ir.stacks, stack, kept)
        for was, now in zip((each for each in ir.stacks if each.name != "decoder"), moved, strict=True):
            if was.prefix == stack.prefix:
                self._prefixes |= {now.layer_prefix(i): was.layer_prefix(i) for i in range(len(was.layers))}
        self._stem = stack.prefix.split("{i}")[0]

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint that is shown."""
        return self._weights.folder

    def __contains__(self, name: str) -> bool:
        return self._old(name) in self._weights

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return the named tensors, looked up under their old names."""
        old = {name: self._old(name) for name in names}
        found = self._weights.read(old.values())
        return {name: found[was] for name, was in old.items()}

    def _old(self, name: str) -> str:
        if not name.startswith(self._stem):
            return name
        end = name.index(".", len(self._stem)) + 1
        return self._prefixes.get(name[:end], name[:end]) + name[end:]


def renumbered(stacks: Sequence[Stack], decoder: Stack, kept: Sequence[int]) -> tuple[Stack, ...]:
    """Return the other stacks; those numbered after the decoder's last block (DeepSeek's `model.layers.61`) move up."""
    fewer = len(decoder.layers) - len(kept)
    return tuple(
        replace(each, first_index=each.first_index - fewer) if each.prefix == decoder.prefix else each
        for each in stacks
        if each.name != "decoder"
    )
