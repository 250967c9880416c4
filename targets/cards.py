"""Cards as a command names them: one, several (`8x H100`, `L4:1`), a cloud's machine (`p4d.24xlarge`), unlike ones (`RTX 4090 + T4`).

Machines of clouds stand in `clouds.jsonl`, each with the page that lists it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from passes.errors import InputError
from passes.record import dataclass
from targets.gpu import Gpu, SharedNameError, find_gpu

#: `2x RTX 4090`, `8 × H100`; `H100 x2`; `L4:1`, `A100-80GB:8` (SkyPilot).
_BEFORE, _BEHIND = re.compile(r"(\d{1,6})\s*[xX×*]\s*(\S.*)"), re.compile(r"(\S.*?)\s+[xX×*]\s*(\d{1,6})")
_SKY = re.compile(r"(\S.*?)\s*:\s*(\d{1,6})")
#: `H100x8`, `l40sx4`: tried where the whole is no card's name.
_CLOSE = re.compile(r"(\S.*\w)[xX×*](\d{1,2})")

#: What SkyPilot calls so, where it is not what a bare name means elsewhere (`sky show-gpus`: A100 is the 40 GB card).
_SKYPILOT = {"a100": "A100 SXM4 40GB", "v100": "V100 SXM2 16GB"}


@dataclass(frozen=True, slots=True)
class Cards:
    """A card, and how many of it are named; None where no number is. Of unlike cards `gpu` is the tightest of each."""

    gpu: Gpu
    count: int | None = None


@lru_cache(maxsize=1)
def _machines() -> dict[str, tuple[str, int, str]]:
    """(card, count, cloud) by a machine's name, in lower case."""
    text = Path(__file__).with_name("clouds.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return {
        name.lower(): (row["card"], row["count"], row["cloud"]) for row in rows for name in row["instances"].split()
    }


def find_cards(text: str) -> Cards:
    """Return the cards of a text. Raises InputError for names that are not known, or that several cards share."""
    # `Ryzen AI Max+ 395` has a plus of its own.
    parts = [part for part in re.split(r"\s*(?:(?<!max)\+|,)(?![^(]*\))\s*", text.strip(), flags=re.IGNORECASE) if part]
    if len(parts) < 2:
        return _alike(text.strip())
    named = [_alike(part) for part in parts]
    return Cards(
        tightest([cards.gpu for cards in named for _ in range(cards.count or 1)]), sum(c.count or 1 for c in named)
    )


def _alike(text: str) -> Cards:
    if machine := _machine(text):
        card, count, cloud = machine
        gpu = find_gpu(card)
        return Cards(replace(gpu, note=f"{text} ({cloud}) has {count} × {gpu.name}"), count)
    if (match := _BEFORE.fullmatch(text)) and int(match[1]):
        number, name = match.groups()
        behind = name.isdigit() and 0 < int(name) < int(number)  # `3090 x 2`
        return Cards(find_gpu(number), int(name)) if behind else Cards(find_gpu(name), int(number))
    if (match := _BEHIND.fullmatch(text)) and int(match[2]):
        return Cards(find_gpu(match[1]), int(match[2]))
    if (match := _SKY.fullmatch(text)) and int(match[2]):
        return Cards(_of_skypilot(match[1], text), int(match[2]))
    try:
        return Cards(find_gpu(text))
    except InputError as unknown:
        match = None if isinstance(unknown, SharedNameError) else _CLOSE.fullmatch(text)
        if match is None or not int(match[2]):
            raise
        return _so_many(match[1], int(match[2]), unknown)


def _so_many(name: str, count: int, unknown: InputError) -> Cards:
    """So many of a card; where its name is not known either, the error for the whole."""
    try:
        return Cards(find_gpu(name), count)
    except SharedNameError:
        raise
    except InputError:
        raise unknown from None


def _of_skypilot(name: str, text: str) -> Gpu:
    """The card of a name before `:`; where SkyPilot means one by it that others do not, that is said."""
    own = _SKYPILOT.get(name.lower())
    if own is None:
        return find_gpu(name)
    gpu = find_gpu(own)
    return replace(gpu, note=f"{text} is read as {gpu.name}, as SkyPilot has it")


def _machine(text: str) -> tuple[str, int, str] | None:
    if not re.search(r"[._ -]", text):
        return None
    name = "-".join(text.lower().split()).removeprefix("ml.")  # SageMaker's
    return _machines().get(name) or _machines().get(f"standard_{name.replace('-', '_')}")


def tightest(cards: Sequence[Gpu]) -> Gpu:
    """Return what a model spread evenly over cards may count on: of each figure the least. Raises InputError for unlike makers."""
    names = list(dict.fromkeys(card.name for card in cards))
    if len(names) == 1:
        return cards[0]
    if len({card.vendor for card in cards}) > 1:
        raise InputError(f"{', '.join(names)} are of several makers", remedy="one engine runs on the cards of one")
    small = min(cards, key=lambda card: card.memory_bytes.value)

    def least(values: Sequence[float | None]) -> float | None:
        return None if any(value is None for value in values) else min(value for value in values if value is not None)

    return replace(
        small,
        bandwidth_bytes_per_s=min(card.bandwidth_bytes_per_s for card in cards),
        bf16_flops=least([card.bf16_flops for card in cards]),
        fp16_accumulate_flops=least([card.fp16_accumulate_flops for card in cards]),
        fp8_flops=least([card.fp8_flops for card in cards]),
        int8_ops=least([card.int8_ops for card in cards]),
        fp4_flops=least([card.fp4_flops for card in cards]),
        capability=min((card.capability for card in cards if card.capability is not None), default=None),
        link_bytes_per_s=least([card.link_bytes_per_s for card in cards]),
        note=f"unlike cards ({', '.join(names)}): each rank is counted with the least of them, {small.name}'s memory",
    )
