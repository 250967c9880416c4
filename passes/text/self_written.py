"""Lets a model write its own calibration text, at temperature 1, in batches that are kept as they are finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.blocks.devices import compute_devices
from passes.errors import InputError, TightfitError
from passes.files.checkpoint import Checkpoint, write_shard
from passes.ir.readers.headers import is_whole
from passes.text.source import TEXT_REMEDY, TextSource, first_tokens

if TYPE_CHECKING:
    import torch

#: A model may write its own calibration text when its weights take at most this share of the free memory.
_SELF_MEMORY_SHARE = 0.6
#: Sequences that the model writes side by side.
SELF_BATCH = 64


def written_by_model(
    source: TextSource,
    model_folder: Path,
    tokenizer: Any,
    parts: Path | None,
    progress: Callable[[int, int], None],
    device: torch.device | None = None,
) -> torch.Tensor:
    """Text sampled from the model, which must fit in memory whole. Each batch of rows has a seed of its own."""
    import torch
    from transformers import AutoModelForCausalLM

    _refuse_large(model_folder)
    try:
        model = (
            AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto").to(device or compute_devices()[0]).eval()
        )
    except (ValueError, KeyError) as error:
        raise InputError(
            f"transformers has no class that runs {model_folder.name} whole, so it cannot write its own calibration text",
            remedy=f"under `calibration: dataset:`, {TEXT_REMEDY.removesuffix(', or `self`')}",
        ) from error
    blocks, total = [], source.samples * source.length
    for first in range(0, source.samples, SELF_BATCH):
        rows = min(SELF_BATCH, source.samples - first)
        kept = parts / f"{first:07d}.safetensors" if parts is not None else None
        if kept is None or not is_whole(kept):
            generator = torch.Generator().manual_seed(source.seed + first)
            told = lambda position, first=first, rows=rows: progress(first * source.length + rows * position, total)  # noqa: E731
            opening = _opening(model, tokenizer, rows, generator)
            written = _sample(model, opening, source.length, generator, told)
            if kept is None:
                blocks.append(written)
                continue
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_shard(kept, {"input_ids": written})
        blocks.append(Checkpoint.of_files([kept]).read(["input_ids"])["input_ids"])
    return torch.cat(blocks)


def _opening(model: Any, tokenizer: Any, rows: int, generator: torch.Generator) -> torch.Tensor:
    """What `rows` sequences begin with: the tokenizer's first tokens, after which the model knows itself how a text begins; a
    random token each, none of the special ones, where it has none. Ids int64 `[rows, n]`.
    """
    import torch

    if first := first_tokens(tokenizer):
        return torch.tensor(first, dtype=torch.int64).expand(rows, -1)
    usable = torch.ones(model.config.get_text_config().vocab_size, dtype=torch.float32)
    usable[sorted(set(tokenizer.all_special_ids))] = 0
    return torch.multinomial(usable, rows, replacement=True, generator=generator)[:, None]


def _sample(
    model: Any, opening: torch.Tensor, length: int, generator: torch.Generator, progress: Callable[[int], None]
) -> torch.Tensor:
    """Write on from `opening` `[rows, n]` until every row has `length` tokens, each drawn from the model's own distribution."""
    import torch

    rows, begun = opening.shape
    ids = torch.empty(rows, length, dtype=torch.int64)
    ids[:, :begun] = opening[:, :length]
    cache, read = None, 0
    with torch.inference_mode():
        for position in range(begun, length):
            out = model(input_ids=ids[:, read:position].to(model.device), past_key_values=cache, use_cache=True)
            cache, read = out.past_key_values, position
            # Inversion of the distribution function: a tenth of torch.multinomial's time on a CPU.
            cumulative = torch.softmax(out.logits[:, -1].float().cpu(), dim=-1).cumsum(dim=-1)
            drawn = torch.rand(rows, 1, generator=generator) * cumulative[:, -1:]
            ids[:, position] = torch.searchsorted(cumulative, drawn)[:, 0].clamp(max=cumulative.shape[1] - 1)
            progress(position + 1)
    return ids


def _refuse_large(model_folder: Path) -> None:
    import psutil

    weights = sum(path.stat().st_size for path in model_folder.glob("*.safetensors"))
    free = psutil.virtual_memory().available
    if weights > _SELF_MEMORY_SHARE * free:
        raise TightfitError(
            f"the model ({weights / 2**30:.1f} GiB) does not fit in memory ({free / 2**30:.1f} GiB free) to write its own calibration text",
            remedy="name a text file or a Hub data set under `calibration: dataset:`",
        )
