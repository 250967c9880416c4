"""The teacher's next-token distributions of a text, kept on disk: the model goes by block by block, its largest log-probabilities stay.

    <folder>/said-00000.safetensors      one batch of sequences: `tokens` int32 and `log_probs` fp16 [B, T, k]
    <folder>/hidden-00000.safetensors    `hidden` bf16 [B, T, D], what its output head reads, where asked for

A batch that is whole is not made again, so a run that was killed goes on behind it. How many bytes that takes is known beforehand
(`passes.distill.needs.cache_bytes`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from passes.blocks.dense_model import DenseModel
from passes.blocks.memory import BATCH_TOKENS, LOGIT_TOKENS
from passes.distill.objective import largest
from passes.files.checkpoint import write_shard
from passes.ir.readers.headers import is_whole
from passes.measure.evaluate import through
from passes.record import dataclass
from passes.steps.context import RunContext
from passes.steps.step import part_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TeacherText:
    """What a teacher says of a text, in `folder`: its `top_k` largest log-probabilities at `temperature`; `hidden`: states too."""

    folder: Path
    top_k: int
    temperature: float
    hidden: bool

    def keep(self, teacher: DenseModel, run: RunContext) -> None:
        """Bring the run's text through the teacher, and keep what it says of every position."""
        import torch

        batches = -(-len(run.text) // _rows(run.text))
        total = len(teacher) + batches
        stream = through(teacher, run.part(self.folder / "states", part_of(run.report, 0, total)), BATCH_TOKENS)
        decoder, depth = stream.decoders[0], len(teacher)
        if self.hidden:
            missing = [number for number in range(batches) if not is_whole(self._path("hidden", number))]
            states = (stream.hidden.read(depth, number).to(decoder.device) for number in missing)
            for number, final in zip(missing, decoder.final(states), strict=True):
                self._write("hidden", number, {"hidden": final.to(torch.bfloat16)})
        with decoder.head():
            for number, ids in enumerate(stream.batches):
                if not is_whole(self._path("said", number)):
                    hidden = stream.hidden.read(depth, number).to(decoder.device)
                    pieces = torch.split(hidden.flatten(0, 1), LOGIT_TOKENS)
                    kept = [largest(decoder.logits(piece[None])[0], self.top_k, self.temperature) for piece in pieces]
                    log_probs, tokens = (torch.cat(parts).view(*ids.shape, -1) for parts in zip(*kept, strict=True))
                    self._write("said", number, {"log_probs": log_probs.half(), "tokens": tokens})
                run.report(depth + number + 1, total)
        stream.hidden.clear()

    def whole(self, text: torch.Tensor) -> bool:
        """Return whether all of a text `[S, T]` is there."""
        numbers = range(-(-len(text) // _rows(text)))
        return all(is_whole(self._path(kind, number)) for kind in self._kinds for number in numbers)

    def row(self, number: int, text: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what is kept of one sequence of the text: `[T, k]`, `[T, D]`."""
        from safetensors import safe_open

        file, line = divmod(number, _rows(text))
        kept: dict[str, torch.Tensor] = {}
        for kind in self._kinds:
            with safe_open(self._path(kind, file), framework="pt") as stored:
                names: list[str] = list(stored.keys())
                kept |= {name: stored.get_slice(name)[line] for name in names}
        return kept

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ("said", "hidden") if self.hidden else ("said",)

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number:05d}.safetensors"

    def _write(self, kind: str, number: int, tensors: dict[str, torch.Tensor]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_shard(self._path(kind, number), tensors)


def _rows(text: torch.Tensor) -> int:
    """Sequences of a batch, as `passes.blocks.stream` cuts a text."""
    return max(1, BATCH_TOKENS // max(1, text.shape[1]))
