"""Which of vLLM's kernels multiply a matrix of packed integers, by version, card, dtype and the shape that one rank holds.

Sources: `can_implement` of `kernels/linear/mixed_precision/*.py`, their order in `kernels/linear/__init__.py` (0.6.6–0.33.0, elsewhere in
older ones), `utils/marlin_utils.py`, `gptq.py`, `awq.py`; `benchmarks/kernel_oracle.py` asks 0.32's own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from passes.errors import Reason
from passes.formats.format import Format
from passes.ir.fused import fused
from passes.ir.model import Block, Linear, ModelIR
from passes.record import dataclass
from targets.engines.engine import Parallel
from targets.engines.resident_weights import Ranks, local_shape
from targets.engines.vllm.rules.versions import ALWAYS, NEVER, Rules, Version, said

_HALVES = frozenset({"F16", "BF16"})
#: A group size that stands for every positive one.
ANY_GROUP = 0


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel in the versions from `since` to before `until`, on cards of compute capability × 10 from `least` to `most`.

    `reads`: formats by their engines' name, `/` and the type of the inputs behind it. `types`: (bits, zero points) of its integers.
    `groups`: inputs that share a scale, −1 a whole row, `ANY_GROUP`. `rows`, `inputs`: of which a rank's share must be multiples.
    `experts`: whether it multiplies banks of them.
    """

    name: str
    reads: tuple[str, ...]
    types: tuple[tuple[int, bool], ...]
    groups: tuple[int, ...]
    since: Version = ALWAYS
    until: Version = NEVER
    least: int = 75
    most: int = 999
    dtypes: frozenset[str] = _HALVES
    rows: int = 1
    inputs: int = 1
    experts: bool = False


_SYMMETRIC = ((4, False), (8, False))
_MARLIN_GROUPS = (-1, 32, 64, 128)
_ALL_TYPES = (*_SYMMETRIC, (4, True), (8, True))
_CT, _GPTQ, _AWQ = "pack-quantized", "gptq", "awq"
_FLOAT16 = frozenset({"F16"})
#: Formats of 8-bit floats, their groups (a scale a row, a matrix, a block), and what is computed in beside them, other rules' matter.
_FP8, _FP8_GROUPS, _ANY = ("float-quantized", "fp8-block", "fp8-static", "fp8-row"), (-1, 0, 128), _HALVES | {"F32"}


def _marlin(reads: tuple[str, ...], types: tuple[tuple[int, bool], ...]) -> tuple[Kernel, ...]:
    """Marlin needed whole tiles until it padded them with zeros (pull request 45295, 0.24)."""
    kernel = Kernel("Marlin", reads, types, _MARLIN_GROUPS, since=(0, 24, 0))
    tiles = replace(kernel, since=(0, 14, 0), until=(0, 24, 0), rows=64, inputs=128)
    return replace(tiles, since=ALWAYS, until=(0, 14, 0), least=80), tiles, kernel


def _exllama(reads: str, groups: tuple[int, ...]) -> tuple[Kernel, ...]:
    """ExLlama's packs zero points along the rows, so that these are whole words."""
    kernel = Kernel("ExLlama", (reads,), ((4, False),), groups, least=60, dtypes=_FLOAT16, rows=32 // 4)
    return kernel, replace(kernel, types=((8, False),), rows=32 // 8)


#: In the order in which vLLM asks them. What only packages bring that vLLM does not depend on (conch-triton-kernels) is not here.
#: GPTQ's reader knows no zero points (`TYPE_MAP`) and asks for Marlin's groups first, whatever the kernel (`verify_marlin_supported`).
KERNELS = (
    Kernel("CutlassW4A8", (f"{_CT}/fp8",), ((4, False),), (128,), since=(0, 10, 0), least=90, most=90,
           dtypes=frozenset({"BF16"}), rows=128, inputs=128),
    Kernel("Machete", (_CT,), _ALL_TYPES, (-1, 64, 128), least=90, most=90, rows=128, inputs=64),
    Kernel("Machete", (_GPTQ,), _SYMMETRIC, (-1, 64, 128), least=90, most=90, rows=128, inputs=64),
    Kernel("AllSpark", (_CT, _GPTQ), ((8, False),), (-1,), since=(0, 8, 0), until=(0, 31, 0), least=80, most=89, rows=16, inputs=16),
    *_marlin((_CT, _AWQ), (*_SYMMETRIC, (4, True))),
    *_marlin((_GPTQ,), _SYMMETRIC),
    *_exllama(_CT, (ANY_GROUP,)),
    *_exllama(_GPTQ, (32, 64, 128)),
    Kernel("TritonW4A16", (_CT,), ((4, False), (4, True)), (-1, 32, 64, 128, 256), since=(0, 23, 0), least=0, rows=8),
    Kernel("Humming", (_CT,), _ALL_TYPES, (-1, ANY_GROUP), since=(0, 23, 0)),
    Kernel("Humming", (f"{_CT}/fp8",), ((4, False),), (128,), since=(0, 32, 0), least=90, most=90),
    Kernel("Humming", (f"{_CT}/int8",), _ALL_TYPES, (-1, ANY_GROUP), since=(0, 26, 0)),
    # FP8: where cards multiply it, any shape; elsewhere Marlin's, weights only, which padded its tiles from 0.24 on too
    # (`utils/marlin_utils_fp8.py`; `gptq_marlin_repack` cuts rows in 64, its product inputs).
    Kernel("ScaledMM", _FP8, ((8, False),), _FP8_GROUPS, least=89, dtypes=_ANY),
    Kernel("Marlin", _FP8, ((8, False),), _FP8_GROUPS, until=(0, 24, 0), most=88, dtypes=_ANY, rows=64, inputs=64),
    Kernel("Marlin", _FP8, ((8, False),), _FP8_GROUPS, since=(0, 24, 0), most=88, dtypes=_ANY),
    # Readers of one method: plain GPTQ (`gptq.py`), to 0.21; plain AWQ (`awq.py`), layer by layer where Marlin does not do from 0.7.3 on.
    Kernel("GPTQ", (_GPTQ,), tuple(itertools.product((2, 3, 4, 8), (False, True))), (-1, ANY_GROUP), until=(0, 22, 0), least=60,
           dtypes=_FLOAT16, rows=8),
    Kernel("AWQ", (_AWQ,), ((4, True),), (ANY_GROUP,), until=(0, 7, 3), most=79, dtypes=_FLOAT16, rows=8),
    Kernel("AWQ", (_AWQ,), ((4, True),), (ANY_GROUP,), since=(0, 7, 3), dtypes=_FLOAT16, rows=8),
    # Banks of experts: Marlin's, else `moe_wna16`'s, whose groups are the same (`fused_moe/oracle`).
    Kernel("WNA16 experts", (_CT, _AWQ), _ALL_TYPES, _MARLIN_GROUPS, least=70, experts=True),
    Kernel("WNA16 experts", (_GPTQ,), _ALL_TYPES, _MARLIN_GROUPS, until=(0, 22, 0), least=70, experts=True),
    Kernel("WNA16 experts", (_GPTQ,), _SYMMETRIC, _MARLIN_GROUPS, since=(0, 22, 0), least=70, experts=True),
    Kernel("CutlassW4A8 experts", (f"{_CT}/fp8",), ((4, False),), (128,), since=(0, 10, 0), least=90, most=90, experts=True),
    Kernel("Humming experts", (f"{_CT}/int8",), _SYMMETRIC, (-1, ANY_GROUP), since=(0, 26, 0), experts=True),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix as a kernel meets it on one rank, and what it runs on. `dtype`: safetensors' name of what the model computes in."""

    form: Format
    rows: int
    inputs: int
    experts: bool
    capability: int
    version: Version
    dtype: str


#: What a kernel may lack, from the most to the least telling, and the code of the reason.
_CODES = ("no_kernel_in_version", "no_kernel_on_card", "no_kernel_for_integers", "group_size_without_kernel", "dtype_without_kernel",
          "shape_without_kernel")  # fmt: skip
#: The first index of what is lacked by a kernel that this version has on this card for such integers.
_NEAR = 3


def runs(product: Product) -> bool:
    """Return whether a kernel multiplies it. Formats that no kernel here reads are other rules' matter: true."""
    kernels = _readers(product)
    return not kernels or any(_lacks(kernel, product) is None for kernel in kernels)


def takers(product: Product) -> list[str]:
    """Return the names of the kernels that multiply it, in vLLM's order: it runs the first."""
    return [kernel.name for kernel in _readers(product) if _lacks(kernel, product) is None]


def _readers(product: Product) -> tuple[Kernel, ...]:
    form = product.form
    key = f"{form.engine_name}/{form.inputs}" if form.inputs else form.engine_name
    return tuple(kernel for kernel in KERNELS if key in kernel.reads and kernel.experts == product.experts)


def _lacks(kernel: Kernel, product: Product) -> tuple[int, str] | None:
    """The first thing that a kernel lacks for a product: its index in `_CODES`, and a sentence; None where it multiplies it."""
    form, group = product.form, product.form.group_size
    if not kernel.since <= product.version < kernel.until:
        when = (
            f"came with {said(kernel.since)}" if product.version < kernel.since else f"left with {said(kernel.until)}"
        )
        return 0, f"{kernel.name} {when}"
    if not kernel.least <= product.capability <= kernel.most:
        only = "only" if kernel.least == kernel.most else "from"
        return 1, f"{kernel.name} runs {only} on compute capability {kernel.least // 10}.{kernel.least % 10}"
    if (form.bits, form.zero_points) not in kernel.types:
        integers = f"{form.bits:g}-bit integers {'with' if form.zero_points else 'without'} zero points"
        return 2, f"{kernel.name} multiplies no {integers}"
    if group not in kernel.groups and not (group > 0 and ANY_GROUP in kernel.groups):
        return 3, f"{kernel.name} takes no groups of {group}" if group > 0 else f"{kernel.name} takes no whole rows"
    if product.dtype not in kernel.dtypes:
        return 4, f"{kernel.name} computes in {' or '.join(sorted(kernel.dtypes)).lower()}, not {product.dtype.lower()}"
    for what, size, whole in (("inputs", product.inputs, kernel.inputs), ("rows", product.rows, kernel.rows)):
        if size % whole:
            return 5, f"{kernel.name} takes {what} of a rank in multiples of {whole}, not {size:,}"
    return None


def kernel_reasons(ir: ModelIR, capability: int, dtype: str, rules: Rules, parallel: Parallel) -> Iterator[Reason]:
    """Refuse matrices of integers that no kernel multiplies: of each kind of lack the first, with what would mend it."""
    ranks = Ranks.of(parallel)
    found: dict[str, Reason] = {}
    for block, _ in ir.decoder.counts:
        reason = _without_kernel(block, ranks, (capability, rules.version, dtype))
        if reason is not None:
            found.setdefault(reason.code, reason)
    yield from found.values()


def padding_note(ir: ModelIR, capability: int, dtype: str, rules: Rules, parallel: Parallel) -> str | None:
    """Say which matrices Marlin fills up to whole tiles, and what that takes on a rank; None where it runs them as they are."""
    runs_on, ranks = (capability, rules.version, dtype), Ranks.of(parallel)
    counted = [(_padded(block, ranks, runs_on), count) for block, count in ir.decoder.counts]
    sizes = dict.fromkeys(f"{rows:,} × {inputs:,}" for found, _ in counted for rows, inputs, _ in found)
    if not sizes:
        return None
    told = ", ".join(sizes)
    more = sum(added * count for found, count in counted for _, _, added in found)
    return (
        f"Marlin fills matrices of {told} (outputs × inputs) up to whole tiles of 64 × 128 or 128 × 64: "
        f"{more / 2**20:,.1f} MiB, not counted here, and what goes through them is copied in every step"
    )


@lru_cache(maxsize=1 << 14)
def _padded(block: Block, ranks: Ranks, runs_on: tuple[int, Version, str]) -> tuple[tuple[int, int, int], ...]:
    """The products that Marlin pads (`marlin_padded_nk`): their rows and inputs, and the bytes of what is added to their integers."""
    found = []
    for members in fused(block):
        product = _product(block, members, ranks, runs_on)
        if product.experts or next(iter(takers(product)), "") != "Marlin":
            continue
        rows, inputs, group = product.rows, product.inputs, max(1, product.form.group_size)
        whole = min(_up(rows, n) * _up(inputs, math.lcm(k, group)) for n, k in ((64, 128), (128, 64)))
        if whole > rows * inputs:
            found.append((rows, inputs, math.ceil((whole - rows * inputs) * product.form.bits / 8)))
    return tuple(found)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@lru_cache(maxsize=1 << 14)
def _without_kernel(block: Block, ranks: Ranks, runs_on: tuple[int, Version, str]) -> Reason | None:
    for members in fused(block):
        product = _product(block, members, ranks, runs_on)
        if not runs(product):
            return _reason(members[0], product, _product(block, members, Ranks(1, 1), runs_on))
    return None


def _product(block: Block, members: tuple[Linear, ...], ranks: Ranks, runs_on: tuple[int, Version, str]) -> Product:
    first, (capability, version, dtype) = members[0], runs_on
    shapes = [local_shape(linear, ranks, block.state) for linear in members]
    rows = shapes[0][0] if first.copies > 1 else sum(shape[0] for shape in shapes)
    return Product(first.storage, rows, shapes[0][1], first.copies > 1, capability, version, dtype)


def _reason(linear: Linear, product: Product, whole: Product) -> Reason:
    """What the kernels of this version lack on this card; where there are none, when or where there would be. The nearest one names it."""
    lacks = [lack for kernel in _readers(product) if (lack := _lacks(kernel, product)) is not None]
    index = max(index for index, _ in lacks)
    near = dict.fromkeys(sentence for lack, sentence in lacks if lack >= min(index, _NEAR))
    message = (
        f"vLLM {Rules(product.version).said} has no kernel for {linear.name} in {product.form.label}: {'; '.join(near)}"
    )
    remedies = list(_remedies(product))
    if whole != product and runs(whole):
        remedies.append("fewer cards")
    if any("groups" in sentence for sentence in near) and (groups := _groups(product)):
        remedies.append(f"groups of {' or '.join(map(str, groups))}")
    return Reason(
        _CODES[index],
        message,
        ", or ".join(remedies) or "another format",
        {"inputs": product.inputs, "rows": product.rows},
    )


def _groups(product: Product) -> list[int]:
    """The group sizes that kernels of this version take on this card, by the numbers that name them."""
    there = (kernel for kernel in _readers(product) if (_lacks(kernel, product) or (_NEAR, ""))[0] >= _NEAR)
    return sorted({group for kernel in there for group in kernel.groups if group > 0})


def _remedies(product: Product) -> Iterator[str]:
    """What would have a kernel: a version, a dtype, a group size, a card."""
    versions = sorted(
        {kernel.since for kernel in KERNELS}
        | {(0, kernel.until[1] - 1, 0) for kernel in KERNELS if kernel.until < NEVER}
    )
    later = next((v for v in versions if v > product.version and runs(replace(product, version=v))), None)
    older = next((v for v in reversed(versions) if v < product.version and runs(replace(product, version=v))), None)
    if (version := later or older) is not None:
        rest = "or newer" if later else "or older"
        yield f'vLLM {said(version)} {rest} (engine: {{name: vllm, version: "{said(version)}"}})'
    if product.dtype != "F16" and runs(replace(product, dtype="F16")):
        yield "dtype float16"
    if not any((later, older)):
        card = next(
            (c for c in (75, 80, 89, 90) if c > product.capability and runs(replace(product, capability=c))), None
        )
        if card is not None:
            yield f"a card of compute capability {card // 10}.{card % 10} or more"
