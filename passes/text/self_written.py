"""Lets a model write its own calibration text, at temperature 1, in batches that are kept as they are finished.

On the processor the text is a function of model and seed, and of whether it has products of 16 bits (`_dtype`). On a card it is one of
model, seed, kind of card and the libraries' versions: the numbers that decide are the same, but a card's matrix products round in another
way, and otherwise for another number of rows, which the card's whole memory decides, not what is free of it.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.blocks.devices import compute_devices, memory_bytes
from passes.errors import InputError, TightfitError
from passes.files.checkpoint import Checkpoint, write_shard
from passes.host_memory import memory_total_bytes
from passes.ir.readers.headers import is_whole
from passes.steps.step import Report
from passes.text.sampling import CardWriter, row_bytes, write_plainly
from passes.text.source import TEXT_REMEDY, TextSource, first_tokens

if TYPE_CHECKING:
    import torch

#: A model may write its own calibration text when its weights take at most this share of the free memory; on a card, its rows at most
#: this share of what the weights leave.
SELF_MEMORY_SHARE = 0.6
#: Of all memory (not of what is free, so that a machine writes the same text each time): what weights in single precision may take.
_ROOMY = 0.3
#: Sequences that the model writes side by side on a processor, and whose random numbers come from one seed anywhere.
SELF_BATCH = 64
#: The same on a card, at most: a step of few rows takes as long as one of many.
CARD_BATCH = 256


def written_by_model(
    source: TextSource,
    model_folder: Path,
    tokenizer: Any,
    parts: Path | None,
    progress: Report,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Sample text from the model, which must fit in memory whole: ids int64 `[samples, length]`. `device`: where; by default the first.

    Raises InputError where transformers cannot run the model, TightfitError where it does not fit.
    """
    import torch
    from transformers import AutoModelForCausalLM

    device = device or compute_devices()[0]
    _refuse_large(model_folder, device)
    try:
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=_dtype(model_folder, device)).to(device).eval()
    except (ValueError, KeyError) as error:
        raise InputError(
            f"transformers has no class that runs {model_folder.name} whole, so it cannot write its own calibration text",
            remedy=f"under `calibration: dataset:`, {TEXT_REMEDY.removesuffix(', or `self`')}",
        ) from error
    openings, uniforms = _drawn(model, tokenizer, source)
    on_card = CardWriter(model) if device.type == "cuda" else None
    batch = _card_rows(model, openings, source.length) if on_card else SELF_BATCH
    blocks, total = [], source.samples * source.length
    for first in range(0, source.samples, batch):
        rows = min(batch, source.samples - first)
        kept = parts / f"{device.type}-{first:07d}-{rows}.safetensors" if parts is not None else None
        if kept is None or not is_whole(kept):

            def told(position: int, first: int = first, rows: int = rows) -> None:
                progress(first * source.length + rows * position, total, on_card.how if on_card else "")

            mine = slice(first, first + rows)
            texts = openings[mine], uniforms[:, mine]
            written = on_card(*texts, told) if on_card else write_plainly(model, *texts, told)
            if kept is None:
                blocks.append(written)
                continue
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_shard(kept, {"input_ids": written})
        blocks.append(Checkpoint.of_files([kept]).read(["input_ids"])["input_ids"])
    return torch.cat(blocks)


def _dtype(model_folder: Path, device: torch.device) -> Any:
    """What a model writes in: as it is stored, but in single precision on a processor without AVX-512, where products of 16 bits take
    three to five times as long (SmolLM2's matrices on an EPYC with AVX2), and twice the weights have room.
    """
    import torch

    slow = (
        device.type == "cpu"
        and platform.machine() == "x86_64"
        and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    )
    room = 2 * _stored_bytes(model_folder) <= _ROOMY * memory_total_bytes()
    return torch.float32 if slow and room else "auto"


def _drawn(model: Any, tokenizer: Any, source: TextSource) -> tuple[torch.Tensor, torch.Tensor]:
    """What chance decides, the same on every device: openings int64 `[samples, n]`, and a number in [0, 1) for each token behind
    them, fp32 `[length - n, samples]`. Every `SELF_BATCH` rows have a seed of their own.
    """
    import torch

    openings, uniforms = [], []
    for first in range(0, source.samples, SELF_BATCH):
        rows = min(SELF_BATCH, source.samples - first)
        generator = torch.Generator().manual_seed(source.seed + first)
        openings.append(_opening(model, tokenizer, rows, generator))
        uniforms.append(torch.rand(source.length - openings[-1].shape[1], rows, generator=generator))
    return torch.cat(openings), torch.cat(uniforms, dim=1)


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


def _card_rows(model: Any, openings: torch.Tensor, length: int) -> int:
    """How many rows the card writes side by side: as many as it has memory for beside the weights, a power of two.

    Raises TightfitError where so much is not free: with fewer rows it would be another text.
    """
    each, weights = row_bytes(model, openings[:1], length), sum(int(value.nbytes) for value in model.parameters())
    room = int(SELF_MEMORY_SHARE * (memory_bytes(model.device) - weights))
    batch = min(CARD_BATCH, 1 << max(0, (room // each).bit_length() - 1))
    needed, free = min(batch, len(openings)) * each, _free_on(model.device)
    if needed > free:
        raise TightfitError(
            f"to write calibration text takes {needed / 2**30:.1f} GiB on {model.device} beside the weights; free are {free / 2**30:.1f}",
            remedy="end what else is on the card, or name a text file or a Hub data set under `calibration: dataset:`",
        )
    return batch


def _refuse_large(model_folder: Path, device: torch.device) -> None:
    """Raise TightfitError where the weights do not fit: in the machine's memory, through which they are loaded, and on the card."""
    import psutil

    weights = _stored_bytes(model_folder)
    places = {"memory": psutil.virtual_memory().available}
    if device.type == "cuda":
        places[str(device)] = _free_on(device)
    for place, free in places.items():
        if weights > SELF_MEMORY_SHARE * free:
            raise TightfitError(
                f"the model ({weights / 2**30:.1f} GiB) does not fit in {place} ({free / 2**30:.1f} GiB free) "
                "to write its own calibration text",
                remedy="name a text file or a Hub data set under `calibration: dataset:`",
            )


def _stored_bytes(model_folder: Path) -> int:
    """Bytes of a model's weights as they are stored."""
    return sum(path.stat().st_size for path in model_folder.glob("*.safetensors"))


def _free_on(card: torch.device) -> int:
    """Bytes of a card that nobody has, nor this process for later."""
    import torch

    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(card)[0])
