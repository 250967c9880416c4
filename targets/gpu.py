"""Cards: what each offers, and how a name finds its card.

The catalog is `gpus.yaml` (one card a line, made by `benchmarks/make_gpus.py`, with the source of its figures). A name may be
the catalog's, the one NVML prints (`NVIDIA GeForce RTX 4090`, `Tesla T4`, `NVIDIA A100-SXM4-80GB`), or an alias; case, spaces
and dashes do not count. `24GB` is a generic card of that size. `cpu` is this machine's processor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.errors import InputError, NotModelledError, nearest, unknown_name
from passes.host_memory import card_nodes, cards_memory, memory_total_bytes
from passes.record import dataclass
from targets.machine.devices import cores, cpu_instructions, cpu_model, installed_gpus
from targets.other_makers import other_maker
from targets.quantity import Basis, Quantity

_GIB = 1 << 30
#: What CUDA sees of what nvidia-smi prints: median and range over the cards of the catalog where both are known.
_VISIBLE_SHARE = (0.988, 0.971, 0.994)
_PREFIXES = re.compile(r"^(nvidia|amd|intel|geforce|tesla|quadro|radeon|instinct|dgx|hgx)+")
#: What Kubernetes' GPU feature discovery puts behind the name of a card that pods share (time slicing, MPS).
_SHARED_BY_PODS = re.compile(r"(.+?)-SHARED", re.IGNORECASE)
#: No card's name is longer: what is has no parts to look for, which takes the square of its length.
_LONGEST_NAME = 128
#: A card's name with a size that its maker never gave it.
_WITH_SIZE = re.compile(r"(.*\D.*?)[\s_-]*(\d{1,3})\s*GB?", re.IGNORECASE)


#: Bandwidth and matrix rate assumed a core until `optimize calibrate` measured them: two-core cloud machines show about 10 GB/s, and
#: 0.1 Tflop/s a core where the processor multiplies bfloat16 itself (AVX-512 BF16, AMX), 0.015 with AVX2 only.
_BANDWIDTH_PER_CORE = 10e9
_BF16_FLOPS_PER_CORE, _FLOPS_PER_CORE = 0.1e12, 0.015e12
_BF16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


#: What is assumed of a card that is here and that the catalog lacks.
_SMALL_CARD = 8 * _GIB
_SLOW_CARD = {"bandwidth_gb_s": 300, "fp16_bf16_dense_tflops": 30}


@dataclass(frozen=True, slots=True)
class Network:
    """How cards of other machines are reached: `cards` of one machine, bytes a second of one direction of all that it has of network, and
    seconds until a message arrives.
    """

    cards: int
    bytes_per_s: float
    latency_s: float


#: Taken where nobody says what is between machines: 100 Gb/s Ethernet. Seconds of a message of NCCL's, through the host: assumed too.
ASSUMED_NETWORK_BYTES_PER_S, NETWORK_LATENCY_S = 12.5e9, 20e-6


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card, or a CPU. Rates are dense (no sparsity), per second; None where the card has no such units or nobody says.

    `memory_bytes`: what CUDA shows as the card's total (torch's `mem_get_info`), below the nominal size. `capability`: CUDA
    compute capability × 10 (89 for 8.9), None for other vendors. `link_bytes_per_s`: card to card, both directions.
    `note`: what a person must know (a bare name that was resolved, a generic card). `instructions`: sets that a processor has. `network`:
    None where all cards are of one machine.
    """

    name: str
    vendor: str
    generation: str
    memory_bytes: Quantity
    bandwidth_bytes_per_s: float
    bf16_flops: float | None
    fp16_accumulate_flops: float | None
    fp8_flops: float | None
    int8_ops: float | None
    fp4_flops: float | None
    capability: int | None
    pcie: str | None
    link_bytes_per_s: float | None
    basis: Basis = Basis.EXACT
    note: str | None = None
    instructions: frozenset[str] = frozenset()
    network: Network | None = None
    bridge: bool | None = None
    """Whether two of them are joined by an NVLink bridge, which is bought apart; None where the link, if any, is no bridge."""
    offered: bool = True
    """Whether it is proposed where another card would do: not where it is sold no longer, in some countries only, or modified."""

    @property
    def is_cpu(self) -> bool:
        """Whether this is a processor, not a card."""
        return self.vendor == "CPU"


class SharedNameError(InputError):
    """A name that several cards have, which is asked back."""


class OtherMakerError(InputError):
    """An accelerator that no engine is modelled for."""

    exit_code = NotModelledError.exit_code


def fold(name: str) -> str:
    """Return a name without case, spaces, dashes and vendor prefixes."""
    return _PREFIXES.sub("", _letters(name))


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\((r|tm)\)", "", name.lower()))


@lru_cache(maxsize=1)
def _index() -> tuple[dict[str, int], tuple[str, ...], dict[str, list[int]]]:
    """Line numbers by folded name or alias, and by whole names; the catalog's lines, each `- {json}`; those that share a name."""
    text = Path(__file__).with_name("gpus.yaml").read_text(encoding="utf-8")
    lines = tuple(line[2:] for line in text.splitlines() if line.startswith("- {"))
    index: dict[str, int] = {}
    shared: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        entry = json.loads(line)
        for name in (entry["name"], *entry["aliases"]):
            index.setdefault(fold(name), number)
        index.update((_letters(name), number) for name in entry.get("whole", ()))
        for name in entry.get("shared", ()):
            shared.setdefault(fold(name), []).append(number)
    return index, lines, shared


@lru_cache(maxsize=1)
def all_gpus() -> tuple[Gpu, ...]:
    """Return every card of the catalog, in its order."""
    return tuple(_gpu(json.loads(line)) for line in _index()[1])


def find_gpu(name: str) -> Gpu:
    """Return the card of that name. Raises InputError with the nearest names for one that is not known."""
    if name.strip().lower() == "cpu":
        return this_cpu()
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(gb|gib)", name.strip().lower())
    return _generic(float(size[1])) if size else _of_catalog(name)


@lru_cache(maxsize=1 << 8)
def _of_catalog(name: str) -> Gpu:
    index, lines, shared = _index()
    folded = _letters(name) if _letters(name) in index else fold(name)
    if folded not in index and re.search(r"\d{2}g$", folded):
        folded += "b"  # `A100 80G`
    if (several := shared.get(folded, shared.get(f"rtx{folded}"))) is not None:
        choices = [json.loads(lines[number])["name"] for number in several]
        raise SharedNameError(
            f"{name!r} names several cards: {', '.join(choices)}",
            remedy=f"say which, for instance {choices[0]!r} (--gpu, or gpu: in a spec)",
        )
    number = index.get(folded, index.get(f"rtx{folded}"))  # `4090`
    if number is None and len(name) <= _LONGEST_NAME and (other := _read_otherwise(name)) is not None:
        return other
    if number is None and (maker := other_maker(name)) is not None:
        raise OtherMakerError(
            f"{name}: engines on {maker}'s accelerators are not modelled",
            remedy="choose an NVIDIA card (`optimize targets` lists them), or cpu for this machine's processor",
        )
    if number is None:
        raise unknown_name(
            "GPU", name, [json.loads(line)["name"] for line in lines],
            remedy="`optimize targets` lists the cards; a size such as 24GB stands for a generic card.",
            meant={name.lower(): _misread(name)},
        )  # fmt: skip
    entry = json.loads(lines[number])
    note = None
    bare = {fold(alias) for alias in entry.get("bare", ())}
    if (folded in bare and _letters(name) != _letters(entry["name"])) or folded not in index:
        note = f"{name} is read as {entry['name']}"
    return _gpu(entry, note)


def _read_otherwise(name: str) -> Gpu | None:
    """A slice of a card, a board with twice its memory, or a card with its words in another order; None for another name."""
    return _part_of_card(name) or _doubled(name) or _reordered(name)


def cards_named(name: str) -> tuple[Gpu, ...]:
    """Return the cards that a driver's name may mean: several where it is theirs in common. Raises InputError for one that is not known."""
    _, lines, shared = _index()
    several = () if _letters(name) in _index()[0] else shared.get(fold(name), ())
    return tuple(_gpu(json.loads(lines[number])) for number in several) or (find_gpu(name),)


def card_seen(name: str, total_bytes: int, capability: int | None = None) -> Gpu:
    """Return the card of a name that NVML prints, with the memory that it says; of several that share the name, the one of that size.
    One that the catalog lacks has its memory and compute capability × 10, and assumed rates.
    """
    try:
        card = min(cards_named(name), key=lambda gpu: abs(gpu.memory_bytes.value - total_bytes))
    except InputError:
        maker = other_maker(name) or "NVIDIA"
        card = replace(unlisted_gpu(name, total_bytes), capability=capability, vendor=maker)
    share, low, high = _VISIBLE_SHARE
    if abs(card.memory_bytes.value - total_bytes * share) <= 0.03 * total_bytes:
        return card  # the catalog's figure is what CUDA shows of this total
    return replace(
        card, memory_bytes=Quantity(total_bytes * share, total_bytes * low, total_bytes * high, Basis.MEASURED)
    )


#: A slice of a card by NVIDIA's name for it (`MIG 1g.10gb`), and a share of one in a virtual machine (`A10-24Q`, `GRID A100D-80C`).
_SLICE = re.compile(r"(.+?)\s*[- ]?\(?\s*(?:MIG\s*[- ]?\s*)?(\d)g\.(\d+)gb(?:\+\w+)?\)?", re.IGNORECASE)
_VIRTUAL = re.compile(r"(?:NVIDIA\s+)?(?:GRID\s+)?([A-Z0-9 ]+?)-(\d+)[QCAB]", re.IGNORECASE)
#: Names that virtual machines have for cards, and what a slice has less than its share of the memory: NVIDIA's MIG guide prints 4.75,
#: 9.75 and 19.62 GiB of an A100 of 40 GB for an eighth, two and four.
_VIRTUAL_NAMES = {
    "a100d": "A100 80GB",
    "a100": "A100 40GB",
    "a100x": "A100 80GB",
    "h100l": "H100 NVL (94GB)",
    "h100xm": "H100 SXM",
    "h200x": "H200 SXM",
    "rtx6000": "Quadro RTX 6000",
    "rtx8000": "Quadro RTX 8000",
}
_SLICE_SHARE = (0.985, 0.955, 1.0)
_SLICES, _PARTS = 8, 7
#: Where a card has not seven parts (NVIDIA's MIG guide, supported GPUs).
_FEWER_PARTS = {"A30": 4, "RTX PRO 6000": 4, "RTX PRO 5000": 2}
#: Eighths of the memory that a slice of so many units has (NVIDIA's MIG guide, profiles of the A100).
_EIGHTHS = {1: 1, 2: 2, 3: 4, 4: 4, 7: 8}


def _misread(name: str) -> list[str]:
    """The cards that a name is like whose digits are written as letters (`4O90`, `A1OO`), or whose number alone is misspelt (`4099`)."""
    index, lines, shared = _index()
    folded = fold(name)
    if any(letter.isdigit() for letter in folded):
        folded = re.sub(r"(?<=\d)o+|o+(?=\d)", lambda letters: "0" * len(letters[0]), folded)
    known = {text.removeprefix("rtx"): numbers for text, numbers in shared.items()}
    known = {text.removeprefix("rtx"): [number] for text, number in index.items()} | known
    if folded.removeprefix("rtx") in known:
        return [json.loads(lines[number])["name"] for number in known[folded.removeprefix("rtx")]]
    if not folded.isdigit():
        return []
    close = nearest(folded, [text for text in known if text.isdigit() and len(text) == len(folded)])
    return [json.loads(lines[known[text][0]])["name"] for text in close]


def _doubled(name: str) -> Gpu | None:
    """A GeForce that resellers give twice its memory, with its rates (`RTX 2080 Ti 22GB`, `RTX 3080 20GB`); None for another name."""
    if (match := _WITH_SIZE.fullmatch(name.strip())) is None:
        return None
    index, lines, shared = _index()
    folded = fold(match[1])
    meant = next((known for known in (folded, f"rtx{folded}") if known in shared or known in index), None)
    numbers = () if meant is None else shared.get(meant) or (index[meant],)
    for entry in (json.loads(lines[number]) for number in numbers):
        if entry["name"].startswith("RTX ") and float(entry["memory_gb_nominal"]) * 2 == float(match[2]):
            card = _gpu(entry)
            made = re.sub(r" \d+GB$", "", card.name)
            return replace(
                card, name=f"{made} {match[2]}GB", memory_bytes=card.memory_bytes.scaled(2.0), offered=False,
                note=f"{name} is read as a board of resellers: the rates of {card.name}, twice its memory",
            )  # fmt: skip
    return None


def _reordered(name: str) -> Gpu | None:
    """The one card whose name has these words in another order (`RTX 6000 Pro`, `Orin AGX`); None where none or several have."""
    known = _by_words().get(_word_set(name), ())
    if len(known) != 1:
        return None
    card = _of_catalog(known[0])
    return replace(card, note=f"{name} is read as {card.name}")


def _word_set(name: str) -> frozenset[str]:
    """The words of a name, its maker's aside."""
    return frozenset(re.findall(r"[a-z0-9]+", name.lower())) - {"nvidia", "amd", "intel", "geforce"}


@lru_cache(maxsize=1)
def _by_words() -> dict[frozenset[str], tuple[str, ...]]:
    """Names of the catalog, those that several cards share included, by their words: of each set the names of unlike cards."""
    found: dict[frozenset[str], dict[str, str]] = {}
    for entry in (json.loads(line) for line in _index()[1]):
        for name in (entry["name"], *entry["aliases"]):
            found.setdefault(_word_set(name), {}).setdefault(entry["name"], name)
        for name in entry.get("shared", ()):
            found.setdefault(_word_set(name), {})[fold(name)] = name
    return {words: tuple(names.values()) for words, names in found.items()}


def _part_of_card(name: str) -> Gpu | None:
    """A part of a card: a slice of it, a share in a virtual machine, all of it between pods; None for another name."""
    if (match := _SHARED_BY_PODS.fullmatch(name.strip())) is not None:
        card = _of_catalog(match[1])
        return replace(card, note=f"{name}: pods share {card.name}, and what the others take is not counted")
    if (match := _SLICE.fullmatch(name)) is not None:
        units, size = int(match[2]), float(match[3])
        card = _sliced(match[1], units, size)
        share = min(_SLICES, max(1, round(size / (card.memory_bytes.value / _GIB / _SLICES)))) / _SLICES
        middle, low, high = (each if share < 1 else 1.0 for each in _SLICE_SHARE)
        least, memory = low, card.memory_bytes.value * share
        parts = _FEWER_PARTS.get(card.name.partition(" Blackwell")[0], _PARTS)
        return replace(
            _share(card, share, units / parts),
            name=f"{card.name} MIG {match[2]}g.{match[3]}gb",
            memory_bytes=Quantity(memory * middle, memory * least, memory * high, Basis.CALIBRATED),
            link_bytes_per_s=None,
            note=f"{units} of {parts} slices of {card.name}",
        )
    if (match := _VIRTUAL.fullmatch(name.strip())) is not None:
        base, size = match[1].strip(), float(match[2])
        card = _of_catalog(_VIRTUAL_NAMES.get(fold(base), base))
        share = min(1.0, size * _GIB / (card.memory_bytes.value / _VISIBLE_SHARE[0]))
        return replace(
            card,
            name=f"{card.name} ({match[0].strip()})",
            memory_bytes=card.memory_bytes.scaled(share),
            note=f"{name} is a virtual card of {size:g} GB on {card.name}; others may share its speed",
        )
    return None


def _sliced(name: str, units: int, size_gb: float) -> Gpu:
    """Return the card that a slice is of: where its name is that of several, the one whose slices of so many units have this size."""
    if fold(name) in _index()[2] and units in _EIGHTHS:
        return _of_catalog(f"{name} {size_gb / _EIGHTHS[units] * _SLICES:g}GB")
    return _of_catalog(name)


def _share(card: Gpu, memory: float, units: float) -> Gpu:
    """A card with a share of its bandwidth and of its units."""

    def of(rate: float | None) -> float | None:
        return None if rate is None else rate * units

    return replace(
        card, bandwidth_bytes_per_s=card.bandwidth_bytes_per_s * memory, bf16_flops=of(card.bf16_flops),
        fp16_accumulate_flops=of(card.fp16_accumulate_flops), fp8_flops=of(card.fp8_flops), int8_ops=of(card.int8_ops),
        fp4_flops=of(card.fp4_flops),
    )  # fmt: skip


def this_cpu() -> Gpu:
    """Return this machine's processor as a target; rates are assumptions until `optimize calibrate` has measured them."""
    return processor(cpu_model(), cores(), cpu_instructions(), memory_total_bytes())


def processor(name: str, count: int, instructions: frozenset[str], memory_bytes: int) -> Gpu:
    """Return a processor as a target, with the rates that are assumed of so many cores with these instruction sets."""
    flops = _FLOPS_PER_CORE if instructions.isdisjoint(_BF16_INSTRUCTIONS) else _BF16_FLOPS_PER_CORE
    return Gpu(
        name=f"{name}, {count} cores", vendor="CPU", generation="CPU", memory_bytes=Quantity.exact(memory_bytes),
        bandwidth_bytes_per_s=_BANDWIDTH_PER_CORE * count, bf16_flops=flops * count, fp16_accumulate_flops=None,
        fp8_flops=None, int8_ops=None, fp4_flops=None, capability=None, pcie=None, link_bytes_per_s=None, basis=Basis.ASSUMED,
        instructions=instructions,
    )  # fmt: skip


def inline_gpu(facts: Mapping[str, Any]) -> Gpu:
    """Return a card given by its facts: `name`, `memory_gib` (as CUDA shows it), `bandwidth_gb_s`, and keys of gpus.yaml; without a
    bandwidth the listed card of that name with this memory. Raises InputError where none is listed.
    """
    if facts.get("bandwidth_gb_s") is None:
        return replace(find_gpu(facts["name"]), memory_bytes=_visible({"cuda_visible_gib": facts["memory_gib"]}))
    return _gpu({"vendor": "NVIDIA", "cuda_visible_gib": facts["memory_gib"], **facts})


def installed_gpu() -> Gpu:
    """Return this machine's first card, else its processor. Raises InputError where there is a card and nobody says which."""
    names = installed_gpus()
    if not names and card_nodes():
        raise InputError(
            "this machine has an NVIDIA card, but which one cannot be asked: NVML does not answer, and the driver lists none",
            remedy="name it (`target: gpu:` in the spec, --gpu), or install the driver's libnvidia-ml.so.1; `optimize targets` lists the "
            "cards, and cpu is the processor",
        )
    if not names:
        return this_cpu()
    told = cards_memory() if len(cards_named(names[0])) > 1 else ()  # its memory says which of them it is
    return card_seen(told[0].name, told[0].total_bytes) if told else find_gpu(names[0])


def unlisted_gpu(name: str, memory_bytes: int | None = None) -> Gpu:
    """Return a card that is here and that the catalog lacks: a small one's memory, where nobody says, and rates are assumed."""
    facts = {"name": name, "memory_gib": (memory_bytes or _SMALL_CARD) / _GIB, **_SLOW_CARD}
    return replace(inline_gpu(facts), basis=Basis.ASSUMED)


def _gpu(entry: Mapping[str, Any], note: str | None = None, basis: Basis = Basis.EXACT) -> Gpu:
    def rate(key: str) -> float | None:
        value = entry.get(key)
        return None if value is None else float(value) * 1e12

    capability = str(entry.get("compute_capability") or "")
    link = entry.get("interconnect_gb_s_bidirectional")
    return Gpu(
        name=entry["name"],
        vendor=entry.get("vendor", "NVIDIA"),
        generation=entry.get("arch", "unknown"),
        memory_bytes=_visible(entry),
        bandwidth_bytes_per_s=float(entry["bandwidth_gb_s"]) * 1e9,
        bf16_flops=rate("fp16_bf16_dense_tflops"),
        fp16_accumulate_flops=rate("fp16_fp16acc_dense_tflops"),
        fp8_flops=rate("fp8_dense_tflops"),
        int8_ops=rate("int8_dense_tops"),
        fp4_flops=rate("fp4_dense_tflops"),
        capability=int(float(capability) * 10 + 0.5) if re.fullmatch(r"[\d.]+", capability) else None,
        pcie=entry.get("pcie"),
        link_bytes_per_s=None if link is None else float(link) * 1e9,
        basis=basis,
        note=note,
        bridge=False if entry.get("bridge") else None,
        offered=entry.get("offered", True),
    )


def _visible(entry: Mapping[str, Any]) -> Quantity:
    """The total that CUDA shows: as printed by real start-ups where known, else a share of what the driver prints."""
    if entry.get("cuda_visible_gib"):
        value = float(entry["cuda_visible_gib"]) * _GIB
        return Quantity(value, value * 0.998, value * 1.002, Basis.EXACT)
    total = (
        float(entry["driver_total_mib"]) * (1 << 20)
        if entry.get("driver_total_mib")
        else float(entry["memory_gb_nominal"]) * _GIB
    )
    share, low, high = _VISIBLE_SHARE
    return Quantity(total * share, total * low, total * high, Basis.CALIBRATED)


def _generic(size_gb: float) -> Gpu:
    """A card known by its size only: the memory a card of that size really shows, the slowest card's speed assumed. Boards whose memory is
    their processor's too (Jetson) count only where nothing else has that size.
    """
    entries = [json.loads(line) for line in _index()[1]]
    near = [
        e for e in entries if e["vendor"] == "NVIDIA" and abs(float(e["memory_gb_nominal"]) - size_gb) <= 0.02 * size_gb
    ]
    near = [e for e in near if float(str(e["compute_capability"])) >= 8.0] or near
    near = [e for e in near if not e["memory_type"].startswith("LPDDR")] or near
    if not near:
        sizes = sorted({float(e["memory_gb_nominal"]) for e in entries})
        raise InputError(
            f"no card of {size_gb:g} GB is known",
            remedy=f"sizes: {', '.join(f'{s:g}' for s in sizes)} GB; or give the card's facts in the spec (target: gpu: {{…}})",
        )
    memories = sorted((_visible(e) for e in near), key=lambda q: q.value)
    middle = memories[len(memories) // 2]
    slow = min(near, key=lambda e: float(e["bandwidth_gb_s"]))
    gpu = _gpu(
        slow | {"name": f"generic {size_gb:g} GB card", "interconnect_gb_s_bidirectional": None}, basis=Basis.ASSUMED
    )
    memory = Quantity(middle.value, memories[0].low, memories[-1].high, Basis.ASSUMED)
    note = f"a generic {size_gb:g} GB card: {middle.value / _GIB:.2f} GiB usable, speed of {slow['name']} assumed"
    return replace(gpu, memory_bytes=memory, note=note)
